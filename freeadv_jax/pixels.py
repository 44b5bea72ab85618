"""The one conversion of what users hand over to arrays, and of images to [0, 1]."""

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


# Anything that `as_array` takes.
Numbers = ArrayLike | Convertible | Sequence


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
