"""Training in L1 and against patches stays in the threat, and attacks by its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_model import Linear

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.threat import L1, Patch
from freeadv_jax.training.free import free_train_step
from freeadv_jax.training.pgd import attacked_images, pgd_train_step

THREATS = pytest.mark.parametrize("threat", [L1(1.5), Patch(2.0)], ids=["l1", "patch"])
STEP = {"l1": 0.5, "patch": 0.2}


def logits_of(state):
    kernel = state.params["Dense_0"]["kernel"]
    return lambda images: images.reshape(len(images), -1) @ kernel


def is_inside(threat, images, points):
    delta = np.float64(points) - np.float64(images)
    if threat.norm == "l1":
        return np.abs(delta).sum((1, 2, 3)).max() <= threat.epsilon + 1e-6
    return np.asarray(threat.size(jnp.float32(delta))).max() <= threat.epsilon


@THREATS
def test_pgd_trains_on_images_that_the_threat_made_worse(threat, batch, make_state):
    state, labels = make_state(), batch["label"]
    images = jnp.float32(batch["image"]) / 255
    call = {"threat": threat, "steps": 8, "step_size": STEP[threat.norm]}
    attacked = jax.jit(
        lambda images: attacked_images(
            logits_of(state), state, images, labels, **call, axis_name=None
        )
    )(images)
    assert is_inside(threat, images, attacked)
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    before, after = (
        cross_entropy(logits_of(state)(points), labels) for points in (images, attacked)
    )
    assert (after > before).all()

    options = {"model": Linear(), "tx": optax.sgd(0.1)}
    step = functools.partial(pgd_train_step, **options, **call)
    trained, _ = jax.jit(step)(state, batch)

    def loss(kernel):
        return cross_entropy(attacked.reshape(len(images), -1) @ kernel, labels).mean()

    kernel = state.params["Dense_0"]["kernel"]
    wanted = kernel - 0.1 * jax.grad(loss)(kernel)
    np.testing.assert_allclose(trained.params["Dense_0"]["kernel"], wanted, atol=1e-6)


@THREATS
def test_free_carries_a_perturbation_of_the_threat(threat, batch, make_state):
    state = make_state()
    images = jnp.float32(batch["image"]) / 255
    call = {"threat": threat, "step_size": STEP[threat.norm], "replays": 4}
    options = {"model": Linear(), "tx": optax.sgd(0.1)}
    step = jax.jit(functools.partial(free_train_step, **options, **call))
    for _ in range(2):
        state, metrics = step(state, batch)
        assert np.isfinite(float(metrics["loss"]))
        points = images + state.delta
        assert is_inside(threat, images, points)
        assert points.min() >= -1e-6
        assert points.max() <= 1 + 1e-6
        changed = np.asarray(state.delta != 0).reshape(len(images), -1)
        assert changed.any(axis=1).all()
