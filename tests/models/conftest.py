"""Draw variables without initialisers, which compile for seconds, and train by Free-2."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from freeadv_jax.attacks.threat import Linf
from freeadv_jax.models.normalized import NormalizedNetwork
from freeadv_jax.training.free import free_train_step
from freeadv_jax.training.state import create_state


def draw_variables(network, images):
    """Return variables that all differ, so that a test notices any mix-up."""
    shapes = jax.eval_shape(
        lambda x: network.init(jax.random.key(0), x, train=False), images
    )
    rng = np.random.default_rng(1)

    def draw(leaf):
        low, high = (-0.2, 0.2) if leaf.ndim > 1 else (0.2, 1.0)
        return jnp.asarray(rng.uniform(low, high, leaf.shape), leaf.dtype)

    return jax.tree.map(draw, shapes)


@pytest.fixture
def randomized():
    return draw_variables


@pytest.fixture
def free_2():
    """Return a function that trains a network on two minibatches by Free-2.

    It returns the state before, the state after and the two losses.
    """

    def train(network, image_shape):
        rng = np.random.default_rng(0)
        model = NormalizedNetwork(network, "mean_std", (0.5,), (0.25,))
        tx = optax.sgd(0.05, momentum=0.9)
        images = jnp.zeros((1, *image_shape))
        start = create_state(
            model,
            tx,
            seed=0,
            batch_size=4,
            image_shape=image_shape,
            variables={"batch_stats": {}} | draw_variables(model, images),
        )
        step = jax.jit(
            functools.partial(
                free_train_step,
                model=model,
                tx=tx,
                threat=Linf(8 / 255),
                step_size=8 / 255,
                replays=2,
            )
        )
        state, losses = start, []
        for _ in range(2):
            images = rng.integers(0, 256, (4, *image_shape)).astype(np.uint8)
            batch = {"image": jnp.asarray(images), "label": jnp.arange(4) % 3}
            state, metrics = step(state, batch)
            losses.append(metrics["loss"])
        return start, state, losses

    return train
