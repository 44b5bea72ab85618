"""The one conversion of images to pixels in [0, 1]."""

import jax
import jax.numpy as jnp
import numpy as np

from freeadv_jax.errors import InputError


def unit_range(images):
    """Return images [..., h, w, c] as float32 pixels in [0, 1].

    uint8 pixels are divided by 255; floats are in [0, 1] already and are only cast. JAX
    arrays in float64, which exist under jax_enable_x64 alone, stay in float64. NumPy
    arrays stay on the host, JAX arrays and tracers on their devices. Raise InputError for
    any other type.
    """
    array = jnp if isinstance(images, jax.Array) else np
    if images.dtype == np.uint8:
        return images.astype(np.float32) / array.float32(255)
    if array is jnp and images.dtype == np.float64:
        return images
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images.astype(np.float32)
    raise InputError(
        f"images of type {images.dtype}: must be uint8, or floats in [0, 1]"
    )
