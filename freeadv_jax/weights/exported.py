"""Models in files: safetensors and a JSON description."""

import math
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
from flax import traverse_util

from freeadv_jax.errors import InputError
from freeadv_jax.files import local_path, partial_path, read_json, write_json
from freeadv_jax.models import build_model
from freeadv_jax.version import __version__
from freeadv_jax.weights.classifier import Classifier, as_classifier
from freeadv_jax.weights.tensors import fitted, read_tensors, write_tensors
from freeadv_jax.weights.torch import variables_from_torch

# The description, which an exported folder has in place of a run's record.
EXPORTED = "model.json"
TENSORS = "model.safetensors"
TORCH_MODELS = ("preact-resnet-18", "resnet-50", "resnet-101", "resnet-152")


def import_torch(
    path, *, model: str, num_classes: int, image_shape, mean, std, out, ignore=()
) -> None:
    """Writes the model of a PyTorch state_dict into the new folder `out`.

    `image_shape` is (h, w, c); images in [0, 1] less `mean`, over `std` go into the
    network. Tensors that match a pattern of `ignore` are left out; InputError lists
    those that are unknown, missing or of another shape.
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
    module, shapes = _model_and_shapes(description)
    path = pathlib.Path(path).expanduser()
    tensors = variables_from_torch(path, module.network, shapes, ignore=tuple(ignore))
    write_exported(out, description, tensors)


def load_exported(folder) -> Classifier:
    """The model of a folder that was written here; InputError where there is none."""
    folder = pathlib.Path(folder).expanduser()
    path = folder / EXPORTED
    if not path.is_file():
        raise InputError(f"{folder} holds no exported model: there is no {path}")
    description = read_json(path)
    try:
        model, shapes = _model_and_shapes(description)
    except KeyError as fault:
        raise InputError(f"{path} is damaged: it lacks {fault}") from fault
    except (OverflowError, TypeError, ValueError) as fault:
        reason = str(fault).strip().split("\n")[0]
        raise InputError(f"{path} is damaged: {reason}") from fault
    path = folder / TENSORS
    tensors = fitted(path, read_tensors(path), shapes)
    return as_classifier(
        model,
        traverse_util.unflatten_dict(tensors, sep="/"),
        num_classes=description["num_classes"],
        image_shape=tuple(description["image_shape"]),
    )


def _model_and_shapes(description):
    """The model described, and {path: shape} of its variables."""
    classes, mean, std = (description[name] for name in ("num_classes", "mean", "std"))
    if not isinstance(classes, int) or classes < 1:
        raise InputError(f"num_classes = {classes!r}: must be a number of classes")
    if not all(math.isfinite(x) for x in (*mean, *std)) or min(std, default=0) <= 0:
        raise InputError(f"mean = {mean}, std = {std}: finite, and std above 0")
    image_shape = tuple(description["image_shape"])
    model = build_model(
        description["model"],
        num_classes=classes,
        image_shape=image_shape,
        normalization=description["normalization"],
        mean=tuple(mean),
        std=tuple(std),
        dtype=description["dtype"],
        batch_norm_axis=None,
    )
    variables = jax.eval_shape(
        lambda images: model.init(jax.random.key(0), images, train=False),
        jax.ShapeDtypeStruct((1, *image_shape), jnp.float32),
    )
    flat = traverse_util.flatten_dict(variables, sep="/")
    return model, {path: leaf.shape for path, leaf in flat.items()}


def new_folder(out):
    out = local_path(out).resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists already and is not an empty folder")
    return out


def write_exported(out, description, tensors):
    """All of it or nothing."""
    partial = partial_path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write_tensors(partial / TENSORS, tensors)
        write_json(partial / EXPORTED, description)
        os.rename(partial, out)  # Fails where something came to lie there meanwhile.
    except OSError as fault:
        raise InputError(f"{out} cannot be written: {fault.strerror}") from fault
    finally:
        shutil.rmtree(partial, ignore_errors=True)
