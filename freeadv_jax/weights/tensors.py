"""Named arrays in safetensors files: the only module that knows safetensors."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from freeadv_jax.errors import InputError, one_line, shortened
from freeadv_jax.files import AnyPath, local_copy

# {name: array}; the arrays are NumPy's, JAX's, or just their shapes and types.
Arrays = Mapping[str, Any]

# Each list of misfits names this many arrays.
_NAMED = 4


def read_tensors(path: AnyPath) -> dict[str, np.ndarray]:
    """Return the arrays of a file; raise InputError where it cannot be read."""
    safetensors = _safetensors()
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with local_copy(path) as file:
            return _read(file, safetensors)
    except Exception as fault:  # Number types that NumPy lacks raise various errors.
        raise InputError(
            f"{path} cannot be read as safetensors: {one_line(fault)}"
        ) from fault


def _read(path, safetensors):
    with safetensors.safe_open(path, framework="np") as file:
        names = file.keys()
        types = {file.get_slice(name).get_dtype() for name in names}
    if "BF16" in types:  # safetensors has no bfloat16 for NumPy.
        return _with_bfloat16(safetensors.deserialize(path.read_bytes()))
    return safetensors.numpy.load_file(path)


def _with_bfloat16(tensors):
    """Return the arrays of a deserialized file, bfloat16 among their types."""
    types = {"BF16": jnp.bfloat16, "F16": np.float16, "F32": np.float32}
    types |= {"F64": np.float64, "I64": np.int64}
    return {
        name: np.frombuffer(tensor["data"], types[tensor["dtype"]]).reshape(
            tensor["shape"]
        )
        for name, tensor in tensors
    }


def write_tensors(path: AnyPath, tensors: Arrays) -> None:
    """Write the arrays under their names; number types that NumPy lacks as float32."""
    # safetensors would write the bytes in memory of a transposed array under its shape.
    dense = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    # NumPy sees bfloat16 and the 8-bit floats of JAX as raw bytes.
    dense = {
        name: array.astype(np.float32) if array.dtype.kind == "V" else array
        for name, array in dense.items()
    }
    path.write_bytes(_safetensors().numpy.save(dense))


def fitted(
    source: object,
    tensors: Arrays,
    expected: Arrays,
) -> dict[str, Any]:
    """Return `tensors` in the order and the number types of `expected`.

    A float may have any precision; other types must agree. Raise InputError, naming
    their `source`, that lists the arrays which are unknown, missing or different.
    """
    require_fit(f"{source} does not fit the model", misfits(tensors, expected))
    return {name: tensors[name].astype(array.dtype) for name, array in expected.items()}


def misfits(
    tensors: Arrays,
    expected: Arrays,
) -> dict[str, list[str]]:
    """Return {kind of misfit: arrays with their shapes or types}."""
    both = [
        (name, tensors[name], expected[name]) for name in expected if name in tensors
    ]
    return {
        "unknown": [
            f"{name} {list(array.shape)}"
            for name, array in tensors.items()
            if name not in expected
        ],
        "missing": [
            f"{name} {list(array.shape)}"
            for name, array in expected.items()
            if name not in tensors
        ],
        "of another shape": [
            f"{name} {list(given.shape)} instead of {list(array.shape)}"
            for name, given, array in both
            if given.shape != array.shape
        ],
        "not floats": [
            f"{name} {given.dtype}"
            for name, given, array in both
            if _is_float(array) and not _is_float(given)
        ],
        "of another type": [
            f"{name} {given.dtype} instead of {array.dtype}"
            for name, given, array in both
            if not _is_float(array) and given.dtype != array.dtype
        ],
    }


def require_fit(fault: str, found: Mapping[str, list[str]]) -> None:
    """Raise InputError `fault` with the lists of misfits, unless all are empty."""
    lists = [
        f"{kind}: {shortened(names, most=_NAMED)}"
        for kind, names in found.items()
        if names
    ]
    if lists:
        raise InputError(f"{fault}; {'; '.join(lists)}")


def _is_float(array):
    return jnp.issubdtype(array.dtype, jnp.floating)


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as fault:
        raise InputError(
            "safetensors is not installed: pip install 'freeadv_jax[export]'"
        ) from fault
    return safetensors
