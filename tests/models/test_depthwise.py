import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from freeadv_jax.models.depthwise import depthwise_convolution


def plain(images, kernel):
    return lax.conv_general_dilated(
        images,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=images.shape[-1],
    )


@pytest.mark.parametrize(
    "shape, side",
    [((2, 9, 8, 3), 7), ((2, 5, 6, 4), 3), ((1, 2, 5, 3), 7), ((1, 1, 2, 5), 7)],
)
def test_result_and_gradients_are_those_of_the_grouped_convolution(shape, side):
    rng = np.random.default_rng(0)
    images = jnp.float32(rng.normal(size=shape))
    kernel = jnp.float32(rng.normal(size=(side, side, 1, shape[-1])))
    cotangent = jnp.float32(rng.normal(size=shape))
    ours, pull = jax.vjp(depthwise_convolution, images, kernel)
    theirs, expected = jax.vjp(plain, images, kernel)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    for mine, other in zip(pull(cotangent), expected(cotangent), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-4)


def test_bfloat16_is_summed_in_float32():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 8, 8, 4)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(7, 7, 1, 4)), jnp.bfloat16)
    narrow, pull = jax.vjp(depthwise_convolution, images, kernel)
    wide, exact = jax.vjp(
        depthwise_convolution, images.astype("float32"), kernel.astype("float32")
    )
    found = [narrow, *pull(jnp.ones_like(narrow))]
    for mine, other in zip(found, [wide, *exact(jnp.ones_like(wide))], strict=True):
        assert mine.dtype == jnp.bfloat16
        # Half a unit in the last of 8 bits.
        np.testing.assert_allclose(mine.astype("float32"), other, rtol=2**-8, atol=1e-6)
