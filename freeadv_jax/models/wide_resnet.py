"""Wide residual networks for small images: the WRN-32-10 of the paper, and WRN-d-k."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.errors import InputError
from freeadv_jax.models.preact_resnet import PreActResNet
from freeadv_jax.models.relu import leaky_relu
from freeadv_jax.models.residual import layers, stages_and_strides


class MadryUnit(nn.Module):
    """Apply two pre-activation 3x3 convolutions, and add a shortcut without weights.

    If the width changes, the shortcut `[b, h, w, c] -> [b, h2, w2, features]` is average
    pooling, then zero channels, half of them on each side. With `activate_shortcut` the
    shortcut begins after the first activation.
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
    """Apply the w32-10 network of Madry et al. 2018, used by the paper: `[b, classes]`.

    Its depth is 6 * units + 2.
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
        conv, normalize = layers(
            train=train,
            epsilon=1e-3,
            dtype=self.dtype,
            batch_norm_axis=self.batch_norm_axis,
        )
        hidden = conv(16, 3)(images)
        for index, (stage, stride) in enumerate(stages_and_strides((self.units,) * 3)):
            hidden = MadryUnit(
                16 * self.widen_factor * 2**stage,
                stride=stride,
                activate_shortcut=index == 0,
                conv=conv,
                normalize=normalize,
            )(hidden)
        hidden = leaky_relu(normalize(hidden))
        pooled = jnp.mean(hidden, axis=(1, 2), dtype=jnp.float32)
        # Uniform within sqrt(3 / width), as in Madry et al.'s code.
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
        return nn.Dense(self.num_classes, kernel_init=init)(pooled)


def WideResNet(*, depth: int, widen_factor: int, **fields: Any) -> PreActResNet:
    """Return WRN-d-k of Zagoruyko & Komodakis 2016, `[b, h, w, c] -> [b, classes]`.

    `fields` are the fields that all networks share: num_classes, dtype, batch_norm_axis.
    Raise InputError if `depth` is not 6n + 4.
    """
    units, remainder = divmod(depth - 4, 6)
    if units < 1 or remainder or widen_factor < 1:
        raise InputError(
            f"wrn-{depth}-{widen_factor}: the depth must be 6n + 4 (10, 16, 22, 28, "
            "...) and the widen factor at least 1"
        )
    features = (16 * widen_factor, 32 * widen_factor, 64 * widen_factor)
    return PreActResNet(
        stem_features=16, features=features, units=(units,) * 3, **fields
    )


# WRN-d-k of Gowal et al. 2020, "Uncovering the limits of adversarial training against
# norm-bounded adversarial examples".
SiLUWideResNet = functools.partial(WideResNet, activation=nn.silu, padding="SAME")

# WRN-34-R of Huang et al. 2021, "Exploring architectural ingredients of adversarially
# robust deep neural networks": a narrower last stage.
WRN34R = functools.partial(
    PreActResNet, stem_features=16, features=(320, 640, 512), units=(5, 5, 5)
)

# WRN-A4 of Huang et al. 2022, "Revisiting residual networks for adversarial robustness".
WRNA4 = functools.partial(
    PreActResNet,
    stem_features=16,
    features=(160, 448, 384),
    units=(27, 28, 13),
    activation=nn.silu,
)
