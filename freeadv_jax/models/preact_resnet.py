"""Pre-activation residual networks for small images (He et al. 2016b)."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.models.relu import relu
from freeadv_jax.models.residual import layers, stages_and_strides, torch_dense_init


class PreActUnit(nn.Module):
    """Apply BN, ReLU, 3x3, BN, ReLU, 3x3, and add a shortcut: `[b, h2, w2, features]`.

    If the shape changes, the shortcut is a 1x1 convolution of the activated input.
    """

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    normalize: Callable[..., Any]

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        active = relu(self.normalize(images))
        shortcut = images
        if self.stride != 1 or images.shape[-1] != self.features:
            shortcut = self.conv(self.features, 1, self.stride, name="projection")(
                active
            )
        branch = self.conv(self.features, 3, self.stride, padding=1)(active)
        branch = relu(self.normalize(branch))
        branch = self.conv(self.features, 3, padding=1)(branch)
        return branch + shortcut


class PreActResNet(nn.Module):
    """Apply a 3x3 stem, stages of units, BN, ReLU, mean and dense: logits `[b, classes]`.

    Stage i has `units` units of width `features[i]`. Every stage but the first halves the
    sides.
    """

    stem_features: int
    features: tuple[int, ...]
    units: int
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
        hidden = conv(self.stem_features, 3, padding=1)(images)
        units = (self.units,) * len(self.features)
        for stage, stride in stages_and_strides(units):
            hidden = PreActUnit(self.features[stage], stride, conv, normalize)(hidden)
        hidden = relu(normalize(hidden))
        pooled = jnp.mean(hidden, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=torch_dense_init)(pooled)


# The PreActResNet-18 of "Fast is better than free" (Wong et al. 2020).
PreActResNet18 = functools.partial(
    PreActResNet, stem_features=64, features=(64, 128, 256, 512), units=2
)
