"""Pre-activation residual networks for small images (He et al. 2016b)."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.models.denoising import Denoising
from freeadv_jax.models.relu import relu
from freeadv_jax.models.residual import (
    ends_of_stages,
    layers,
    stages_and_strides,
    torch_dense_init,
)


class PreActUnit(nn.Module):
    """Apply BN, activation, 3x3, BN, activation, 3x3, and add a shortcut.

    The result is `[b, h2, w2, features]`. If the shape changes, the shortcut is a
    convolution with a square kernel of `projection_size` of the `projected` images, the
    activated ones or the input itself. `padding` is that of the convolutions with a
    stride: 1 pixel on each side, as in PyTorch, or 'SAME' as in TensorFlow.
    """

    features: int
    stride: int
    conv: Callable[..., nn.Module]
    normalize: Callable[..., Any]
    activation: Callable[..., Any] = relu
    padding: Literal["SAME"] | int = 1
    projected: Literal["activated", "input"] = "activated"
    projection_size: int = 1

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        active = self.activation(self.normalize(images))
        shortcut = images
        if self.stride != 1 or images.shape[-1] != self.features:
            projection = self.conv(
                self.features, self.projection_size, self.stride, name="projection"
            )
            shortcut = projection(active if self.projected == "activated" else images)
        branch = self.conv(self.features, 3, self.stride, padding=self.padding)(active)
        branch = self.activation(self.normalize(branch))
        branch = self.conv(self.features, 3, padding=1)(branch)
        return branch + shortcut


class PreActResNet(nn.Module):
    """Apply a 3x3 stem, stages of units, BN, activation, mean and dense.

    The logits are `[b, classes]`. Stage i has `units[i]` units of width `features[i]`.
    Every stage but the first halves the sides. Without `final_norm` the last
    normalisation and activation are left out. With `denoising` each stage ends with a
    block of `models.denoising`. The other fields are those of `PreActUnit`.
    """

    stem_features: int
    features: tuple[int, ...]
    units: tuple[int, ...]
    num_classes: int
    activation: Callable[..., Any] = relu
    padding: Literal["SAME"] | int = 1
    projected: Literal["activated", "input"] = "activated"
    projection_size: int = 1
    final_norm: bool = True
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
        unit = functools.partial(
            PreActUnit,
            conv=conv,
            normalize=normalize,
            activation=self.activation,
            padding=self.padding,
            projected=self.projected,
            projection_size=self.projection_size,
        )
        hidden = conv(self.stem_features, 3, padding=1)(images)
        ends = ends_of_stages(self.units) if self.denoising else ()
        for index, (stage, stride) in enumerate(stages_and_strides(self.units)):
            hidden = unit(self.features[stage], stride)(hidden)
            if index in ends:
                hidden = Denoising(conv, normalize)(hidden)
        if self.final_norm:
            hidden = self.activation(normalize(hidden))
        pooled = jnp.mean(hidden, axis=(1, 2), dtype=jnp.float32)
        return nn.Dense(self.num_classes, kernel_init=torch_dense_init)(pooled)


# The PreActResNet-18 of kuangliu/pytorch-cifar. Code of "Fast is better than free" (Wong
# et al. 2020) and of later papers projects the input instead of the activated images, or
# leaves out the last normalisation, or both.
PreActResNet18 = functools.partial(
    PreActResNet, stem_features=64, features=(64, 128, 256, 512), units=(2, 2, 2, 2)
)

# The ResNet-18 of Rebuffi et al. 2021, "Fixing data augmentation to improve adversarial
# robustness".
SiLUPreActResNet18 = functools.partial(
    PreActResNet18,
    activation=nn.silu,
    padding="SAME",
    projected="input",
    projection_size=3,
)
