from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_oracle import THREAT, attacked, flat, step_in_float64

from freeadv_jax.models.small_cnn import SmallCNN
from freeadv_jax.training.mart import _log_complement_of_runner_up, mart_train_step


def mart_loss(kernel, natural, other, labels, weight):
    """Return the mean of MART's loss, written with probabilities as in the paper."""

    def probabilities(pixels):
        exponentials = jnp.exp(pixels @ kernel)
        return exponentials / exponentials.sum(1, keepdims=True)

    p, q, rows = probabilities(natural), probabilities(other), np.arange(len(labels))
    wrong = np.eye(kernel.shape[1])[labels] == 0
    runner_up = jnp.max(jnp.where(wrong, q, 0.0), axis=1)
    boosted = -jnp.log(q[rows, labels]) - jnp.log(1 - runner_up)
    divergence = jnp.sum(p * jnp.log(p / q), axis=1)
    return jnp.mean(boosted + weight * divergence * (1 - p[rows, labels]))


@pytest.mark.parametrize("weight", [0.0, 5.0])
def test_loss_and_update_agree_with_the_papers_formula_in_float64(
    weight, batch, make_state
):
    (kernel, images, labels, start), after, loss = step_in_float64(
        mart_train_step, make_state, batch, mart_lambda=weight
    )
    other = attacked(kernel, images, labels, start)
    with jax.enable_x64(True):
        expected, gradient = jax.value_and_grad(mart_loss)(
            jnp.array(kernel), flat(images), flat(other), labels, weight
        )
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        np.testing.assert_allclose(after, kernel - 0.1 * gradient, rtol=0, atol=1e-13)


def test_a_runner_up_that_is_certain_has_a_finite_complement():
    """In float32 one minus its probability is 0."""
    logits = jnp.array([[0.0, 50.0, -10.0], [90.0, 3.0, 2.0]])
    found = _log_complement_of_runner_up(logits, jnp.array([0, 0]))
    np.testing.assert_allclose(found, [-50.0, -np.exp(-87.0)], rtol=1e-4, atol=1e-7)


def test_the_attack_sees_the_running_averages(batch, make_state):
    """Averages with a huge mean switch off the units of the attacked network, and with them
    its gradient."""
    model = SmallCNN(num_classes=3, batch_norm=True, features=(4,), hidden=4)
    state = make_state(model)

    @partial(jax.jit, static_argnums=1)
    def loss(collections, steps):
        return mart_train_step(
            state.replace(collections=collections),
            batch,
            model=model,
            tx=optax.sgd(0.1),
            threat=THREAT,
            step_size=0.03,
            steps=steps,
            mart_lambda=5.0,
        )[1]["loss"]

    switched_off = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full_like(x, 1e30) if "mean" in str(path) else x,
        state.collections,
    )
    started = loss(state.collections, 0)
    np.testing.assert_allclose(loss(switched_off, 5), started, rtol=1e-5)
    assert loss(state.collections, 5) > started + 0.001
