"""The paper's WRN-32-10 (Madry et al. 2018) and WRN-d-k (Zagoruyko & Komodakis 2016)."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.errors import InputError
from freeadv_jax.models.batch_norm import batch_norm
from freeadv_jax.models.conv import Conv
from freeadv_jax.models.preact_resnet import PreActResNet
from freeadv_jax.models.relu import leaky_relu


class MadryUnit(nn.Module):
    """Two pre-activation 3x3 convolutions plus a shortcut without weights.

    Where the width changes the shortcut `[b, h, w, c] -> [b, h2, w2, features]` is
    average pooling and zero channels, half on each side; with `activate_shortcut` it
    leaves after the first activation.
    """

    features: int
    stride: int
    activate_shortcut: bool
    conv: Callable[..., nn.Module]
    normalize: Callable[..., Any]

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        active = leaky_relu(self.normalize(images))
        branch = self.conv(self.features, 3, self.stride)(active)
        branch = leaky_relu(self.normalize(branch))
        branch = self.conv(self.features, 3)(branch)
        shortcut = active if self.activate_shortcut else images
        extra = self.features - images.shape[-1]
        if extra:
            b, h, w, c = images.shape
            side = self.stride
            # Flax's avg_pool divides by an integer, which strict dtypes refuse.
            tiles = shortcut.reshape(b, h // side, side, w // side, side, c)
            shortcut = jnp.mean(tiles, axis=(2, 4))
            sides = (extra // 2, extra - extra // 2)
            shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), sides))
        return branch + shortcut


class MadryWideResNet(nn.Module):
    """The w32-10 network of Madry et al. 2018, used by the paper.

    `[b, h, w, c] -> [b, classes]`; depth is 6 * units + 2.
    """

    num_classes: int
    units: int = 5
    widen_factor: int = 10
    dtype: Any = jnp.float32
    batch_norm_axis: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b classes"]:
        conv = functools.partial(Conv, dtype=self.dtype)
        normalize = functools.partial(
            batch_norm,
            train=train,
            epsilon=1e-3,
            dtype=self.dtype,
            axis_name=self.batch_norm_axis,
        )
        hidden = conv(16, 3)(images)
        for stage in range(3):
            features = 16 * self.widen_factor * 2**stage
            for unit in range(self.units):
                hidden = MadryUnit(
                    features,
                    stride=2 if stage > 0 and unit == 0 else 1,
                    activate_shortcut=stage == 0 and unit == 0,
                    conv=conv,
                    normalize=normalize,
                )(hidden)
        hidden = leaky_relu(normalize(hidden))
        pooled = jnp.mean(hidden, axis=(1, 2), dtype=jnp.float32)
        # Uniform within sqrt(3 / width).
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        return nn.Dense(self.num_classes, kernel_init=init)(pooled)


def WideResNet(*, depth: int, widen_factor: int, **fields: Any) -> PreActResNet:
    """WRN-d-k of Zagoruyko & Komodakis 2016, `[b, h, w, c] -> [b, classes]`.

    `fields` are those of every network; raises InputError where depth is not 6n + 4.
    """
    units, remainder = divmod(depth - 4, 6)
    if units < 1 or remainder or widen_factor < 1:
        raise InputError(
            f"wrn-{depth}-{widen_factor}: the depth must be 6n + 4 (10, 16, 22, 28, "
            "...) and the widen factor at least 1"
        )
    features = (16 * widen_factor, 32 * widen_factor, 64 * widen_factor)
    return PreActResNet(stem_features=16, features=features, units=units, **fields)
