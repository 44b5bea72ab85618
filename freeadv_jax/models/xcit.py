"""Cross-covariance image transformers, XCiT (El-Nouby et al. 2021).

Debenedetti et al. 2022, "A light recipe to train robust vision transformers", train them
adversarially, on CIFAR with a stem of smaller strides.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from freeadv_jax.models.conv import Conv
from freeadv_jax.models.depthwise import DepthwiseConv
from freeadv_jax.models.residual import layers
from freeadv_jax.models.transformer import (
    Mlp,
    attend,
    drop_path,
    gelu,
    layer_norm,
    narrow_init,
    torch_conv_init,
)

# Frequencies of the position encoding in each direction, and the longest of its periods.
_FREQUENCIES, _LONGEST = 32, 10_000


class CrossCovarianceAttention(nn.Module):
    """Mix the channels of each head by their covariance over the tokens: `[b, n, c]`."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        b, n, c = tokens.shape
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=narrow_init)
        temperature = self.param(
            "temperature", nn.initializers.ones_init(), (self.heads, 1, 1), jnp.float32
        )
        joint = dense(3 * c)(tokens).reshape(b, n, 3, self.heads, c // self.heads)
        queries, keys = (_unit(joint[:, :, part]) for part in (0, 1))
        scores = jnp.einsum("bnhq,bnhk->bhqk", queries, keys) * temperature
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        mixed = jnp.einsum("bhqk,bnhk->bnhq", weights, joint[:, :, 2])
        return dense(c)(mixed.reshape(b, n, c))


def _unit(channels):
    """Return each channel of each head with length 1 over the tokens, in float32."""
    channels = channels.astype(jnp.float32)
    squares = jnp.sum(channels**2, axis=1, keepdims=True)
    # The bound is inside the root, whose gradient is infinite at 0.
    return channels * lax.rsqrt(jnp.maximum(squares, 1e-24))


class LocalPatchInteraction(nn.Module):
    """Apply 3x3, GELU, BatchNorm and 3x3 to each channel: `[b, h, w, c]`."""

    normalize: Callable[..., Any]
    dtype: Any

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        conv = functools.partial(DepthwiseConv, 3, self.dtype, torch_conv_init)
        hidden = self.normalize(gelu(conv()(images)))
        return conv()(hidden)


class XCiTBlock(nn.Module):
    """Add cross-covariance attention, local interaction and an MLP: `[b, h, w, c]`.

    `drop_path` is the probability with which an image goes past each in training.
    """

    heads: int
    drop_path: float
    normalize: Callable[..., Any]
    dtype: Any

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        attention = CrossCovarianceAttention(self.heads, self.dtype)
        b, h, w, c = images.shape

        def attended(images):
            return attention(images.reshape(b, h * w, c)).reshape(b, h, w, c)

        local = LocalPatchInteraction(self.normalize, self.dtype)
        for number, layer in enumerate((attended, local, Mlp(self.dtype))):
            branch = layer(layer_norm(images, dtype=self.dtype))
            branch = branch * _scale(self, f"gamma_{number}", c, self.dtype)
            images = images + drop_path(branch, self.drop_path, train=train)
        return images


def _scale(module, name, channels, dtype):
    ones = nn.initializers.ones_init()
    return module.param(name, ones, (channels,), jnp.float32).astype(dtype)


class ClassAttentionBlock(nn.Module):
    """Let the first token attend to all, then apply an MLP to it: `[b, n, c]`.

    Source: Touvron et al. 2021b, "Going deeper with image transformers". As in XCiT's code
    the other tokens are normalised and added too.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        b, _, c = tokens.shape
        dense = functools.partial(
            nn.Dense, c, dtype=self.dtype, kernel_init=narrow_init
        )

        def per_head(tokens):
            return tokens.reshape(b, -1, self.heads, c // self.heads)

        normal = layer_norm(tokens, dtype=self.dtype)
        mixed = attend(
            per_head(dense()(normal[:, :1])),
            per_head(dense()(normal)),
            per_head(dense()(normal)),
        )
        first = dense()(mixed.reshape(b, 1, c))
        branch = jnp.concatenate([first, normal[:, 1:]], axis=1)
        tokens = tokens + branch * _scale(self, "gamma_0", c, self.dtype)
        tokens = layer_norm(tokens, dtype=self.dtype)
        first = Mlp(self.dtype)(tokens[:, :1]) * _scale(self, "gamma_1", c, self.dtype)
        return tokens + jnp.concatenate([first, tokens[:, 1:]], axis=1)


class XCiT(nn.Module):
    """Apply a stem, blocks, two blocks of class attention, LayerNorm and dense.

    The logits are `[b, classes]`. The stem has a 3x3 convolution with BatchNorm for each
    of `strides`, whose widths double up to `features`. `drop_path` is the rate of
    stochastic depth in all blocks.
    """

    features: int
    heads: int
    num_classes: int
    depth: int = 12
    strides: tuple[int, ...] = (2, 2, 2, 2)
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    batch_norm_axis: str | None = None

    @property
    def units(self) -> tuple[int]:
        """The number of blocks before the class attention, which are one stage."""
        return (self.depth,)

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b classes"]:
        conv, normalize = layers(
            train=train,
            epsilon=1e-5,
            dtype=self.dtype,
            batch_norm_axis=self.batch_norm_axis,
        )
        hidden = images
        for halvings, stride in zip(
            reversed(range(len(self.strides))), self.strides, strict=True
        ):
            width = self.features // 2**halvings
            layer = conv(width, 3, stride, padding=1, kernel_init=torch_conv_init)
            hidden = normalize(layer(hidden))
            hidden = gelu(hidden) if halvings else hidden
        b, h, w, c = hidden.shape
        project = Conv(
            c,
            1,
            use_bias=True,
            dtype=self.dtype,
            kernel_init=torch_conv_init,
            name="positions",
        )
        hidden = hidden + project(jnp.asarray(position_encoding(h, w))[None])
        for _ in range(self.depth):
            block = XCiTBlock(self.heads, self.drop_path, normalize, self.dtype)
            hidden = block(hidden, train=train)
        first = self.param("cls_token", narrow_init, (1, 1, c), jnp.float32)
        first = jnp.broadcast_to(first.astype(self.dtype), (b, 1, c))
        tokens = jnp.concatenate([first, hidden.reshape(b, h * w, c)], axis=1)
        for _ in range(2):
            tokens = ClassAttentionBlock(self.heads, self.dtype)(tokens)
        head = layer_norm(tokens[:, 0], dtype=jnp.float32, name="norm")
        return nn.Dense(self.num_classes, kernel_init=narrow_init)(head)


def position_encoding(height: int, width: int) -> Float[np.ndarray, "h w f"]:
    """Return sines and cosines of the row, then of the column, as in XCiT's code.

    Rows and columns are counted from 1 and end at 2 pi.
    """

    def waves(size):
        angle = np.arange(1, size + 1) / (size + 1e-6) * 2 * math.pi
        period = _LONGEST ** (2 * np.arange(_FREQUENCIES // 2) / _FREQUENCIES)
        angles = angle[:, None] / period
        pairs = np.stack([np.sin(angles), np.cos(angles)], axis=-1)
        return pairs.reshape(size, _FREQUENCIES)

    shape = (height, width, _FREQUENCIES)
    rows = np.broadcast_to(waves(height)[:, None], shape)
    columns = np.broadcast_to(waves(width)[None], shape)
    return np.concatenate([rows, columns], axis=-1).astype(np.float32)


XCiTS12 = functools.partial(XCiT, features=384, heads=8)
XCiTM12 = functools.partial(XCiT, features=512, heads=8)
XCiTL12 = functools.partial(XCiT, features=768, heads=16)
# Images become tokens of 4x4 pixels by the weights of 16x16.
_CIFAR = (1, 1, 2, 2)
CIFARXCiTS12 = functools.partial(XCiTS12, strides=_CIFAR)
CIFARXCiTM12 = functools.partial(XCiTM12, strides=_CIFAR)
CIFARXCiTL12 = functools.partial(XCiTL12, strides=_CIFAR)
XCiTS12P8 = functools.partial(XCiTS12, strides=(2, 2, 2))
