"""Pickles of arrays are read; anything else in a pickle is refused before it runs."""

import collections
import io
import pickle

import ml_dtypes
import numpy as np
import pytest

from freeadv_jax.pickles import unpickle_arrays

CONTENT = {
    "a": np.arange(6.0).reshape(2, 3),
    "b": [np.float32(0.5), (1, "two", None, True)],
    "c": np.ones(2, ml_dtypes.bfloat16),
}


@pytest.mark.parametrize("protocol", [3, 4])
def test_arrays_numbers_and_strings_come_back_as_they_were(protocol):
    found = unpickle_arrays(io.BytesIO(pickle.dumps(CONTENT, protocol=protocol)))
    assert found.keys() == CONTENT.keys()
    np.testing.assert_array_equal(found["a"], CONTENT["a"])
    assert found["b"] == CONTENT["b"]
    assert found["c"].dtype == ml_dtypes.bfloat16


def test_names_of_older_and_newer_numpy_are_the_same_arrays():
    content = pickle.dumps(np.arange(3), protocol=3)
    newer = b"numpy._core.multiarray"
    other = content.replace(newer, b"numpy.core.multiarray")
    assert other != content
    np.testing.assert_array_equal(unpickle_arrays(io.BytesIO(other)), np.arange(3))


@pytest.mark.parametrize(
    ("thing", "name"),
    [(print, "builtins.print"), (collections.Counter(), "collections.Counter")],
)
def test_any_other_global_name_is_refused(thing, name):
    with pytest.raises(pickle.UnpicklingError, match=f"it asks for {name}, which is"):
        unpickle_arrays(io.BytesIO(pickle.dumps([thing])))
