"""Networks by name, each with its input normalisation inside."""

import functools
import re
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from freeadv_jax.errors import InputError, require_choice, unknown_choice
from freeadv_jax.models.convnext import (
    ConvNeXtAtto,
    ConvNeXtB,
    ConvNeXtL,
    ConvNeXtS,
    ConvNeXtT,
    ConvStemConvNeXtB,
    ConvStemConvNeXtL,
    ConvStemConvNeXtS,
    ConvStemConvNeXtT,
)
from freeadv_jax.models.deepmind_cnn import DeepMindCNN
from freeadv_jax.models.normalized import NormalizedNetwork
from freeadv_jax.models.preact_resnet import PreActResNet18, SiLUPreActResNet18
from freeadv_jax.models.resnet import (
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    WideResNet50x2,
)
from freeadv_jax.models.small_cnn import SmallCNN
from freeadv_jax.models.vit import ViTB, ViTS, ViTTi
from freeadv_jax.models.wide_resnet import (
    WRN34R,
    WRNA4,
    MadryWideResNet,
    SiLUWideResNet,
    WideResNet,
)
from freeadv_jax.models.xcit import (
    CIFARXCiTL12,
    CIFARXCiTM12,
    CIFARXCiTS12,
    XCiTL12,
    XCiTM12,
    XCiTS12,
    XCiTS12P8,
)

