import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from freeadv_jax.errors import InputError
from freeadv_jax.pixels import as_array, unit_range

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


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_tensors_become_arrays_of_the_same_values(kind):
    torch = pytest.importorskip("torch")
    tensor = torch.linspace(0, 1, 9, dtype=getattr(torch, kind))
    wanted = tensor.to(torch.float64).numpy()
    for given in (tensor, tensor.clone().requires_grad_()):
        np.testing.assert_array_equal(as_array(given), wanted)


@pytest.mark.torch
def test_tensors_of_whole_numbers_keep_their_type():
    torch = pytest.importorskip("torch")
    one = as_array(torch.tensor([0, 3, 1], dtype=torch.uint8))
    several = as_array([torch.tensor(number) for number in (0, 3, 1)])
    assert (one.dtype, several.dtype) == (np.uint8, np.int64)
    np.testing.assert_array_equal([one, several], [[0, 3, 1]] * 2)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ([0, 3, 1], np.int64),
        (jnp.array([0, 3, 1], jnp.int16), np.int16),
    ],
)
def test_whole_numbers_keep_their_type(given, kind):
    array = as_array(given)
    assert array.dtype == kind
    assert isinstance(array, jax.Array) == isinstance(given, jax.Array)
    np.testing.assert_array_equal(array, [0, 3, 1])
