"""Batch normalisation whose statistics and arithmetic are float32 in every network."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

_DECAY = 0.9
# XLA's CPU backend spreads a sum over the cores where a dimension is longer than this.
_UNDIVIDED = 32


def batch_norm(
    images: Float[Array, "b h w c"],
    *,
    train: bool,
    epsilon: float,
    dtype: Any,
    axis_name: str | None,
) -> Float[Array, "b h w c"]:
    """A BatchNorm of the calling module (Ioffe & Szegedy 2015), averages' decay 0.9.

    `train` takes the batch's statistics, over all devices of the pmapped `axis_name`
    or, where that is None, over each device's own images. Returns `dtype`.
    """
    layer = BatchNorm(epsilon=epsilon, axis_name=axis_name)
    return layer(images.astype(jnp.float32), train=train).astype(dtype)


class BatchNorm(nn.Module):
    """Scale, bias and running averages `[c]`, by the names Flax's BatchNorm gives them.

    Can be differentiated in reverse mode only where `train`.
    """

    epsilon: float
    axis_name: str | None

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        features = images.shape[-1:]
        scale = self.param("scale", nn.initializers.ones_init(), features)
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


# By hand, the backward pass takes the two sums over the images that the gradients of
# bias and scale are anyhow; derived from the forward pass it takes five.
@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalised(images, scale, bias, epsilon, axis_name):
    """Outputs, and the statistics (mean, variance), which pass no gradient on."""
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
    # A difference of two full arrays at the end, or XLA's CPU backend computes it again
    # for every use; see `relu`.
    multiplier = inverse * scale
    of_images = (cotangent - across) * multiplier - normal * (along * multiplier)
    return of_images, of_scale, of_bias


_normalised.defvjp(_forward, _backward)


def _sums(images):
    """[c], over images and pixels."""
    rows = images.reshape(-1, images.shape[-1])
    if jax.default_backend() == "cpu" and max(images.shape[:-1]) <= _UNDIVIDED:
        window = (_UNDIVIDED, 1)
        rows = lax.reduce_window(rows, 0.0, lax.add, window, window, "SAME")
    return rows.sum(axis=0)


def _means(sums, images, axis_name):
    """The sums over `images` as means, over all devices of `axis_name` if given."""
    means = jnp.stack(sums) * (images.shape[-1] / images.size)
    return means if axis_name is None else lax.pmean(means, axis_name)
