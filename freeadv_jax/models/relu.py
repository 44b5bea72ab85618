"""The rectifier of every network, in a form that is computed once."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def relu(inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(inputs, 0), with gradient 0 at 0.

    As a choice between two arrays and not the maximum of one and a constant: XLA's CPU
    backend fuses a function of one array into each of its uses, and with it the
    normalisation before, which is then computed anew, in strided order, for the kernel
    gradient of the convolution behind.
    """
    return jnp.where(inputs <= 0, jnp.zeros_like(inputs), inputs)  # NaN stays NaN.