NETWORKS = {
    "wrn-32-10-madry": MadryWideResNet,
    "wrn-<depth>-<widen factor>": WideResNet,
    "wrn-<depth>-<widen factor>-silu": SiLUWideResNet,
    "wrn-<depth>-<widen factor>-denoise": functools.partial(WideResNet, denoising=True),
    "wrn-34-r": WRN34R,
    "wrn-a4": WRNA4,
    "preact-resnet-18": PreActResNet18,
    "preact-resnet-18-input": functools.partial(PreActResNet18, projected="input"),
    "preact-resnet-18-no-norm": functools.partial(PreActResNet18, final_norm=False),
    "preact-resnet-18-input-no-norm": functools.partial(
        PreActResNet18, projected="input", final_norm=False
    ),
    "preact-resnet-18-silu": SiLUPreActResNet18,
    "cifar-resnet-18": functools.partial(ResNet18, stem="cifar"),
    "cifar-resnet-34": functools.partial(ResNet34, stem="cifar"),
    "cifar-resnet-50": functools.partial(ResNet50, stem="cifar"),
    "resnet-18": ResNet18,
    "resnet-34": ResNet34,
    "resnet-50": ResNet50,
    "resnet-101": ResNet101,
    "resnet-152": ResNet152,
    "wide-resnet-50-2": WideResNet50x2,
    "convnext-t": ConvNeXtT,
    "convnext-s": ConvNeXtS,
    "convnext-b": ConvNeXtB,
    "convnext-l": ConvNeXtL,
    "convnext-t-cvst": ConvStemConvNeXtT,
    "convnext-s-cvst": ConvStemConvNeXtS,
    "convnext-b-cvst": ConvStemConvNeXtB,
    "convnext-l-cvst": ConvStemConvNeXtL,
    "cifar-convnext-atto": functools.partial(ConvNeXtAtto, patch=2),
    "vit-s": ViTS,
    "vit-b": ViTB,
    "vit-s-cvst": functools.partial(ViTS, stem="convolutions"),
    "vit-b-cvst": functools.partial(ViTB, stem="convolutions"),
    "deit-s": ViTS,
    "deit-b": ViTB,
    "cifar-vit-ti": functools.partial(ViTTi, patch=4),
    "xcit-s12": XCiTS12,
    "xcit-s12-p8": XCiTS12P8,
    "xcit-m12": XCiTM12,
    "xcit-l12": XCiTL12,
    "cifar-xcit-s12": CIFARXCiTS12,
    "cifar-xcit-m12": CIFARXCiTM12,
    "cifar-xcit-l12": CIFARXCiTL12,
    "cifar-resnet-18-denoise": functools.partial(
        ResNet18, stem="cifar", denoising=True
    ),
    "resnet-50-denoise": functools.partial(ResNet50, denoising=True),
    "resnet-101-denoise": functools.partial(ResNet101, denoising=True),
    "resnet-152-denoise": functools.partial(ResNet152, denoising=True),
    "small-cnn": functools.partial(SmallCNN, batch_norm=False),
    "small-cnn-bn": functools.partial(SmallCNN, batch_norm=True),
    "dm-small": functools.partial(DeepMindCNN, size="small"),
    "dm-medium": functools.partial(DeepMindCNN, size="medium"),
    "dm-large": functools.partial(DeepMindCNN, size="large"),
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
NORMALIZATIONS = ("per_image", "mean_std")
# By what the sides of the images must be divisible, and their least size, for the networks
# whose names begin so; the first of the rows counts.
_SIDES = {
    "cifar-resnet": (1, 8),
    "cifar-convnext": (16, 16),
    "resnet": (1, 32),
    "wide-resnet": (1, 32),
    "preact": (8, 8),
    "convnext": (32, 32),
    "xcit-s12-p8": (8, 8),
    "vit": (16, 16),
    "deit": (16, 16),
    "xcit": (16, 16),
    "dm-small": (1, 10),
    "dm": (1, 16),
    "": (4, 4),
}


def build_model(
    name: str,
    *,
    num_classes: int,
    image_shape: tuple[int, ...],
    normalization: str = "mean_std",
    mean: tuple[float, ...] = (0.0,),
    std: tuple[float, ...] = (1.0,),
    dtype: str = "float32",
    batch_norm_axis: str | None = None,
    remat: bool = False,
    drop_path: float = 0.0,
) -> NormalizedNetwork:
    """Return the network `name` for images of `image_shape` (h, w, c) in [0, 1].

    `mean` and `std` are used if `normalization` is 'mean_std'; 'per_image' standardises
    each image by its own. `dtype` is that of the computation, 'float32' or 'bfloat16'.
    `batch_norm_axis` names the pmapped axis over which batch statistics are averaged;
    with None each device uses its own. `NormalizedNetwork` explains `remat`. ConvNeXts,
    ViTs and XCiTs have stochastic depth with the rate `drop_path`. Raise InputError for an
    unknown network, or for one that cannot take these images or settings.
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
        **_stochastic_depth(name, constructor, drop_path),
    )
    return NormalizedNetwork(network, normalization, tuple(mean), tuple(std), remat)


def _constructor(name: str) -> Callable[..., nn.Module]:
    sizes = re.fullmatch(r"wrn-(\d+)-(\d+)(-silu|-denoise)?", name)
    if sizes:
        depth, widen_factor, kind = sizes.groups()
        return functools.partial(
            NETWORKS[f"wrn-<depth>-<widen factor>{kind or ''}"],
            depth=int(depth),
            widen_factor=int(widen_factor),
        )
    if name not in NETWORKS or "<" in name:
        named = [network for network in NETWORKS if "<" not in network]
        raise unknown_choice("model", name, named, shown=NETWORKS)
    return NETWORKS[name]


def _stochastic_depth(name: str, constructor: Callable, rate: float) -> dict:
    """Return the field of stochastic depth, which some networks have, unless it is 0."""
    if not 0 <= rate < 1:
        raise InputError(f"drop_path = {rate}: must be at least 0 and below 1")
    if not rate:
        return {}
    if not hasattr(getattr(constructor, "func", constructor), "drop_path"):
        raise InputError(
            f"drop_path = {rate}: must be 0, because {name} has no stochastic depth"
        )
    return {"drop_path": rate}


def _check_image_shape(name: str, shape: tuple[int, ...]) -> None:
    multiple, smallest = next(
        sides for prefix, sides in _SIDES.items() if name.startswith(prefix)
    )
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
