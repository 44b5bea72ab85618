"""timm's networks under our names, also with the stem of Singh et al. 2023."""

import functools
import importlib
import importlib.util

import pytest

# PyTorch forgets operators that nobody holds.
OPERATORS = []


def imported(name):
    """Return the module `name`, which needs torchvision; skip the test without it."""
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"could not find {name}")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        # It was built for another PyTorch, which refuses its compiled operators. The
        # networks use none of them.
        OPERATORS.append(torch.library.Library("torchvision", "DEF"))
        for operator in ("nms", "qnms"):
            signature = f"{operator}(Tensor a, Tensor b, float c) -> Tensor"
            OPERATORS[0].define(signature)
    return importlib.import_module(name)


def convolutional_stem(widths, strides, outputs=None):
    """Return 3x3 convolutions, LayerNorm over the channels and GELU, then 1x1."""
    from torch import nn

    class ChannelNorm(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    layers, inputs = [], 3
    for width, stride in zip(widths, strides, strict=True):
        layers += [
            nn.Conv2d(inputs, width, 3, stride, padding=1),
            ChannelNorm(width, eps=1e-6),
            nn.GELU(),
        ]
        inputs = width
    if outputs:
        layers.append(nn.Conv2d(inputs, outputs, 1))
    holder = nn.Module()
    holder.stem = nn.Sequential(*layers)
    holder.forward = holder.stem.forward
    return holder


def convnext(name, *, stem=None, **fields):
    """Return a function from classes and a side to a ConvNeXt of timm."""

    def make(classes, side):
        model = imported("timm").create_model(name, num_classes=classes, **fields)
        if stem:
            model.stem = convolutional_stem(*stem)
        return model

    return make


def vit(name, *, outputs=None, **fields):
    """Return a function from classes and a side to a ViT; `outputs` of its new stem."""

    def make(classes, side):
        fields_ = {"num_classes": classes, "img_size": side} | fields
        model = imported("timm").create_model(name, **fields_)
        if outputs:
            widths = (48, 96, 192, 384)
            stem = convolutional_stem(widths, (2, 2, 2, 2), outputs)
            model.patch_embed.proj = stem
        return model

    return make


def xcit(name, *, cifar=False, **fields):
    """Return a function from classes and a side to an XCiT, with CIFAR's strides."""

    def make(classes, side):
        fields_ = {"num_classes": classes, "img_size": side} | fields
        model = imported("timm").create_model(name, **fields_)
        if cifar:
            for layer in (0, 2):
                model.patch_embed.proj[layer][0].stride = (1, 1)
        return model

    return make


_small_xcit = functools.partial(xcit, "xcit_small_12_p16_224")
_medium_xcit = functools.partial(xcit, "xcit_medium_24_p16_224", depth=12)
_large_xcit = functools.partial(xcit, "xcit_large_24_p16_224", depth=12)
_narrow, _wide, _widest = (48, 96), (64, 96, 128), (96, 144, 192)

# {our name: function from the number of classes and the images' side to a module}
NETWORKS = {
    "convnext-t": convnext("convnext_tiny"),
    "convnext-s": convnext("convnext_small"),
    "convnext-b": convnext("convnext_base"),
    "convnext-l": convnext("convnext_large"),
    "convnext-t-cvst": convnext("convnext_tiny", stem=(_narrow, (2, 2))),
    "convnext-s-cvst": convnext("convnext_small", stem=(_narrow, (2, 2))),
    "convnext-b-cvst": convnext("convnext_base", stem=(_wide, (2, 2, 1))),
    "convnext-l-cvst": convnext("convnext_large", stem=(_widest, (2, 2, 1))),
    "vit-s": vit("deit_small_patch16_224"),
    "vit-b": vit("vit_base_patch16_224"),
    "vit-s-cvst": vit("deit_small_patch16_224", outputs=384),
    "vit-b-cvst": vit("vit_base_patch16_224", outputs=768),
    "cifar-vit-ti": vit("vit_tiny_patch16_224", patch_size=4),
    "xcit-s12": _small_xcit(),
    "xcit-s12-p8": xcit("xcit_small_12_p8_224"),
    "xcit-m12": _medium_xcit(),
    "xcit-l12": _large_xcit(),
    "cifar-xcit-s12": _small_xcit(cifar=True),
    "cifar-xcit-m12": _medium_xcit(cifar=True),
    "cifar-xcit-l12": _large_xcit(cifar=True),
}
