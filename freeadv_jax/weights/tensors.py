"""Named arrays in safetensors files: the only module that knows safetensors."""

import pathlib

import jax.numpy as jnp
import numpy as np

from freeadv_jax.errors import InputError

# So many of each kind of misfit are named.
_NAMED = 4


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file; InputError where it cannot be read."""
    safetensors = _safetensors()
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        return safetensors.numpy.load_file(path)
    except Exception as fault:  # Also types that NumPy does not have.
        reason = str(fault).strip().split("\n")[0] or type(fault).__name__
        raise InputError(f"{path} cannot be read as safetensors: {reason}") from fault


def write_tensors(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """Writes the arrays under their names."""
    # Of a transposed array the bytes in memory would be written under its shape.
    dense = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    path.write_bytes(_safetensors().numpy.save(dense))


def fitted(
    path: pathlib.Path,
    tensors: dict[str, np.ndarray],
    expected: dict[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
    """`tensors` as float32; InputError listing those that are not as `expected`.

    `path` is the file that they come from, `expected` the shape under each name.
    """
    common = [name for name in expected if name in tensors]
    misfits = {
        "unknown": [
            f"{name} {list(array.shape)}"
            for name, array in tensors.items()
            if name not in expected
        ],
        "missing": [
            f"{name} {list(shape)}"
            for name, shape in expected.items()
            if name not in tensors
        ],
        "of another shape": [
            f"{name} {list(tensors[name].shape)} instead of {list(expected[name])}"
            for name in common
            if tensors[name].shape != expected[name]
        ],
        "not floats": [
            f"{name} {tensors[name].dtype}"
            for name in common
            if not jnp.issubdtype(tensors[name].dtype, jnp.floating)
        ],
    }
    lists = [f"{kind}: {shortened(names)}" for kind, names in misfits.items() if names]
    if lists:
        raise InputError(f"{path} does not fit the model; {'; '.join(lists)}")
    return {name: tensors[name].astype(np.float32) for name in expected}


def shortened(names: list[str]) -> str:
    """The first few, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _safetensors():
    try:
        import safetensors.numpy
    except ImportError as fault:
        raise InputError(
            "safetensors is not installed: pip install 'freeadv_jax[export]'"
        ) from fault
    return safetensors
