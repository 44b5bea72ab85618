import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.errors import InputError
from freeadv_jax.weights.tensors import fitted, read_tensors, write_tensors


def floats(shapes):
    return {
        name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()
    }


def test_arrays_with_transposed_axes_are_read_back_bit_equal(tmp_path):
    array = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    tensors = {"a/b": array.transpose(2, 3, 1, 0), "c": array[:, 0]}
    write_tensors(tmp_path / "x.safetensors", tensors)
    again = read_tensors(tmp_path / "x.safetensors")
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)


def test_all_misfits_are_listed_with_both_shapes(tmp_path):
    tensors = {
        "good": np.ones(2, np.float16),
        "stray": np.ones(()),
        "wide": np.ones((2, 3)),
        "whole": np.ones(1, np.int8),
        "count": np.ones((), np.int8),
    }
    shapes = {"good": (2,), "wide": (3, 2), "whole": (1,)}
    shapes |= {f"m{index}": (index,) for index in range(6)}
    expected = floats(shapes) | {"count": jax.ShapeDtypeStruct((), np.int32)}
    with pytest.raises(InputError) as raised:
        fitted(tmp_path / "x", tensors, expected)
    assert str(raised.value) == (
        f"{tmp_path / 'x'} does not fit the model; unknown: stray []; "
        "missing: m0 [0], m1 [1], m2 [2], m3 [3] and 2 more; "
        "of another shape: wide [2, 3] instead of [3, 2]; not floats: whole int8; "
        "of another type: count int8 instead of int32"
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, jnp.bfloat16])
def test_floats_of_any_precision_become_float32(dtype, tmp_path):
    tensors = {"a": np.full(2, 0.25, dtype)}
    taken = fitted(tmp_path / "x", tensors, floats({"a": (2,)}))
    assert taken["a"].dtype == np.float32
    assert taken["a"].tolist() == [0.25, 0.25]


def test_bfloat16_is_written_as_float32(tmp_path):
    array = jnp.array([0.25, 1.5], jnp.bfloat16)
    write_tensors(tmp_path / "x.safetensors", {"a": array})
    again = read_tensors(tmp_path / "x.safetensors")["a"]
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, [0.25, 1.5])


def test_a_file_that_is_not_safetensors_is_refused_in_one_line(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match="there is no file"):
        read_tensors(path)
    write_tensors(path, {"a": np.ones(100, np.float32)})
    for content in (b"", b"\x80garbage", path.read_bytes()[:-4]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="cannot be read as safetensors") as raised:
            read_tensors(path)
        assert "\n" not in str(raised.value)


def test_without_safetensors_the_extra_to_install_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(InputError, match=r"pip install 'freeadv_jax\[export\]'"):
        read_tensors(tmp_path / "x.safetensors")
