"""ReLU and leaky ReLU, written so that XLA computes them once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LEAK = 0.1


# Both choose between two arrays, instead of taking the maximum of one array and a
# constant. XLA's CPU backend fuses a function of one array into each of its uses, together
# with the normalisation before it, and would compute both again, in strided order, for the
# kernel gradient of the next convolution.


@jax.custom_jvp
def relu(inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return max(inputs, 0), with gradient 0 at 0."""
    return jnp.where(inputs <= 0, jnp.zeros_like(inputs), inputs)  # NaN stays NaN.


@jax.custom_jvp
def leaky_relu(inputs: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return max(inputs, inputs / 10), with gradient 1 at 0 (Madry et al. 2018)."""
    return jnp.where(inputs >= 0, inputs, jnp.asarray(_LEAK, inputs.dtype) * inputs)


# The gradient is selected in float32, the type in which the normalisation before it
# continues. In bfloat16, XLA's GPU backend would write the selected gradient to memory and
# read it for each sum of the normalisation; in float32 it selects again instead.


@relu.defjvp
def _relu_derivative(primals, tangents):
    (inputs,), (tangent,) = primals, tangents
    wide = _at_least_float32(tangent)
    selected = jnp.where(inputs <= 0, jnp.zeros_like(wide), wide)
    return relu(inputs), selected.astype(tangent.dtype)


@leaky_relu.defjvp
def _leaky_relu_derivative(primals, tangents):
    (inputs,), (tangent,) = primals, tangents
    wide = _at_least_float32(tangent)
    selected = jnp.where(inputs >= 0, wide, _LEAK * wide)
    return leaky_relu(inputs), selected.astype(tangent.dtype)


def _at_least_float32(array):
    return array.astype(jnp.float32) if array.dtype.itemsize < 4 else array
