import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from linear_model import Linear

from freeadv_jax.training.state import create_state


@pytest.fixture
def batch():
    """Return eight 4x4 images with three classes, some pixels exactly 0 or 255."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
    images[:, 0], images[:, 1] = 0, 255
    return {"image": jnp.array(images), "label": jnp.array(rng.integers(0, 3, 8))}


@pytest.fixture
def make_state():
    def make(model=None, tx=None, **fields):
        state = jax.jit(
            lambda: create_state(
                model or Linear(),
                tx or optax.sgd(0.1),
                seed=0,
                batch_size=8,
                image_shape=(4, 4, 1),
            )
        )()
        return state.replace(**fields)

    return make
