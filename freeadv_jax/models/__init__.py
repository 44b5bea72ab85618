"""The networks by name, each behind its normalisation."""

import functools
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from freeadv_jax.errors import InputError
from freeadv_jax.models.normalized import NormalizedNetwork
from freeadv_jax.models.preact_resnet import PreActResNet18
from freeadv_jax.models.resnet import ResNet50, ResNet101, ResNet152
from freeadv_jax.models.small_cnn import SmallCNN
from freeadv_jax.models.wide_resnet import MadryWideResNet, WideResNet

NETWORKS = {
    "wrn-32-10-madry": MadryWideResNet,
    "wrn-<depth>-<widen factor>": WideResNet,
    "preact-resnet-18": PreActResNet18,
    "resnet-50": ResNet50,
    "resnet-101": ResNet101,
    "resnet-152": ResNet152,
    "small-cnn": functools.partial(SmallCNN, batch_norm=False),
    "small-cnn-bn": functools.partial(SmallCNN, batch_norm=True),
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
NORMALIZATIONS = ("per_image", "mean_std")


def build_model(
    name: str,
    *,
    num_classes: int,
    image_shape: tuple[int, ...],
    normalization: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: str,
    batch_norm_axis: str | None,
    remat: bool = False,
) -> NormalizedNetwork:
    """The network `name` for images of `image_shape` (h, w, c) in [0, 1].

    `mean` and `std` are read where `normalization` is 'mean_std'; `batch_norm_axis`
    is the pmapped axis over which batch statistics are taken, None for each device's
    own; `remat` as in `NormalizedNetwork`. Raises InputError where the network is unknown or
    cannot take these images.
    """
    constructor = _constructor(name)
    _check_image_shape(name, image_shape)
    _check_choice("dtype", dtype, DTYPES)
    _check_choice("normalization", normalization, NORMALIZATIONS)
    if normalization == "mean_std":
        _check_per_channel("mean", mean, image_shape[2])
        _check_per_channel("std", std, image_shape[2])
    network = constructor(
        num_classes=num_classes,
        dtype=DTYPES[dtype],
        batch_norm_axis=batch_norm_axis,
    )
    return NormalizedNetwork(network, normalization, tuple(mean), tuple(std), remat)


def _constructor(name: str) -> Callable[..., nn.Module]:
    sizes = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if sizes:
        depth, widen_factor = map(int, sizes.groups())
        return functools.partial(
            NETWORKS["wrn-<depth>-<widen factor>"],
            depth=depth,
            widen_factor=widen_factor,
        )
    if name not in NETWORKS or "<" in name:
        raise InputError(f"unknown model {name!r}; allowed: {', '.join(NETWORKS)}")
    return NETWORKS[name]


def _check_image_shape(name: str, shape: tuple[int, ...]) -> None:
    if name.startswith("resnet"):
        multiple, smallest = 1, 32
    elif name.startswith("preact"):
        multiple, smallest = 8, 8
    else:
        multiple, smallest = 4, 4
    if len(shape) != 3 or min(shape) < 1:
        fault = "must be (height, width, channels)"
    elif min(shape[:2]) < smallest:
        fault = f"needs sides of at least {smallest}"
    elif shape[0] % multiple or shape[1] % multiple:
        fault = f"needs sides divisible by {multiple}"
    else:
        return
    raise InputError(f"image shape {tuple(shape)}: {name} {fault}")


def _check_choice(field: str, value: str, allowed: Any) -> None:
    if value not in allowed:
        raise InputError(f"{field} {value!r}; allowed: {', '.join(allowed)}")


def _check_per_channel(field: str, values: tuple[float, ...], channels: int) -> None:
    if len(values) not in (1, channels):
        raise InputError(
            f"{field} {tuple(values)} has {len(values)} numbers; allowed: 1 or one for "
            f"each of the {channels} channels"
        )
