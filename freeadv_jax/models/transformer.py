"""The layers that ViTs, XCiTs and ConvNeXts share."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.models.conv import Conv

# DeiT's and ConvNeXt's normal distribution, whose cut at 2 lies 100 deviations away.
narrow_init = nn.initializers.normal(0.02)
# PyTorch's default for convolutions: uniform within 1 / sqrt(fan in).
torch_conv_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")

gelu = functools.partial(nn.gelu, approximate=False)


def layer_norm(
    hidden: Float[Array, "*b c"], *, dtype: Any, name: str | None = None
) -> Float[Array, "*b c"]:
    """Return `hidden` after a LayerNorm (Ba et al. 2016) of the calling module.

    Its arithmetic is in float32, the result has type `dtype`.
    """
    layer = nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, name=name)
    return layer(hidden.astype(jnp.float32)).astype(dtype)


def drop_path(
    branch: Float[Array, "b ..."], rate: float, *, train: bool
) -> Float[Array, "b ..."]:
    """Return the residual `branch` with stochastic depth (Huang et al. 2016).

    In training it is 0 for each image with probability `rate`, and divided by 1 - `rate`
    otherwise.
    """
    layer = nn.Dropout(rate, broadcast_dims=tuple(range(1, branch.ndim)))
    return layer(branch, deterministic=not train)


def drop_path_rates(largest: float, units: tuple[int, ...]) -> list[list[float]]:
    """Return a rate for each of the `units` of each stage, rising evenly from 0."""
    last = max(1, sum(units) - 1)
    rates = iter(largest * unit / last for unit in range(sum(units)))
    return [[next(rates) for _ in range(count)] for count in units]


def attend(
    queries: Float[Array, "b q heads d"],
    keys: Float[Array, "b k heads d"],
    values: Float[Array, "b k heads d"],
) -> Float[Array, "b q heads d"]:
    """Return softmax(q k^T / sqrt(d)) v for each head (Vaswani et al. 2017)."""
    scores = jnp.einsum(
        "bqhd,bkhd->bhqk", queries, keys, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(scores / math.sqrt(queries.shape[-1]), axis=-1)
    return jnp.einsum("bhqk,bkhd->bqhd", weights.astype(values.dtype), values)


class Mlp(nn.Module):
    """Apply a dense layer to `4 * c` channels, GELU, and a dense layer back: `[..., c]`."""

    dtype: Any

    @nn.compact
    def __call__(self, hidden: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        channels = hidden.shape[-1]
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=narrow_init)
        hidden = gelu(dense(4 * channels)(hidden))
        return dense(channels)(hidden)


class Patches(nn.Module):
    """Apply a dense layer to each square of `size` pixels: `[b, h / size, w / size, f]`.

    It is a convolution whose windows do not overlap, with a kernel `[size, size, c, f]`.
    As a matrix product it has a fast gradient on a CPU.
    """

    features: int
    size: int
    dtype: Any
    kernel_init: Any = torch_conv_init

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        b, h, w, c = images.shape
        size = self.size
        shape = (size, size, c, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), shape[-1:], jnp.float32)
        squares = images.reshape(b, h // size, size, w // size, size, c)
        outputs = jnp.einsum(
            "bhiwjc,ijcf->bhwf", squares.astype(self.dtype), kernel.astype(self.dtype)
        )
        return outputs + bias.astype(self.dtype)


def convolutional_stem(
    images: Float[Array, "b h w c"],
    widths: tuple[int, ...],
    strides: tuple[int, ...],
    *,
    dtype: Any,
) -> Float[Array, "b h2 w2 f"]:
    """Return `images` after 3x3 convolutions with LayerNorm and GELU.

    Source: Singh et al. 2023, "Revisiting adversarial training for ImageNet". The layers
    are those of the calling module.
    """
    hidden = images
    for width, stride in zip(widths, strides, strict=True):
        hidden = Conv(
            width,
            3,
            stride,
            padding=1,
            use_bias=True,
            dtype=dtype,
            kernel_init=torch_conv_init,
        )(hidden)
        hidden = gelu(layer_norm(hidden, dtype=dtype))
    return hidden
