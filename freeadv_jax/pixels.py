"""The one conversion of what users hand over to arrays and images in [0, 1], and their checks."""

import sys
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from freeadv_jax.errors import InputError


@runtime_checkable
class Convertible(Protocol):
    """Turn into an array of NumPy, as the tensors of other libraries do."""

    def __array__(self) -> np.ndarray: ...


# A first axis after the batch no longer than this counts channels, not rows.
_MOST_CHANNELS = 4

# Anything that `as_array` takes.
Numbers = ArrayLike | Convertible | Sequence


def channels_first(shape: tuple[int, ...]) -> bool:
    """Return whether images of this shape are [n, c, h, w] in place of [n, h, w, c]."""
    return shape[1] <= _MOST_CHANNELS < shape[3]


def as_array(values: Numbers):
    """Return numbers of any kind as an array of NumPy or JAX.

    They may be a list, or a tensor of PyTorch on any device, with a gradient or without.
    """
    torch = sys.modules.get("torch")  # Imported by everyone who has a tensor.
    if torch is not None and isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        # NumPy has no bfloat16.
        values = (values.float() if values.is_floating_point() else values).numpy()
    return values if isinstance(values, jax.Array) else np.asarray(values)


def unit_range(images, *, dtype=np.float32):
    """Return images [..., h, w, c] as pixels in [0, 1] of a float `dtype`.

    uint8 pixels are divided by 255; floats are in [0, 1] already and are only cast.
    NumPy arrays stay on the host, JAX arrays and tracers on their devices. Raise
    InputError for any other type.
    """
    if images.dtype == np.uint8:
        largest = 255 if isinstance(images, jax.Array) else np.asarray(255, dtype)
        return images.astype(dtype) / largest
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images.astype(dtype)
    raise InputError(
        f"images of type {images.dtype}: must be uint8, or floats in [0, 1]"
    )


def check_images(images, labels, *, raw: bool = False) -> None:
    """Raise InputError unless `images` [n, h, w, c] and `labels` [n] belong together.

    At least one image is needed. Labels must be integers and images floats in [0, 1];
    `raw` also allows uint8 pixels.
    """
    shape = np.shape(images)
    if len(shape) != 4:
        raise InputError(
            f"images of shape {shape}: must be [n, height, width, channels]"
        )
    if channels_first(shape):
        raise InputError(
            f"images of shape {shape} have the channels first: must be [n, height, width, "
            "channels]; np.moveaxis(images, 1, -1) moves them"
        )
    if not shape[0]:
        raise InputError("there are no images: give at least one")
    if np.shape(labels) != shape[:1]:
        raise InputError(
            f"{shape[0]} images and labels of shape {np.shape(labels)}: must be one "
            "label an image"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels of type {labels.dtype}: must be whole numbers")
    if raw and images.dtype == np.uint8:
        return
    if not jnp.issubdtype(images.dtype, np.floating):
        raise InputError(
            f"images of type {images.dtype}: must be floats in [0, 1]; divide by 255"
        )
    if isinstance(images, jax.core.Tracer):
        return
    pixels = np.asarray(images, np.float32)
    lowest, highest = float(np.min(pixels)), float(np.max(pixels))
    if not (lowest >= 0 and highest <= 1):
        raise InputError(
            f"images range from {lowest:.4g} to {highest:.4g}: must be in [0, 1], "
            "normalisation belongs into the model"
        )


def check_labels(labels, num_classes: int) -> None:
    """Raise InputError unless every label is a class of the model."""
    if isinstance(labels, jax.core.Tracer):
        return
    lowest, highest = int(np.min(labels)), int(np.max(labels))
    if lowest < 0 or highest >= num_classes:
        raise InputError(
            f"labels range from {lowest} to {highest}: the model has {num_classes} "
            f"classes, 0 to {num_classes - 1}"
        )
