from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_oracle import THREAT, attacked, flat, softmax, step_in_float64

from freeadv_jax.models.small_cnn import SmallCNN
from freeadv_jax.training.alp import alp_train_step


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_loss_and_update_agree_with_numpy_in_float64(weight, batch, make_state):
    (kernel, images, labels, start), after, loss = step_in_float64(
        alp_train_step, make_state, batch, alp_lambda=weight
    )
    natural, other = flat(images), flat(attacked(kernel, images, labels, start))
    logits, others = natural @ kernel, other @ kernel
    targets = np.eye(3)[labels]
    entropies = [-np.log(softmax(z)[np.arange(8), labels]) for z in (logits, others)]
    distance = ((logits - others) ** 2).mean(1)
    np.testing.assert_allclose(
        loss, np.mean(sum(entropies) / 2 + weight * distance), rtol=1e-12
    )
    gradient = natural.T @ (softmax(logits) - targets) / 2
    gradient += other.T @ (softmax(others) - targets) / 2
    gradient += weight * 2 / 3 * (natural - other).T @ (logits - others)
    np.testing.assert_allclose(after, kernel - 0.1 * gradient / 8, rtol=0, atol=1e-13)


def test_the_attack_sees_the_running_averages_and_both_halves_move_them_once(
    batch, make_state
):
    """Averages with a huge mean switch off the units of the attacked network, and with them
    its gradient."""
    model = SmallCNN(num_classes=3, batch_norm=True, features=(4,), hidden=4)
    state = make_state(model)

    @partial(jax.jit, static_argnums=1)
    def step(collections, steps):
        return alp_train_step(
            state.replace(collections=collections),
            batch,
            model=model,
            tx=optax.sgd(0.1),
            threat=THREAT,
            step_size=0.03,
            steps=steps,
            alp_lambda=0.5,
        )

    switched_off = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full_like(x, 1e30) if "mean" in str(path) else x,
        state.collections,
    )
    after, started = step(state.collections, 0)
    _, unattacked = step(switched_off, 5)
    _, harmed = step(state.collections, 5)
    np.testing.assert_allclose(unattacked["loss"], started["loss"], rtol=1e-5)
    assert harmed["loss"] > started["loss"] + 0.001
    images = np.array(batch["image"], np.float32) / 255
    starts = THREAT.random_start(state.attack_keys(), (4, 4, 1))
    both = np.concatenate([images, (images + np.array(starts)).clip(0, 1)])
    _, expected = model.apply(
        {"params": state.params, **state.collections},
        jnp.array(both),
        train=True,
        mutable=["batch_stats"],
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        after.collections,
        dict(expected),
    )
