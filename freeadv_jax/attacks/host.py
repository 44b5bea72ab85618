"""A function of NumPy arrays as a part of a model."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array, Float


def on_host(
    function: Callable[[np.ndarray], np.ndarray], images: Float[Array, "b ..."]
) -> Float[Array, "b ..."]:
    """Return `function(images)`, computed on the host by NumPy or another library.

    `function` maps an array to one of the same shape. The gradient is zero: give it
    another by `bpda`. On a CPU, `jax.pure_callback` can wait for ever: it copies its
    operands by a thread, and with one core that thread runs the model
    (jax-ml/jax#24255). This call reads and writes the arrays in place.
    """
    images = jax.lax.stop_gradient(images)
    like = jax.ShapeDtypeStruct(images.shape, images.dtype)

    def in_place(_, result, images):
        np.asarray(result)[...] = function(np.asarray(images))

    if jax.default_backend() == "cpu":
        return buffer_callback(in_place, like, vmap_method="sequential")(images)
    return jax.pure_callback(
        lambda images: function(np.asarray(images)).astype(like.dtype),
        like,
        images,
        vmap_method="sequential",
    )
