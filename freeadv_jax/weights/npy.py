"""Named tensors of pickled .npy files, those of DeepMind's JAX networks among them."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from freeadv_jax.errors import InputError, one_line
from freeadv_jax.files import AnyPath
from freeadv_jax.pickles import unpickle_arrays

# Haiku's names of arrays, and PyTorch's.
_LEAVES = {"w": "weight", "b": "bias", "scale": "weight", "offset": "bias"}
_AVERAGES = {"mean_ema": "running_mean", "var_ema": "running_var"}
# Haiku's kernels are [h, w, c, features] and [c, features].
_AXES = {4: (3, 2, 0, 1), 2: (1, 0)}


def read_pickled(path: AnyPath) -> Any:
    """Return what `np.save` pickled into a .npy file; no code of the file is run.

    A pair (parameters, state) of a network in Haiku, as Gowal et al. (2020) published
    theirs, becomes {name: array} with the names and shapes of their PyTorch code. Raise
    InputError where the file cannot be read or holds anything but arrays, numbers,
    strings and dicts of them.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            if not _is_pickled(file):
                raise InputError(
                    f"{path} holds a single array; allowed: a pickled dict of named arrays"
                )
            content = unpickle_arrays(file)
    except InputError:
        raise
    except Exception as fault:  # A damaged pickle raises nearly any error.
        raise InputError(
            f"{path} cannot be read as a pickle of arrays alone: {one_line(fault)}"
        ) from fault
    if isinstance(content, np.ndarray) and content.dtype == object:
        content = content.tolist()
    if isinstance(content, tuple | list) and len(content) == 2:
        parameters, state = content
        if _is_nested(parameters) and _is_nested(state):
            return _from_haiku(path, parameters, state)
    return content


def _is_pickled(file):
    """Read the header of a .npy file; return whether Python objects follow."""
    version = np.lib.format.read_magic(file)
    header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    *_, dtype = header(file)
    return dtype.hasobject


def _is_nested(content):
    return isinstance(content, Mapping) and all(
        isinstance(arrays, Mapping) for arrays in content.values()
    )


def _from_haiku(path, parameters, state):
    found = {
        f"{_layer(module)}.{_LEAVES[name]}": _as_torch(array)
        for module, arrays in parameters.items()
        for name, array in arrays.items()
        if name in _LEAVES
    }
    for module, arrays in state.items():
        layer, _, average = module.rpartition("/")
        if average in _AVERAGES and "average" in arrays:
            name = f"{_layer(layer)}.{_AVERAGES[average]}"
            found[name] = _as_torch(arrays["average"])
    strays = [
        f"{module}/{name}"
        for module, arrays in parameters.items()
        for name in arrays
        if name not in _LEAVES
    ]
    if strays:
        raise InputError(
            f"{path} holds arrays that are not Haiku's {', '.join(_LEAVES)}: "
            f"{strays[0]}{' and others' * (len(strays) > 1)}"
        )
    return found


def _layer(module):
    """Return the layer of a Haiku module, without the network's own name."""
    _, *layers = [part for part in module.split("/") if part != "~"]
    unit = re.compile(r"resnet_lay_(\d+)_block_(\d+)")
    return ".".join(unit.sub(r"layer.\1.block.\2", layer) for layer in layers)


def _as_torch(array):
    array = np.asarray(array)
    if array.ndim == 4 and array.shape[:3] == (1, 1, 1):
        # BatchNorm's arrays are [1, 1, 1, c]; a kernel of one pixel and one channel is not
        # among those of a network.
        return array.reshape(-1)
    return array.transpose(_AXES.get(array.ndim, range(array.ndim)))
