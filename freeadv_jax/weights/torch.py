"""Weights of PyTorch networks under our names: the only module that knows PyTorch."""

import fnmatch
import pathlib
import re

import jax
import numpy as np

from freeadv_jax.errors import InputError, shortened
from freeadv_jax.models.preact_resnet import PreActResNet
from freeadv_jax.models.resnet import ResNet
from freeadv_jax.weights.tensors import Arrays, fitted, read_tensors

# kuangliu/pytorch-cifar and locuslab/fast_adversarial, with the final BatchNorm.
_PREACT = {"Conv_0": "conv1", "BatchNorm_0": "bn", "Dense_0": "linear"}
_PREACT_UNIT = {
    "BatchNorm_0": "bn1",
    "Conv_0": "conv1",
    "BatchNorm_1": "bn2",
    "Conv_1": "conv2",
    "projection": "shortcut.0",
}
# torchvision.
_RESNET = {"Conv_0": "conv1", "BatchNorm_0": "bn1", "Dense_0": "fc"}
_BOTTLENECK = {
    **{f"Conv_{i}": f"conv{i + 1}" for i in range(3)},
    **{f"BatchNorm_{i}": f"bn{i + 1}" for i in range(3)},
    "projection": "downsample.0",
    "BatchNorm_3": "downsample.1",
}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Kernels are [h, w, c, features] and [c, features] here; PyTorch has the features first.
_AXES = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}

_WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
_PREFIXES = ("module.", "model.")


def variables_from_torch(
    path: pathlib.Path,
    network: PreActResNet | ResNet,
    expected: Arrays,
    *,
    ignore: tuple[str, ...],
) -> dict[str, np.ndarray]:
    """Return the float32 arrays of `network`, by the paths of `expected`.

    `path` holds a state_dict, as safetensors or for torch.load. A prefix of 'module.' and
    'model.' is removed from its names. num_batches_tracked is ignored, and so are names
    that match a pattern of `ignore`. Raise InputError where a tensor is left over or
    missing.
    """
    tensors = _without(ignore, path, _read(path))
    torch_names = _torch_names(network, expected)
    prefix = _prefix(tensors, torch_names.values())
    names = {name: prefix + torch_name for name, torch_name in torch_names.items()}
    transposed = {
        names[name]: jax.ShapeDtypeStruct(
            tuple(array.shape[axis] for axis in np.argsort(_AXES[len(array.shape)])),
            array.dtype,
        )
        for name, array in expected.items()
    }
    tensors = fitted(path, tensors, transposed)
    return {
        name: tensors[names[name]].transpose(_AXES[len(array.shape)])
        for name, array in expected.items()
    }


def _torch_names(network, paths) -> dict[str, str]:
    """Return {path of ours: name in the state_dict}."""
    if isinstance(network, ResNet):
        top, inner, units = _RESNET, _BOTTLENECK, network.units
    else:
        top, inner = _PREACT, _PREACT_UNIT
        units = (network.units,) * len(network.features)
    layers = [
        f"layer{stage}.{unit}"
        for stage, count in enumerate(units, start=1)
        for unit in range(count)
    ]
    names = {}
    for path in paths:
        _, _, *module, leaf = path.split("/")
        if len(module) == 1:
            name = top[module[0]]
        else:
            unit, part = module
            name = f"{layers[int(unit.split('_')[1])]}.{inner[part]}"
        names[path] = f"{name}.{_LEAVES[leaf]}"
    return names


def _without(ignore, path, tensors):
    """Return `tensors` without those that `ignore` and PyTorch's counters name."""
    for pattern in ignore:
        if not fnmatch.filter(tensors, pattern):
            raise InputError(f"{path} holds no tensor {pattern!r} to ignore")
    return {
        name: array
        for name, array in tensors.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in ignore)
        and name.split(".")[-1] != "num_batches_tracked"
    }


def _prefix(names, torch_names):
    """Return the prefix, as DataParallel puts it, under which most `torch_names` are found."""
    prefixes = {"": None}
    for name in names:
        prefix = ""
        while more := next((p for p in _PREFIXES if name.startswith(prefix + p)), None):
            prefix += more
            prefixes[prefix] = None
    return max(
        prefixes,
        key=lambda prefix: sum(prefix + name in names for name in torch_names),
    )


def _read(path):
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        import torch
    except ImportError as fault:
        raise InputError(
            f"{path} needs PyTorch, which is not installed: pip install torch, or give "
            "a .safetensors file"
        ) from fault
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # PyTorch raises various errors for a damaged file.
        refused = re.search(r"GLOBAL [\w.]+", str(fault))
        reason = refused[0] if refused else type(fault).__name__
        raise InputError(
            f"{path} cannot be read as weights only ({reason}); allowed: what "
            "torch.save writes of a state_dict"
        ) from fault
    state = _unwrapped(path, content)
    strays = [str(name) for name in state if not isinstance(state[name], torch.Tensor)]
    if strays or not all(isinstance(name, str) for name in state):
        raise InputError(
            f"{path} holds more than named tensors: {shortened(strays)}; allowed: a "
            f"state_dict, or a dict with one under {', '.join(_WRAPPERS)}"
        )
    return {name: _as_numpy(path, name, tensor) for name, tensor in state.items()}


def _unwrapped(path, content):
    if not isinstance(content, dict):
        raise InputError(
            f"{path} holds a {type(content).__name__}; allowed: a state_dict"
        )
    found = [key for key in _WRAPPERS if isinstance(content.get(key), dict)]
    if len(found) > 1:
        raise InputError(
            f"{path} holds more than one state_dict: {', '.join(found)}; save the one "
            "that is meant"
        )
    return content[found[0]] if found else content


def _as_numpy(path, name, tensor):
    try:
        if tensor.is_floating_point():
            tensor = tensor.float()  # NumPy has no bfloat16.
        return tensor.detach().numpy()
    except (RuntimeError, TypeError) as fault:
        raise InputError(f"{path}: {name} is no dense tensor") from fault
