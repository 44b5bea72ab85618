"""Pickles of NumPy's arrays, read without running code."""

import io
import pickle
from typing import Any

import ml_dtypes
import numpy as np

_RECONSTRUCT, _ = np.empty(0).__reduce__()[:2]
_SCALAR, _ = np.float64(0).__reduce__()
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("ml_dtypes", "bfloat16"): ml_dtypes.bfloat16,
} | {
    (f"numpy.{core}.multiarray", name): function
    for core in ("core", "_core")
    for name, function in (("_reconstruct", _RECONSTRUCT), ("scalar", _SCALAR))
}


def unpickle_arrays(file: io.BufferedIOBase, *, encoding: str = "ASCII") -> Any:
    """Return the arrays, numbers, strings, lists, tuples and dicts of a pickle.

    `encoding` is that of Python 2's strings; "bytes" leaves them as bytes. Raise
    UnpicklingError where the pickle asks for anything else, which could run code. A damaged
    pickle raises nearly any error.
    """
    return _ArrayUnpickler(file, encoding=encoding).load()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module_name, global_name):
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it asks for {module_name}.{global_name}, which is not allowed"
            ) from None
