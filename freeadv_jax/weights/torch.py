"""Named tensors of PyTorch's files: the only module that knows PyTorch."""

import argparse
import re

import ml_dtypes
import numpy as np

from freeadv_jax.errors import InputError, shortened
from freeadv_jax.files import AnyPath, local_copy
from freeadv_jax.weights.npy import read_pickled
from freeadv_jax.weights.tensors import read_tensors

# weights_only of older versions could be made to run code.
_OLDEST_TORCH = (2, 6)
# The names under which training code stores a state_dict beside other things.
_WRAPPERS = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "params",
    "ema",
    "model_ema",
    "ema_state_dict",
    "state_dict_ema",
    "last",
    "best",
)


def read_state(path: AnyPath, *, key: str | None = None) -> dict[str, np.ndarray]:
    """Return the tensors of a file by their names, floats of any precision as float32.

    The file is safetensors, or what `torch.save` writes of a state_dict, alone or in a dict
    under a usual name or `key`, or the same pickled by `np.save`, or a .npy file of
    `read_pickled`'s network. No code of the file is run. Raise InputError where it cannot
    be read or holds anything else.
    """
    if path.suffix == ".safetensors":
        if key is not None:
            raise InputError(f"key = {key!r}: {path} has no keys, it is safetensors")
        return read_tensors(path)
    if path.suffix == ".npy":
        content = read_pickled(path)
        return _state(path, content, key, np.ndarray, _numbers)
    try:
        import torch
    except ImportError as fault:
        raise InputError(
            f"{path} needs PyTorch, which is not installed: pip install torch, or give "
            "a .safetensors file"
        ) from fault
    if tuple(map(int, torch.__version__.split(".")[:2])) < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        raise InputError(
            f"{path} needs PyTorch {oldest} or newer, this is {torch.__version__}: older "
            "versions can run code of a file (CVE-2025-32434)"
        )
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        with _harmless(torch), local_copy(path) as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as fault:  # PyTorch raises various errors for a damaged file.
        refused = re.search(r"GLOBAL [\w.]+", str(fault))
        reason = refused[0] if refused else type(fault).__name__
        raise InputError(
            f"{path} cannot be read as weights only ({reason}); allowed: what "
            "torch.save writes of a state_dict"
        ) from fault
    return _state(path, content, key, torch.Tensor, _as_numpy)


def _state(path, content, key, tensor, as_numpy):
    """Return {name: array} of the state_dict in `content`."""
    state = _unwrapped(path, content, key, tensor)
    strays = [str(name) for name in state if not isinstance(state[name], tensor)]
    if strays or not all(isinstance(name, str) for name in state):
        raise InputError(
            f"{path} holds more than named tensors: {shortened(strays)}; allowed: a "
            f"state_dict, or a dict with one under {', '.join(_WRAPPERS)} or a given key"
        )
    return {name: as_numpy(path, name, value) for name, value in state.items()}


def _harmless(torch):
    """Let `weights_only` pass arguments and NumPy's numbers, which run no code."""
    scalar, _ = np.float64(0).__reduce__()
    return torch.serialization.safe_globals(
        [
            argparse.Namespace,
            np.dtype,
            (scalar, "numpy.core.multiarray.scalar"),
            (scalar, "numpy._core.multiarray.scalar"),
            *(type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "?")),
        ]
    )


def _unwrapped(path, content, key, tensor):
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a {type(content).__name__}; allowed: a state_dict"
        )
    if key is not None:
        if not isinstance(content.get(key), dict):
            dicts = [str(name) for name in content if isinstance(content[name], dict)]
            raise InputError(
                f"{path} holds no state_dict under {key!r}; dicts in it: "
                f"{shortened(dicts) or 'none'}"
            )
        return content[key]
    found = [
        name
        for name in _WRAPPERS
        if isinstance(content.get(name), dict)
        and (
            not content[name]
            or any(isinstance(value, tensor) for value in content[name].values())
        )
    ]
    if len(found) > 1:
        raise InputError(
            f"{path} holds more than one state_dict: {', '.join(found)}; give the key of "
            "the one that is meant"
        )
    return content[found[0]] if found else content


def _as_numpy(path, name, tensor):
    try:
        if tensor.is_floating_point():
            tensor = tensor.float()  # NumPy has no bfloat16.
        return tensor.detach().numpy()
    except (RuntimeError, TypeError) as fault:
        raise InputError(f"{path}: {name} is no dense tensor") from fault


def _numbers(path, name, array):
    is_float = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
    if not is_float and array.dtype.kind not in "biu":
        raise InputError(f"{path}: {name} is no array of numbers")
    return array.astype(np.float32) if is_float else array
