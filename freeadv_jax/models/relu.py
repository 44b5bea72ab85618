"""The rectifiers of the networks, in forms that their compilers compute once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LEAK = 0.1


# Both are choices between two arrays, not the maximum of one and a constant: XLA's CPU
# backend fuses a function of one array into each of its uses, and with it the
# normalisation before, which is then computed anew, in strided order, for the kernel
# gradient of the convolution behind.


@jax.custom_jvp
def relu(inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(inputs, 0), with gradient 0 at 0."""
    return jnp.where(inputs <= 0, jnp.zeros_like(inputs), inputs)  # NaN stays NaN.


@jax.custom_jvp
def leaky_relu(inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(inputs, inputs / 10), with gradient 1 at 0 (Madry et al. 2018)."""
    return jnp.where(inputs >= 0, inputs, jnp.asarray(_LEAK, inputs.dtype) * inputs)


# The gradient is chosen in the float32 in which the normalisation before goes on with
# it. In bfloat16 XLA's GPU backend would write the chosen gradient out, and read it again
# for each of the normalisation's sums; so it chooses again where it needs it.


@relu.defjvp
def _relu_derivative(primals, tangents):
    (inputs,), (tangent,) = primals, tangents
    wide = _at_least_float32(tangent)
    chosen = jnp.where(inputs <= 0, jnp.zeros_like(wide), wide)
    return relu(inputs), chosen.astype(tangent.dtype)


@leaky_relu.defjvp
def _leaky_relu_derivative(primals, tangents):
    (inputs,), (tangent,) = primals, tangents
    wide = _at_least_float32(tangent)
    chosen = jnp.where(inputs >= 0, wide, _LEAK * wide)
    return leaky_relu(inputs), chosen.astype(tangent.dtype)


def _at_least_float32(array):
    return array.astype(jnp.float32) if array.dtype.itemsize < 4 else array
