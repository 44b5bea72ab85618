import jax
import jax.numpy as jnp
import numpy as np
import optax
from linear_model import Linear
from test_free import softmax

from freeadv_jax.attacks.threat import Linf
from freeadv_jax.models.small_cnn import SmallCNN
from freeadv_jax.training.trades import trades_train_step

EPSILON = 0.1


def step(state, batch, *, beta, model=None, steps=10):
    return trades_train_step(
        state,
        batch,
        model=model or Linear(),
        tx=optax.sgd(0.1),
        threat=Linf(EPSILON),
        step_size=EPSILON / 4,
        steps=steps,
        beta=beta,
    )


def natural_gradient(kernel, pixels, labels):
    return pixels.T @ (softmax(pixels @ kernel) - labels) / len(pixels)


def test_trades_without_its_divergence_is_plain_sgd(batch, make_state):
    state = make_state()
    after, _ = step(state, batch, beta=0.0)
    kernel = np.array(state.params["Dense_0"]["kernel"], np.float64)
    pixels = np.array(batch["image"], float).reshape(8, -1) / 255
    labels = np.eye(3)[np.array(batch["label"])]
    kernel -= 0.1 * natural_gradient(kernel, pixels, labels)
    np.testing.assert_allclose(after.params["Dense_0"]["kernel"], kernel, atol=1e-7)


def test_loss_is_cross_entropy_plus_beta_times_the_divergence(batch, make_state):
    """Without attack steps, the perturbation is the authors' normally distributed
    start.
    """
    state = make_state()
    _, metrics = step(state, batch, beta=6.0, steps=0)
    kernel = np.array(state.params["Dense_0"]["kernel"], np.float64)
    images = np.array(batch["image"], np.float64) / 255
    noise = jax.vmap(lambda key: 1e-3 * jax.random.normal(key, (4, 4, 1)))
    attacked = (images + np.array(noise(state.attack_keys()))).clip(0, 1)
    p, q = (softmax(x.reshape(8, -1) @ kernel) for x in (images, attacked))
    expected = -np.log(p[np.arange(8), np.array(batch["label"])])
    expected = expected + 6.0 * (p * np.log(p / q)).sum(1)
    np.testing.assert_allclose(metrics["loss"], expected.mean(), rtol=1e-6)


def test_attack_raises_the_divergence(batch, make_state):
    state = make_state()
    _, before = step(state, batch, beta=6.0, steps=0)
    _, after = step(state, batch, beta=6.0, steps=10)
    assert after["loss"] > before["loss"] + 0.01


def test_inner_attack_uses_the_running_averages(batch, make_state):
    """Averages with infinite variance flatten the network: no gradient, so no attack."""
    model = SmallCNN(num_classes=3, batch_norm=True, features=(4,), hidden=4)
    state = make_state(model)
    flat = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full_like(x, 1e30) if "var" in str(path) else x,
        state.collections,
    )
    _, unattacked = step(state.replace(collections=flat), batch, beta=6.0, model=model)
    _, started = step(state, batch, beta=6.0, model=model, steps=0)
    _, attacked = step(state, batch, beta=6.0, model=model)
    np.testing.assert_allclose(unattacked["loss"], started["loss"], rtol=1e-4)
    assert attacked["loss"] > started["loss"] + 0.001


def test_the_weights_in_training_are_attacked_not_their_average(batch, make_state):
    state = make_state()
    other = jax.tree.map(jnp.flip, {"params": state.params, "batch_stats": {}})
    plain, expected = step(state, batch, beta=6.0)
    averaged, metrics = step(state.replace(average=other), batch, beta=6.0)
    jax.tree.map(np.testing.assert_array_equal, averaged.params, plain.params)
    assert metrics["loss"] == expected["loss"]
