"""Models as files: safetensors and a JSON description."""

import math
import os
import shutil
from collections.abc import Mapping

import jax

from freeadv_jax.devices.processes import is_first
from freeadv_jax.errors import InputError
from freeadv_jax.files import (
    AnyPath,
    BucketPath,
    as_path,
    json_text,
    partial_path,
    write_json,
)
from freeadv_jax.models import build_model
from freeadv_jax.models.imported import OBJECT, PREFIX, import_model, live_model_error
from freeadv_jax.models.interface import Model, as_model
from freeadv_jax.weights.tensors import write_tensors

# An exported folder holds this description in place of a run's record.
EXPORTED = "model.json"
TENSORS = "model.safetensors"


def described_model(
    description: dict, model=None, *, randomized: bool = False
) -> Model:
    """Return the model of a description, or `model` itself in the form of `as_model`.

    A `randomized` model may draw random numbers in evaluation mode.

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
            randomized=randomized,
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


def new_folder(out) -> AnyPath:
    """Return `out` as a path; raise InputError where something lies there."""
    out = as_path(out).resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists already and is not an empty folder")
    return out


def write_exported(
    out: AnyPath,
    description: dict,
    tensors: dict,
    *,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write the folder as a whole, or nothing; raise InputError if it cannot be written.

    `texts` are further files, by their names. The first process writes, for all. In a
    bucket the description is put last, and without it the folder holds no model.
    """
    if not is_first():
        return
    texts = texts or {}
    if isinstance(out, BucketPath):
        _write_objects(out, description, tensors, texts)
        return
    partial = partial_path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write_tensors(partial / TENSORS, tensors)
        write_json(partial / EXPORTED, description)
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        os.rename(partial, out)  # Fails where something was put there meanwhile.
    except OSError as fault:
        raise InputError(f"{out} cannot be written: {fault.strerror}") from fault
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_objects(out, description, tensors, texts):
    """Put the files into a bucket, which has no rename; the description is the last."""
    try:
        write_tensors(out / TENSORS, tensors)
        for name, text in texts.items():
            (out / name).write_text(text)
        (out / EXPORTED).create(json_text(description).encode())
    except OSError as fault:
        raise InputError(f"{out} cannot be written: {fault.strerror}") from fault
