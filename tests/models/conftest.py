"""Draw variables for a network without its initialisers, which compile for seconds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest


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
