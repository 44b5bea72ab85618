"""ResNet-50, -101 and -152 for ImageNet (He et al. 2016a), as in torchvision (v1.5)."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.models.pool import max_pool
from freeadv_jax.models.relu import relu
from freeadv_jax.models.residual import layers, stages_and_strides, torch_dense_init


class Bottleneck(nn.Module):
    """Apply 1x1, 3x3 with the stride, 1x1, and add a shortcut: `[b, h2, w2, 4 * f]`."""

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    normalize: Callable[..., Any]

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        branch = relu(self.normalize(self.conv(self.features, 1)(images)))
        branch = self.conv(self.features, 3, self.stride, padding=1)(branch)
        branch = relu(self.normalize(branch))
        branch = self.normalize(self.conv(4 * self.features, 1)(branch))
        shortcut = images
        if self.stride != 1 or images.shape[-1] != 4 * self.features:
            projection = self.conv(4 * self.features, 1, self.stride, name="projection")
            shortcut = self.normalize(projection(images))
        return relu(branch + shortcut)


class ResNet(nn.Module):
    """Apply a 7x7 stem, max pooling and four stages of bottlenecks: `[b, classes]`."""

    units: tuple[int, int, int, int]
    num_classes: int
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
        hidden = relu(normalize(conv(64, 7, 2, padding=3)(images)))
        hidden = max_pool(hidden, window=3, stride=2, padding=1)
        for stage, stride in stages_and_strides(self.units):
            hidden = Bottleneck(64 * 2**stage, stride, conv, normalize)(hidden)
        pooled = jnp.mean(hidden, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=torch_dense_init)(pooled)


ResNet50 = functools.partial(ResNet, units=(3, 4, 6, 3))
ResNet101 = functools.partial(ResNet, units=(3, 4, 23, 3))
ResNet152 = functools.partial(ResNet, units=(3, 8, 36, 3))
