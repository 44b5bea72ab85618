"""Batch normalisation with float32 statistics and arithmetic in every network."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_DECAY = 0.9
# XLA's CPU backend divides a sum among the cores if a dimension is longer than this.
_UNDIVIDED = 32


def batch_norm(
    images: Float[Array, "b h w c"],
    *,
    train: bool,
    epsilon: float,
    dtype: Any,
    axis_name: str | None,
    initial_scale: float = 1.0,
) -> Float[Array, "b h w c"]:
    """Return `images` after a BatchNorm (Ioffe & Szegedy 2015) of the calling module.

    With `train` it uses the batch's statistics, averaged over all devices of the pmapped
    `axis_name`, or over each device's own images if that is None, and updates the running
    averages with decay 0.9. Otherwise it uses the running averages. The scale begins at
    `initial_scale`. The result has type `dtype`.
    """
    layer = BatchNorm(epsilon=epsilon, axis_name=axis_name, initial_scale=initial_scale)
    return layer(images.astype(jnp.float32), train=train).astype(dtype)


class BatchNorm(nn.Module):
    """Normalise each channel; variables `[c]` have the names of Flax's BatchNorm.

    With `train` it can be differentiated in reverse mode only.
    """

    epsilon: float
    axis_name: str | None
    initial_scale: float = 1.0

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        features = images.shape[-1:]
        scale = self.param(
            "scale", nn.initializers.constant(self.initial_scale), features
        )
        bias = self.param("bias", nn.initializers.zeros_init(), features)
        averages = (
            self.variable("batch_stats", "mean", jnp.zeros, features),
            self.variable("batch_stats", "var", jnp.ones, features),
        )
        if not train:
            mean, variance = (average.value for average in averages)
            multiplier = lax.rsqrt(variance + self.epsilon) * scale
            return (images - mean) * multiplier + bias
        axis_name = None if self.is_initializing() else self.axis_name
        outputs, statistics = _normalised(images, scale, bias, self.epsilon, axis_name)
        if not self.is_initializing():
            for average, statistic in zip(averages, statistics, strict=True):
                average.value = _DECAY * average.value + (1 - _DECAY) * statistic
        return outputs


# The backward pass is written by hand: it needs two sums over the images, which are the
# gradients of bias and scale anyway. Derived from the forward pass it needs five.
@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalised(images, scale, bias, epsilon, axis_name):
    """Return outputs and statistics (mean, variance); the latter have no gradient."""
    return _forward(images, scale, bias, epsilon, axis_name)[0]


def _forward(images, scale, bias, epsilon, axis_name):
    mean, of_squares = _means(
        (_sums(images), _sums(images * images)), images, axis_name
    )
    variance = jnp.maximum(of_squares - mean * mean, 0)
    inverse = lax.rsqrt(variance + epsilon)
    outputs = (images - mean) * (inverse * scale) + bias
    return (outputs, (mean, variance)), (images, mean, inverse, scale)


def _backward(epsilon, axis_name, residuals, cotangents):
    images, mean, inverse, scale = residuals
    cotangent, _ = cotangents
    normal = (images - mean) * inverse
    of_scale, of_bias = _sums(cotangent * normal), _sums(cotangent)
    along, across = _means((of_scale, of_bias), images, axis_name)
    # The last operation subtracts two full arrays, because XLA's CPU backend would compute
    # anything simpler again for every use; see relu.py.
    multiplier = inverse * scale
    of_images = (cotangent - across) * multiplier - normal * (along * multiplier)
    return of_images, of_scale, of_bias


_normalised.defvjp(_forward, _backward)


def _sums(images):
    """Return the sums `[c]` over images and pixels."""
    rows = images.reshape(-1, images.shape[-1])
    if jax.default_backend() == "cpu" and max(images.shape[:-1]) <= _UNDIVIDED:
        window = (_UNDIVIDED, 1)
        rows = lax.reduce_window(rows, 0.0, lax.add, window, window, "SAME")
    return rows.sum(axis=0)


def _means(sums, images, axis_name):
    """Return the means of `sums` over `images`, and over the devices of `axis_name`."""
    means = jnp.stack(sums) * (images.shape[-1] / images.size)
    return means if axis_name is None else lax.pmean(means, axis_name)
