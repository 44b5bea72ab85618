"""ResNets (He et al. 2016a), for ImageNet as in torchvision (v1.5), and for CIFAR."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.models.denoising import Denoising
from freeadv_jax.models.pool import max_pool
from freeadv_jax.models.relu import relu
from freeadv_jax.models.residual import (
    ends_of_stages,
    layers,
    stages_and_strides,
    torch_dense_init,
)


class BasicBlock(nn.Module):
    """Apply 3x3 with the stride, 3x3, and add a shortcut: `[b, h2, w2, features]`."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    normalize: Callable[..., Any]

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        branch = self.conv(self.features, 3, self.stride, padding=1)(images)
        branch = relu(self.normalize(branch))
        branch = self.normalize(self.conv(self.features, 3, padding=1)(branch))
        shortcut = images
        if self.stride != 1 or images.shape[-1] != self.features:
            projection = self.conv(self.features, 1, self.stride, name="projection")
            shortcut = self.normalize(projection(images))
        return relu(branch + shortcut)


class Bottleneck(nn.Module):
    """Apply 1x1, 3x3 with the stride, 1x1, and add a shortcut: `[b, h2, w2, 4 * f]`.

    The inner convolutions have `widen_factor * features` channels.
    """

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    normalize: Callable[..., Any]
    widen_factor: int = 1

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        inner = self.widen_factor * self.features
        branch = relu(self.normalize(self.conv(inner, 1)(images)))
        branch = self.conv(inner, 3, self.stride, padding=1)(branch)
        branch = relu(self.normalize(branch))
        branch = self.normalize(self.conv(4 * self.features, 1)(branch))
        shortcut = images
        if self.stride != 1 or images.shape[-1] != 4 * self.features:
            projection = self.conv(4 * self.features, 1, self.stride, name="projection")
            shortcut = self.normalize(projection(images))
        return relu(branch + shortcut)


class ResNet(nn.Module):
    """Apply a stem and four stages of blocks: `[b, classes]`.

    `units` counts the blocks of each stage, which are bottlenecks (with `widen_factor`)
    or basic blocks. The 'imagenet' stem is a 7x7 convolution with stride 2 and max pooling;
    the 'cifar' stem is a 3x3 convolution. With `denoising` each stage ends with a block of
    `models.denoising`.
    """

    units: tuple[int, int, int, int]
    num_classes: int
    bottleneck: bool = True
    widen_factor: int = 1
    stem: Literal["imagenet", "cifar"] = "imagenet"
    denoising: bool = False
    dtype: Any = jnp.float32
    batch_norm_axis: str | None = None

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
        if self.stem == "imagenet":
            hidden = relu(normalize(conv(64, 7, 2, padding=3)(images)))
            hidden = max_pool(hidden, window=3, stride=2, padding=1)
        else:
            hidden = relu(normalize(conv(64, 3, padding=1)(images)))
        block = BasicBlock
        if self.bottleneck:
            block = functools.partial(Bottleneck, widen_factor=self.widen_factor)
        ends = ends_of_stages(self.units) if self.denoising else ()
        for unit, (stage, stride) in enumerate(stages_and_strides(self.units)):
            hidden = block(64 * 2**stage, stride, conv, normalize)(hidden)
            if unit in ends:
                hidden = Denoising(conv, normalize)(hidden)
        pooled = jnp.mean(hidden, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=torch_dense_init)(pooled)


ResNet18 = functools.partial(ResNet, units=(2, 2, 2, 2), bottleneck=False)
ResNet34 = functools.partial(ResNet, units=(3, 4, 6, 3), bottleneck=False)
ResNet50 = functools.partial(ResNet, units=(3, 4, 6, 3))
ResNet101 = functools.partial(ResNet, units=(3, 4, 23, 3))
ResNet152 = functools.partial(ResNet, units=(3, 8, 36, 3))
# Zagoruyko & Komodakis 2016, as in torchvision.
WideResNet50x2 = functools.partial(ResNet50, widen_factor=2)
