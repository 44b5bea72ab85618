"""Networks by name, each with its input normalisation inside."""

import functools
import re
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from freeadv_jax.errors import InputError, require_choice, unknown_choice
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
    """Return the network `name` for images of `image_shape` (h, w, c) in [0, 1].

    `mean` and `std` are used if `normalization` is 'mean_std'. `batch_norm_axis` names the
    pmapped axis over which batch statistics are averaged; with None each device uses its
    own. `NormalizedNetwork` explains `remat`. Raise InputError for an unknown network, or
    for one that cannot take these images.
    """
    constructor = _constructor(name)
    _check_image_shape(name, image_shape)
    require_choice("dtype", dtype, DTYPES)
    require_choice("normalization", normalization, NORMALIZATIONS)
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
        named = [network for network in NETWORKS if "<" not in network]
        raise unknown_choice("model", name, named, shown=NETWORKS)
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
        fault = f"must have sides of at least {smallest}"
    elif shape[0] % multiple or shape[1] % multiple:
        fault = f"must have sides divisible by {multiple}"
    else:
        return
    raise InputError(f"image shape for {name} is {tuple(shape)}: {fault}")


def _check_per_channel(field: str, values: tuple[float, ...], channels: int) -> None:
    if len(values) not in (1, channels):
        raise InputError(
            f"{field} is {tuple(values)}: must have 1 number, or one for each of the "
            f"{channels} channels"
        )
