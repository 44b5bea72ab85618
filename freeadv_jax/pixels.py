"""The one conversion of images to pixels in [0, 1]."""

import jax
import jax.numpy as jnp
import numpy as np

from freeadv_jax.errors import InputError


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
