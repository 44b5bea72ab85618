"""Models as files: safetensors and a JSON description."""

import math
import os
import pathlib
import shutil

import jax

from freeadv_jax.errors import InputError
from freeadv_jax.files import local_path, partial_path, write_json
from freeadv_jax.models import build_model
from freeadv_jax.models.imported import OBJECT, PREFIX, import_model, live_model_error
from freeadv_jax.models.interface import Model, as_model
from freeadv_jax.version import __version__
from freeadv_jax.weights.tensors import write_tensors
from freeadv_jax.weights.torch import variables_from_torch
from freeadv_jax.weights.transfer import flat_variables

# An exported folder holds this description in place of a run's record.
EXPORTED = "model.json"
TENSORS = "model.safetensors"
TORCH_MODELS = ("preact-resnet-18", "resnet-50", "resnet-101", "resnet-152")


def import_torch(
    path, *, model: str, num_classes: int, image_shape, mean, std, out, ignore=()
) -> None:
    """Write the model of a PyTorch state_dict into the new folder `out`.

    `image_shape` is (h, w, c). The network takes (images - mean) / std of images in
    [0, 1]. Tensors whose names match a pattern of `ignore` are left out. Raise InputError
    that lists the tensors which are unknown, missing or of another shape.
    """
    if model not in TORCH_MODELS:
        raise InputError(
            f"model {model!r} has no PyTorch form; allowed: {', '.join(TORCH_MODELS)}"
        )
    out = new_folder(out)
    description = {
        "model": model,
        "num_classes": num_classes,
        "image_shape": list(image_shape),
        "normalization": "mean_std",
        "mean": list(mean),
        "std": list(std),
        "dtype": "float32",
        "threat": None,
        "updates": None,
        "freeadv_jax": __version__,
        "source": "pytorch",
    }
    expected = flat_variables(
        variable_shapes(described_model(description), image_shape)
    )
    path = pathlib.Path(path).expanduser()
    tensors = variables_from_torch(
        path, _our_network(description).network, expected, ignore=tuple(ignore)
    )
    write_exported(out, description, tensors)


def described_model(description: dict, model=None) -> Model:
    """Return the model of a description, or `model` itself in the form of `as_model`.

    Raise InputError, KeyError, OverflowError, TypeError or ValueError for a damaged
    description, and InputError for a model that no description can rebuild.
    """
    classes = description["num_classes"]
    if not isinstance(classes, int) or classes < 1:
        raise InputError(f"num_classes = {classes!r}: must be a number of classes")
    if model is not None:
        return as_model(model)
    name = description["model"]
    if str(name).startswith(OBJECT):
        raise live_model_error(name)
    if str(name).startswith(PREFIX):
        return import_model(
            name,
            description["arguments"],
            num_classes=classes,
            image_shape=tuple(description["image_shape"]),
        )
    return as_model(_our_network(description))


def _our_network(description):
    mean, std = description["mean"], description["std"]
    if not all(math.isfinite(x) for x in (*mean, *std)) or min(std, default=0) <= 0:
        raise InputError(f"mean = {mean}, std = {std}: must be finite, and std above 0")
    return build_model(
        description["model"],
        num_classes=description["num_classes"],
        image_shape=tuple(description["image_shape"]),
        normalization=description["normalization"],
        mean=tuple(mean),
        std=tuple(std),
        dtype=description["dtype"],
        batch_norm_axis=None,
    )


def variable_shapes(model: Model, image_shape: tuple[int, int, int]):
    """Return the tree of a model's variables with shapes and types for arrays."""
    return jax.eval_shape(
        lambda key: model.init(key, tuple(image_shape)), jax.random.key(0)
    )


def new_folder(out) -> pathlib.Path:
    """Return `out` as a path; raise InputError where something lies there."""
    out = local_path(out).resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists already and is not an empty folder")
    return out


def write_exported(out: pathlib.Path, description: dict, tensors: dict) -> None:
    """Write the folder as a whole, or nothing; raise InputError if it cannot be written."""
    partial = partial_path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write_tensors(partial / TENSORS, tensors)
        write_json(partial / EXPORTED, description)
        os.rename(partial, out)  # Fails where something was put there meanwhile.
    except OSError as fault:
        raise InputError(f"{out} cannot be written: {fault.strerror}") from fault
    finally:
        shutil.rmtree(partial, ignore_errors=True)
