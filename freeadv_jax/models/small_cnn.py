"""A small convolutional network for digits and other small gray images."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from freeadv_jax.models.batch_norm import batch_norm
from freeadv_jax.models.conv import Conv
from freeadv_jax.models.relu import relu


class SmallCNN(nn.Module):
    """Apply stages of 3x3 convolution, ReLU and 2x2 max pooling, then two dense layers.

    The logits are `[b, classes]`. There is one stage for each of `features`, and the
    sides of the images must be divisible by 2 that many times. The architecture is this
    project's own.
    """

    num_classes: int
    batch_norm: bool
    features: tuple[int, ...] = (32, 64)
    hidden: int = 128
    dtype: Any = jnp.float32
    batch_norm_axis: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b classes"]:
        hidden = images
        for features in self.features:
            hidden = Conv(
                features,
                3,
                use_bias=not self.batch_norm,
                dtype=self.dtype,
                kernel_init=nn.initializers.lecun_normal(),
            )(hidden)
            if self.batch_norm:
                hidden = batch_norm(
                    hidden,
                    train=train,
                    epsilon=1e-5,
                    dtype=self.dtype,
                    axis_name=self.batch_norm_axis,
                )
            hidden = _halve(relu(hidden))
        hidden = hidden.reshape(hidden.shape[0], -1)
        hidden = relu(nn.Dense(self.hidden, dtype=self.dtype)(hidden))
        return nn.Dense(self.num_classes)(hidden.astype(jnp.float32))


def _halve(images):
    # Not nn.max_pool, whose gradient XLA's CPU backend computes about three times
    # slower. Not the maximum along an axis either: its gradient is divided by the number
    # of entries equal to it, which may be 0, because XLA may compute the entries twice and
    # round them differently.
    b, h, w, c = images.shape
    rows = images.reshape(b, h // 2, 2, w, c)
    columns = _larger(rows, axis=2).reshape(b, h // 2, w // 2, 2, c)
    return _larger(columns, axis=3)


def _larger(pairs, *, axis):
    one, other = (lax.index_in_dim(pairs, i, axis, keepdims=False) for i in (0, 1))
    return jnp.where(one < other, other, one)
