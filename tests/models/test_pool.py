import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.models.pool import max_pool

RNG = np.random.default_rng(0)


def in_numpy(images, window, stride, padding):
    sides = (padding, padding)
    padded = np.pad(images, ((0, 0), sides, sides, (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, (window, window), axis=(1, 2)
    )
    return windows[:, ::stride, ::stride].max(axis=(-2, -1))


@pytest.mark.parametrize(
    "shape, window, stride, padding",
    [
        ((2, 8, 8, 3), 3, 2, 1),
        ((2, 9, 6, 1), 3, 2, 1),
        ((1, 6, 6, 2), 2, 2, 0),
        ((1, 7, 5, 2), 3, 1, 0),
    ],
)
def test_values_equal_numpy_and_gradients_equal_flax(shape, window, stride, padding):
    # Few different numbers, and many zeros as after a ReLU, so that most windows have
    # ties.
    images = np.maximum(RNG.integers(-4, 4, shape), 0).astype(np.float32)
    pooled, back = jax.vjp(
        lambda x: max_pool(x, window=window, stride=stride, padding=padding), images
    )
    np.testing.assert_array_equal(pooled, in_numpy(images, window, stride, padding))
    sides = (padding, padding)
    _, expected = jax.vjp(
        lambda x: nn.max_pool(
            x, (window, window), (stride, stride), padding=(sides, sides)
        ),
        images,
    )
    sent = RNG.normal(size=pooled.shape).astype(np.float32)
    np.testing.assert_allclose(back(sent)[0], expected(sent)[0], atol=1e-6)


def test_the_padding_is_never_the_maximum_of_negative_images():
    images = jnp.full((1, 4, 4, 1), -2.0, jnp.bfloat16)
    pooled = max_pool(images, window=3, stride=2, padding=1)
    assert pooled.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pooled.astype(jnp.float32), -2.0)
