from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_model import Linear
from test_free import softmax

from freeadv_jax.attacks.threat import Linf
from freeadv_jax.training.fgsm_pgi import fgsm_pgi_train_step

EPSILON = 0.1


def cosines(one, other):
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(axis=1) / lengths


def oracle(kernel, delta, images, labels, weight):
    """Compute one step for a linear model in NumPy: kernel, delta, loss, alignment."""
    targets = np.eye(kernel.shape[1])[labels]
    prior = (images + delta).clip(0, 1).reshape(len(images), -1)
    before = (softmax(prior @ kernel) - targets) @ kernel.T
    delta = delta + EPSILON * np.sign(before).reshape(delta.shape)
    delta = delta.clip(-EPSILON, EPSILON)
    attacked = (images + delta).clip(0, 1).reshape(len(images), -1)
    probability = softmax(attacked @ kernel)
    apart = (attacked - prior) @ kernel
    classes = kernel.shape[1]
    losses = -np.log((probability * targets).sum(1)) + weight * (apart**2).mean(1)
    error = probability - targets + 2 * weight / classes * apart
    through_prior = 2 * weight / classes * prior.T @ apart
    gradient = (attacked.T @ error - through_prior) / len(images)
    alignment = cosines(before, error @ kernel.T).mean()
    return kernel - 0.1 * gradient, delta, losses.mean(), alignment


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_two_steps_agree_with_a_numpy_oracle_in_float64(weight, batch, make_state):
    """The second minibatch begins with the perturbation that the first one left."""
    with jax.enable_x64(True):
        model, tx = Linear(dtype=jnp.float64), optax.sgd(0.1)
        start = np.random.default_rng(1).uniform(-EPSILON, EPSILON, (8, 4, 4, 1))
        state = make_state(model, tx, delta=jnp.array(start))
        labels = np.array(batch["label"])
        images = np.array(batch["image"], float) / 255
        step = partial(
            fgsm_pgi_train_step,
            model=model,
            tx=tx,
            threat=Linf(EPSILON),
            step_size=EPSILON,
            pgi_lambda=weight,
        )
        kernel, delta = np.array(state.params["Dense_0"]["kernel"]), start
        for rows in (slice(None), slice(None, None, -1)):
            part = {
                "image": batch["image"][rows],
                "label": jnp.array(labels[rows], int),
            }
            state, metrics = step(state, part)
            kernel, delta, loss, alignment = oracle(
                kernel, delta, images[rows], labels[rows], weight
            )
            found = state.params["Dense_0"]["kernel"]
            assert found.dtype == state.delta.dtype == jnp.float64
            np.testing.assert_allclose(found, kernel, rtol=0, atol=1e-14)
            np.testing.assert_array_equal(state.delta, delta)
            np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-13)
            np.testing.assert_allclose(metrics["alignment"], alignment, rtol=1e-12)
        assert int(state.step) == 2


def test_logits_that_agree_leave_the_cross_entropy_alone(batch, make_state):
    """Within a tiny epsilon both ends of the step are one image."""
    step = partial(
        fgsm_pgi_train_step,
        model=Linear(),
        tx=optax.sgd(0.1),
        threat=Linf(1e-7),
        step_size=1e-7,
    )
    losses = [
        float(step(make_state(), batch, pgi_lambda=weight)[1]["loss"])
        for weight in (0.0, 10.0)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
