"""A small convolutional network for digits and other small grey images."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from freeadv_jax.models.batch_norm import batch_norm
from freeadv_jax.models.conv import Conv
from freeadv_jax.models.relu import relu


class SmallCNN(nn.Module):
    """Stages of 3x3 convolution, ReLU and 2x2 max pooling, then two dense layers.

    The architecture is this project's own. `[b, h, w, c] -> [b, classes]`; the sides
    must be divisible by 2 for each of `features`.
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
    # slower. Nor the maximum along an axis, whose gradient is divided by the number of
    # entries equal to it: computed twice and rounded in two ways, there may be none.
    b, h, w, c = images.shape
    rows = images.reshape(b, h // 2, 2, w, c)
    columns = _larger(rows, axis=2).reshape(b, h // 2, w // 2, 2, c)
    return _larger(columns, axis=3)


def _larger(pairs, *, axis):
    one, other = (lax.index_in_dim(pairs, i, axis, keepdims=False) for i in (0, 1))
    return jnp.where(one < other, other, one)
