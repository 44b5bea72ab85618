import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from freeadv_jax.errors import InputError
from freeadv_jax.pixels import unit_range

LEVELS = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_uint8_is_divided_by_255_in_float32(array):
    pixels = unit_range(array(LEVELS))
    assert isinstance(pixels, type(array(LEVELS)))
    assert pixels.dtype == np.float32
    # XLA multiplies by the reciprocal, which can round to the next float.
    np.testing.assert_allclose(pixels, LEVELS.astype(np.float64) / 255, rtol=1.2e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_floats_are_never_divided(array, dtype):
    images = (LEVELS / 256).astype(dtype)
    pixels = unit_range(array(images))
    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, images.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.int32, np.uint16, bool])
def test_other_types_are_refused(dtype):
    with pytest.raises(InputError, match="must be uint8, or floats"):
        unit_range(LEVELS.astype(dtype))
