"""ConvNeXts (Liu et al. 2022), and those with the convolutional stem of Singh et al. 2023."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.models.depthwise import DepthwiseConv
from freeadv_jax.models.transformer import (
    Mlp,
    Patches,
    convolutional_stem,
    drop_path,
    drop_path_rates,
    layer_norm,
    narrow_init,
)


class ConvNeXtBlock(nn.Module):
    """Add a depthwise 7x7 convolution, LayerNorm and MLP, scaled: `[b, h, w, c]`.

    `drop_path` is the probability with which an image goes past them in training.
    """

    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b h w c"]:
        branch = DepthwiseConv(7, self.dtype, narrow_init)(images)
        branch = Mlp(self.dtype)(layer_norm(branch, dtype=self.dtype))
        scale = self.param(
            "gamma", nn.initializers.constant(1e-6), images.shape[-1:], jnp.float32
        )
        branch = branch * scale.astype(self.dtype)
        return images + drop_path(branch, self.drop_path, train=train)


class Downsample(nn.Module):
    """Apply LayerNorm and a 2x2 convolution with stride 2: `[b, h / 2, w / 2, features]`."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        normal = layer_norm(images, dtype=self.dtype)
        return Patches(self.features, 2, self.dtype, narrow_init)(normal)


class ConvNeXt(nn.Module):
    """Apply a stem, four stages of blocks, mean, LayerNorm and dense: `[b, classes]`.

    Stage i has `units[i]` blocks of width `features[i]`, and every stage but the first
    halves the sides. The stem is a convolution of squares of `patch` pixels; with
    `stem_widths` it is `convolutional_stem`, two of whose convolutions have stride 2.
    `drop_path` is the rate of stochastic depth in the last block, from 0 in the first.
    There is no BatchNorm, so that `batch_norm_axis` has no effect.
    """

    units: tuple[int, int, int, int]
    features: tuple[int, int, int, int]
    num_classes: int
    patch: int = 4
    stem_widths: tuple[int, ...] = ()
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    batch_norm_axis: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b classes"]:
        if self.stem_widths:
            strides = (2, 2, 1)[: len(self.stem_widths)]
            hidden = convolutional_stem(
                images, self.stem_widths, strides, dtype=self.dtype
            )
        else:
            stem = Patches(self.features[0], self.patch, self.dtype, narrow_init)
            hidden = layer_norm(stem(images), dtype=self.dtype)
        rates = drop_path_rates(self.drop_path, self.units)
        for stage, features in enumerate(self.features):
            if stage > 0:
                hidden = Downsample(features, self.dtype)(hidden)
            for rate in rates[stage]:
                hidden = ConvNeXtBlock(rate, self.dtype)(hidden, train=train)
        pooled = jnp.mean(hidden, axis=(1, 2), dtype=jnp.float32)
        pooled = layer_norm(pooled, dtype=jnp.float32, name="norm")
        return nn.Dense(self.num_classes, kernel_init=narrow_init)(pooled)


ConvNeXtT = functools.partial(
    ConvNeXt, units=(3, 3, 9, 3), features=(96, 192, 384, 768)
)
ConvNeXtS = functools.partial(
    ConvNeXt, units=(3, 3, 27, 3), features=(96, 192, 384, 768)
)
ConvNeXtB = functools.partial(
    ConvNeXt, units=(3, 3, 27, 3), features=(128, 256, 512, 1024)
)
ConvNeXtL = functools.partial(
    ConvNeXt, units=(3, 3, 27, 3), features=(192, 384, 768, 1536)
)
# The smallest of timm's.
ConvNeXtAtto = functools.partial(
    ConvNeXt, units=(2, 2, 6, 2), features=(40, 80, 160, 320)
)

ConvStemConvNeXtT = functools.partial(ConvNeXtT, stem_widths=(48, 96))
ConvStemConvNeXtS = functools.partial(ConvNeXtS, stem_widths=(48, 96))
ConvStemConvNeXtB = functools.partial(ConvNeXtB, stem_widths=(64, 96, 128))
ConvStemConvNeXtL = functools.partial(ConvNeXtL, stem_widths=(96, 144, 192))
