"""Vision transformers (Dosovitskiy et al. 2021), DeiT's form (Touvron et al. 2021a).

DeiTs are the same networks, trained in another way.
"""

import functools
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.models.conv import Conv
from freeadv_jax.models.transformer import (
    Mlp,
    Patches,
    attend,
    convolutional_stem,
    drop_path,
    drop_path_rates,
    layer_norm,
    narrow_init,
    torch_conv_init,
)


class Attention(nn.Module):
    """Apply self-attention of several heads (Vaswani et al. 2017): `[b, n, c]`."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        b, n, c = tokens.shape
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=narrow_init)
        joint = dense(3 * c)(tokens).reshape(b, n, 3, self.heads, c // self.heads)
        mixed = attend(joint[:, :, 0], joint[:, :, 1], joint[:, :, 2])
        return dense(c)(mixed.reshape(b, n, c))


class TransformerBlock(nn.Module):
    """Add attention, then an MLP, each after a LayerNorm: `[b, n, c]`.

    `drop_path` is the probability with which an image goes past either in training.
    """

    heads: int
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n c"], *, train: bool
    ) -> Float[Array, "b n c"]:
        for layer in (Attention(self.heads, self.dtype), Mlp(self.dtype)):
            branch = layer(layer_norm(tokens, dtype=self.dtype))
            tokens = tokens + drop_path(branch, self.drop_path, train=train)
        return tokens


class VisionTransformer(nn.Module):
    """Apply a stem, `depth` blocks, LayerNorm and dense to the class token: `[b, classes]`.

    The stem makes a token of each square of `patch` pixels: 'patches' is one
    convolution, 'convolutions' is `convolutional_stem` with stride 2 from 48 channels up,
    then 1x1 (Singh et al. 2023). The position embeddings fit images of one size only.
    `drop_path` is the rate of stochastic depth in the last block, from 0 in the first.
    There is no BatchNorm, so that `batch_norm_axis` has no effect.
    """

    features: int
    heads: int
    num_classes: int
    depth: int = 12
    patch: int = 16
    stem: Literal["patches", "convolutions"] = "patches"
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    batch_norm_axis: str | None = None

    @property
    def units(self) -> tuple[int]:
        """The number of blocks, which are one stage."""
        return (self.depth,)

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b classes"]:
        hidden = self._stem(images)
        b, h, w, c = hidden.shape
        nearly_zero = nn.initializers.normal(1e-6)
        first = self.param("cls_token", nearly_zero, (1, 1, c), jnp.float32)
        shape = (1, 1 + h * w, c)
        positions = self.param("pos_embed", narrow_init, shape, jnp.float32)
        first = jnp.broadcast_to(first.astype(self.dtype), (b, 1, c))
        tokens = jnp.concatenate([first, hidden.reshape(b, h * w, c)], axis=1)
        tokens = tokens + positions.astype(self.dtype)
        for rate in drop_path_rates(self.drop_path, self.units)[0]:
            block = TransformerBlock(self.heads, rate, self.dtype)
            tokens = block(tokens, train=train)
        head = layer_norm(tokens[:, 0], dtype=jnp.float32, name="norm")
        return nn.Dense(self.num_classes, kernel_init=narrow_init)(head)

    def _stem(self, images):
        if self.stem == "patches":
            return Patches(self.features, self.patch, self.dtype)(images)
        halvings = self.patch.bit_length() - 1
        widths = tuple(48 * 2**halving for halving in range(halvings))
        hidden = convolutional_stem(images, widths, (2,) * halvings, dtype=self.dtype)
        return Conv(
            self.features,
            1,
            use_bias=True,
            dtype=self.dtype,
            kernel_init=torch_conv_init,
        )(hidden)


ViTTi = functools.partial(VisionTransformer, features=192, heads=3)
ViTS = functools.partial(VisionTransformer, features=384, heads=6)
ViTB = functools.partial(VisionTransformer, features=768, heads=12)
