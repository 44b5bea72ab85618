"""The names under which PyTorch code stores the networks of this package.

A `Layout` is the naming of one code base for a family of networks. `nearest` finds the
layout and the network that fit the tensors of a file best.
"""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from freeadv_jax.errors import InputError, did_you_mean
from freeadv_jax.models import build_model
from freeadv_jax.models.interface import as_model
from freeadv_jax.models.vit import VisionTransformer
from freeadv_jax.weights.tensors import Arrays
from freeadv_jax.weights.transfer import flat_variables

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Kernels are [h, w, c, features] and [c, features] here; PyTorch has the features first.
# Embeddings and temperatures, which have three axes, are the same.
_AXES = {4: (2, 3, 1, 0), 3: (0, 1, 2), 2: (1, 0), 1: (0,)}
_WRN = "wrn-<depth>-<widen factor>"
# No network here has more stages.
_STAGES = 4


@dataclasses.dataclass(frozen=True)
class Layout:
    """The names that one code base gives to the tensors of a family of networks.

    title     whose names they are
    networks  groups of our networks; those of a group have the same names and shapes
    top       {our layer or array outside of the units: its name}, from the stem to the
              last layer
    inner     {our class of units: {our layer or array: its name}}
    unit      the name of a unit, with {stage}, where there are several, and {unit}
    first     the number of the first stage
    unused    a prefix of tensors that the code stores and never uses
    """

    title: str
    networks: tuple[tuple[str, ...], ...]
    top: Mapping[str, str]
    inner: Mapping[str, Mapping[str, str]]
    unit: str
    first: int = 1
    unused: str | None = None

    def knows(self, model: str) -> bool:
        """Return whether the layout has names for our network `model`."""
        return any(
            model == name or re.fullmatch(_sizes_pattern(name), model)
            for name in itertools.chain(*self.networks)
        )

    @property
    def stem(self) -> str:
        """The name of the first layer."""
        return next(iter(self.top.values()))

    @property
    def head(self) -> str:
        """The name of the last layer."""
        return next(reversed(self.top.values()))

    def explains(self, name: str) -> bool:
        """Return whether some network of the layout has a tensor of this name."""
        layer, _, leaf = name.rpartition(".")
        return self._has(name) or (leaf in _LEAVES.values() and self._has(layer))

    def _has(self, name):
        found = self._pattern.fullmatch(name)
        return name in self.top.values() or bool(found and found["part"] in self._parts)

    def candidates(self, tensors: Arrays, prefix: str) -> list[tuple[str, ...]]:
        """Return the groups of networks whose units are nearest to those in `tensors`."""
        units = self._units(name.removeprefix(prefix) for name in tensors)
        groups = [
            _different(
                _with_sizes(name, units, self._width(tensors, prefix)) for name in group
            )
            for group in self.networks
        ]
        distances = [_distance(units, _network(group[0]).units) for group in groups]
        return [
            group
            for group, distance in zip(groups, distances, strict=True)
            if distance == min(distances)
        ]

    def torch_name(self, path: str, units: tuple[int, ...]) -> str:
        """Return the name of the tensor that holds our variable `path`.

        `units` counts the units of each stage of the network.
        """
        _, _, *layers, leaf = path.split("/")
        if top := _name(self.top, layers, leaf):
            return top
        (kind, _, number), *layers = layers[0].rpartition("_"), *layers[1:]
        places = [
            (stage, unit)
            for stage, count in enumerate(units, start=self.first)
            for unit in range(count)
        ]
        stage, unit = places[int(number)]
        layer = self.unit.format(stage=stage, unit=unit)
        return f"{layer}.{_name(self.inner[kind], layers, leaf)}"

    @functools.cached_property
    def _pattern(self):
        unit = re.escape(self.unit)
        for field in ("stage", "unit"):
            unit = unit.replace(rf"\{{{field}\}}", rf"(?P<{field}>\d+)")
        return re.compile(rf"{unit}\.(?P<part>.+)")

    @property
    def _parts(self):
        return {part for layers in self.inner.values() for part in layers.values()}

    def _units(self, names: Iterable[str]) -> list[int]:
        units: dict[int, set[int]] = {}
        for name in names:
            if found := self._pattern.match(name):
                stage = int(found.groupdict().get("stage", self.first)) - self.first
                units.setdefault(stage, set()).add(int(found["unit"]))
        return [len(units.get(stage, ())) for stage in range(_STAGES)]

    def _width(self, tensors, prefix):
        """The channels after the first unit's first convolution; 16 where it is missing."""
        unit = self.unit.format(stage=self.first, unit=0)
        conv = next(iter(self.inner.values())).get("Conv_0")
        name = f"{prefix}{unit}.{conv}.weight"
        return tensors[name].shape[0] if name in tensors and tensors[name].shape else 16


@dataclasses.dataclass(frozen=True)
class Match:
    """A network and the tensors of a file that hold its variables.

    models       our names of the networks that have just these tensors
    layout       whose names the tensors have
    prefix       what stands before each of these names
    names        {path of our variable: name of its tensor}
    expected     {name of a tensor: its shape and type}
    image_shape  (h, w, c) of the images
    num_classes  how many logits there are
    """

    models: tuple[str, ...]
    layout: Layout
    prefix: str
    names: dict[str, str]
    expected: dict[str, jax.ShapeDtypeStruct]
    image_shape: tuple[int, ...]
    num_classes: int

    def agreement(self, tensors: Arrays) -> int:
        """Return how many tensors fit, less those that are missing or do not fit."""
        fitting = sum(
            name in tensors and tensors[name].shape == array.shape
            for name, array in self.expected.items()
        )
        return 2 * fitting - len(self.expected)

    def variables(self, tensors: Arrays) -> dict[str, Any]:
        """Return {path: float32 array} of tensors that fit."""
        return {
            path: np.transpose(tensors[name], _AXES[tensors[name].ndim]).astype(
                np.float32
            )
            for path, name in self.names.items()
        }


def usual_side(model: str) -> int:
    """Return height and width of the images that our network `model` usually takes."""
    return 32 if model.startswith(("cifar-", "preact-", "wrn-")) else 224


def layouts_of(model: str | None) -> list[Layout]:
    """Return the layouts that have names for our network `model`; all for None.

    Raise InputError for a model without a PyTorch form.
    """
    layouts = [layout for layout in LAYOUTS if model is None or layout.knows(model)]
    if not layouts:
        raise InputError(
            f"model {model!r} has no PyTorch form; "
            f"{did_you_mean(model, TORCH_MODELS)}allowed: {', '.join(TORCH_MODELS)}"
        )
    return layouts


def nearest(
    tensors: Arrays,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    image_shape: tuple[int, ...] | None = None,
) -> Match | None:
    """Return the network that fits `tensors` best, or None where no name is known.

    With `model` it is that network, in the layout that fits best. `num_classes` and
    `image_shape` (h, w, c) are read off the tensors where they are not given; height and
    width are the usual ones where tensors do not show them. Raise InputError for a model
    without a PyTorch form.
    """
    found = [(layout, *_prefix(layout, tensors)) for layout in layouts_of(model)]
    most = max(explained for _, _, explained in found)
    if model is None and not most:
        return None
    matches = [
        _match(layout, group, prefix, tensors, num_classes, image_shape)
        for layout, prefix, explained in found
        if explained == most
        for group in ([(model,)] if model else layout.candidates(tensors, prefix))
    ]
    return max(matches, key=lambda match: match.agreement(tensors))


def _match(layout, models, prefix, tensors, num_classes, image_shape):
    def size(name, axis, otherwise):
        shape = getattr(tensors.get(prefix + name), "shape", ())
        return shape[axis] if len(shape) > axis and shape[axis] else otherwise

    model = models[0]
    classes = num_classes or size(f"{layout.head}.weight", 0, 10)
    channels = image_shape[2] if image_shape else size(f"{layout.stem}.weight", 1, 3)
    network = _network(model, classes, channels)
    side = usual_side(model)
    shape = (side, side, channels)
    if isinstance(network, VisionTransformer):
        # Its position embeddings fit images of one size.
        patches = size("pos_embed", 1, 0) - 1
        side = network.patch * math.isqrt(patches) if patches > 0 else side
        shape = image_shape or (side, side, channels)
    shapes = _variable_shapes(model, classes, shape)
    names = {path: prefix + layout.torch_name(path, network.units) for path in shapes}
    return Match(
        models=models,
        layout=layout,
        prefix=prefix,
        names=names,
        expected={
            names[path]: jax.ShapeDtypeStruct(
                tuple(shape[axis] for axis in np.argsort(_AXES[len(shape)])), np.float32
            )
            for path, shape in shapes.items()
        },
        image_shape=image_shape or shape,
        num_classes=classes,
    )


def _prefix(layout, names):
    """Return the prefix with the most names that the layout explains, and their number."""
    stem = f"{layout.stem}.weight"
    prefixes = {name.removesuffix(stem) for name in names if name.endswith(stem)}
    prefixes = {prefix for prefix in prefixes if not prefix or prefix.endswith(".")}

    def explained(prefix):
        return sum(
            name.startswith(prefix) and layout.explains(name.removeprefix(prefix))
            for name in names
        )

    # Where two networks have as many, the shorter prefix is the outer one's.
    best = max(
        sorted(prefixes | {""}),
        key=lambda prefix: (explained(prefix), -prefix.count(".")),
    )
    return best, explained(best)


def _name(names, layers, leaf):
    """Return what `names` calls a layer's variable, or None."""
    layer = "/".join(layers)
    if layer in names:
        return f"{names[layer]}.{_LEAVES[leaf]}"
    return names.get("/".join([*layers, leaf]))


def _sizes_pattern(name):
    return re.escape(name).replace(re.escape("<depth>-<widen factor>"), r"\d+-\d+")


def _with_sizes(name, units, width):
    depth = 6 * max(1, units[0]) + 4
    return name.replace("<depth>-<widen factor>", f"{depth}-{max(1, width // 16)}")


def _distance(some, others):
    pairs = itertools.zip_longest(some, others, fillvalue=0)
    return sum(abs(one - other) for one, other in pairs)


def _different(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of different networks, the first of several names of one."""
    found: dict[Any, str] = {}
    for name in names:
        found.setdefault(_network(name), name)
    return tuple(found.values())


def _network(name, classes=10, channels=3):
    side = usual_side(name)
    shape = (side, side, channels)
    return build_model(name, num_classes=classes, image_shape=shape).network


@functools.lru_cache(maxsize=64)
def _variable_shapes(name, classes, shape) -> dict[str, tuple[int, ...]]:
    """{path: shape} of a network with its normalisation."""
    model = as_model(build_model(name, num_classes=classes, image_shape=shape))
    variables = jax.eval_shape(lambda key: model.init(key, shape), jax.random.key(0))
    return {path: array.shape for path, array in flat_variables(variables).items()}


_PREACT = {
    "BatchNorm_0": "bn1",
    "Conv_0": "conv1",
    "BatchNorm_1": "bn2",
    "Conv_1": "conv2",
}


def _blocks(shortcut):
    """The names in the two blocks of a ResNet, whose shortcut is called `shortcut`."""
    return {
        block: {f"Conv_{i}": f"conv{i + 1}" for i in range(convolutions)}
        | {f"BatchNorm_{i}": f"bn{i + 1}" for i in range(convolutions)}
        | {
            "projection": f"{shortcut}.0",
            f"BatchNorm_{convolutions}": f"{shortcut}.1",
        }
        for block, convolutions in (("BasicBlock", 2), ("Bottleneck", 3))
    }


_MLP = {"Mlp_0/Dense_0": "mlp.fc1", "Mlp_0/Dense_1": "mlp.fc2"}


def _convolutional_stem(name, convolutions):
    """The names in the stem of Singh et al. 2023, which is called `name`."""
    return {f"Conv_{i}": f"{name}.{3 * i}" for i in range(convolutions)} | {
        f"LayerNorm_{i}": f"{name}.{3 * i + 1}" for i in range(convolutions)
    }


def _downsampling(pattern):
    """The names of the layers between stages, by `pattern` with {stage} and {layer}."""
    return {
        f"Downsample_{stage - 1}/{ours}": pattern.format(stage=stage, layer=layer)
        for stage in (1, 2, 3)
        for layer, ours in enumerate(("LayerNorm_0", "Patches_0"))
    }


def _convnext(networks, stem):
    """timm's names of ConvNeXts with a stem."""
    block = {"DepthwiseConv_0": "conv_dw", "LayerNorm_0": "norm", "gamma": "gamma"}
    return Layout(
        title="timm",
        networks=networks,
        top=stem
        | _downsampling("stages.{stage}.downsample.{layer}")
        | {"norm": "head.norm", "Dense_0": "head.fc"},
        inner={"ConvNeXtBlock": block | _MLP},
        unit="stages.{stage}.blocks.{unit}",
        first=0,
    )


_PLAIN_CONVNEXTS = (
    ("convnext-t",),
    ("convnext-s",),
    ("convnext-b",),
    ("convnext-l",),
)
_CONVNEXTS = (
    _convnext(_PLAIN_CONVNEXTS, {"Patches_0": "stem.0", "LayerNorm_0": "stem.1"}),
    _convnext(
        tuple((f"convnext-{size}-cvst",) for size in "tsbl"),
        _convolutional_stem("stem.stem", 3),
    ),
    Layout(
        title="facebookresearch/ConvNeXt",
        networks=_PLAIN_CONVNEXTS,
        top={
            "Patches_0": "downsample_layers.0.0",
            "LayerNorm_0": "downsample_layers.0.1",
        }
        | _downsampling("downsample_layers.{stage}.{layer}")
        | {"norm": "norm", "Dense_0": "head"},
        inner={
            "ConvNeXtBlock": {
                "DepthwiseConv_0": "dwconv",
                "LayerNorm_0": "norm",
                "Mlp_0/Dense_0": "pwconv1",
                "Mlp_0/Dense_1": "pwconv2",
                "gamma": "gamma",
            }
        },
        unit="stages.{stage}.{unit}",
        first=0,
    ),
)


def _vit(networks, stem):
    """timm's names of ViTs with a stem."""
    arrays = {name: name for name in ("cls_token", "pos_embed")}
    block = {
        "LayerNorm_0": "norm1",
        "Attention_0/Dense_0": "attn.qkv",
        "Attention_0/Dense_1": "attn.proj",
        "LayerNorm_1": "norm2",
    }
    return Layout(
        title="timm",
        networks=networks,
        top=stem | arrays | {"norm": "norm", "Dense_0": "head"},
        inner={"TransformerBlock": block | _MLP},
        unit="blocks.{unit}",
    )


_VITS = (
    _vit(
        (("vit-s", "deit-s"), ("vit-b", "deit-b"), ("cifar-vit-ti",)),
        {"Patches_0": "patch_embed.proj"},
    ),
    _vit(
        (("vit-s-cvst",), ("vit-b-cvst",)),
        _convolutional_stem("patch_embed.proj.stem", 4)
        | {"Conv_4": "patch_embed.proj.stem.12"},
    ),
)

_CLASS_ATTENTION = _MLP | {
    "LayerNorm_0": "norm1",
    "Dense_0": "attn.q",
    "Dense_1": "attn.k",
    "Dense_2": "attn.v",
    "Dense_3": "attn.proj",
    "gamma_0": "gamma1",
    "LayerNorm_1": "norm2",
    "gamma_1": "gamma2",
}
_XCIT = Layout(
    title="timm",
    networks=(
        ("xcit-s12", "cifar-xcit-s12"),
        ("xcit-s12-p8",),
        ("xcit-m12", "cifar-xcit-m12"),
        ("xcit-l12", "cifar-xcit-l12"),
    ),
    top={f"Conv_{i}": f"patch_embed.proj.{2 * i}.0" for i in range(4)}
    | {f"BatchNorm_{i}": f"patch_embed.proj.{2 * i}.1" for i in range(4)}
    | {"positions": "pos_embed.token_projection", "cls_token": "cls_token"}
    | {
        f"ClassAttentionBlock_{i}/{ours}": f"cls_attn_blocks.{i}.{theirs}"
        for i in range(2)
        for ours, theirs in _CLASS_ATTENTION.items()
    }
    | {"norm": "norm", "Dense_0": "head"},
    inner={
        "XCiTBlock": _MLP
        | {
            "LayerNorm_0": "norm1",
            "CrossCovarianceAttention_0/Dense_0": "attn.qkv",
            "CrossCovarianceAttention_0/Dense_1": "attn.proj",
            "CrossCovarianceAttention_0/temperature": "attn.temperature",
            "gamma_0": "gamma1",
            # The local interaction comes second, and its names third.
            "LayerNorm_1": "norm3",
            "LocalPatchInteraction_0/DepthwiseConv_0": "local_mp.conv1",
            "LocalPatchInteraction_0/BatchNorm_0": "local_mp.bn",
            "LocalPatchInteraction_0/DepthwiseConv_1": "local_mp.conv2",
            "gamma_1": "gamma3",
            "LayerNorm_2": "norm2",
            "gamma_2": "gamma2",
        }
    },
    unit="blocks.{unit}",
)

LAYOUTS = (
    Layout(
        title="TRADES",
        networks=((_WRN,),),
        top={"Conv_0": "conv1", "BatchNorm_0": "bn1", "Dense_0": "fc"},
        inner={"PreActUnit": _PREACT | {"projection": "convShortcut"}},
        unit="block{stage}.layer.{unit}",
        # A copy of the first block, which the forward pass leaves out.
        unused="sub_block1.",
    ),
    Layout(
        title="DeepMind",
        networks=((f"{_WRN}-silu",),),
        top={"Conv_0": "init_conv", "BatchNorm_0": "batchnorm", "Dense_0": "logits"},
        inner={
            "PreActUnit": {
                "BatchNorm_0": "batchnorm_0",
                "Conv_0": "conv_0",
                "BatchNorm_1": "batchnorm_1",
                "Conv_1": "conv_1",
                "projection": "shortcut",
            }
        },
        unit="layer.{stage}.block.{unit}",
        first=0,
    ),
    Layout(
        title="DeepMind",
        networks=(("preact-resnet-18-silu",),),
        top={"Conv_0": "conv_2d", "BatchNorm_0": "batchnorm", "Dense_0": "logits"},
        inner={
            "PreActUnit": {
                "BatchNorm_0": "batchnorm_0",
                "Conv_0": "conv_2d_1",
                "BatchNorm_1": "batchnorm_1",
                "Conv_1": "conv_2d_2",
                "projection": "shortcut",
            }
        },
        unit="layer_{stage}.{unit}",
        first=0,
    ),
    Layout(
        title="Huang et al. 2021",
        networks=(("wrn-34-r",),),
        top={"Conv_0": "stem_conv", "BatchNorm_0": "bn1", "Dense_0": "fc"},
        inner={"PreActUnit": _PREACT | {"projection": "convShortcut"}},
        unit="blocks.{stage}.layer.{unit}",
        first=0,
    ),
    Layout(
        title="Huang et al. 2022",
        networks=(("wrn-a4",),),
        top={"Conv_0": "stem_conv", "BatchNorm_0": "norm1", "Dense_0": "fc"},
        inner={"PreActUnit": _PREACT | {"projection": "shortcut.0"}},
        unit="blocks.{stage}.layer.{unit}",
        first=0,
    ),
    Layout(
        title="kuangliu/pytorch-cifar",
        networks=(
            ("preact-resnet-18", "preact-resnet-18-input"),
            ("preact-resnet-18-no-norm", "preact-resnet-18-input-no-norm"),
        ),
        top={"Conv_0": "conv1", "BatchNorm_0": "bn", "Dense_0": "linear"},
        inner={"PreActUnit": _PREACT | {"projection": "shortcut.0"}},
        unit="layer{stage}.{unit}",
    ),
    Layout(
        title="kuangliu/pytorch-cifar",
        networks=(("cifar-resnet-18",), ("cifar-resnet-34",), ("cifar-resnet-50",)),
        top={"Conv_0": "conv1", "BatchNorm_0": "bn1", "Dense_0": "linear"},
        inner=_blocks("shortcut"),
        unit="layer{stage}.{unit}",
    ),
    Layout(
        title="torchvision",
        networks=(
            ("resnet-18",),
            ("resnet-34",),
            ("resnet-50",),
            ("resnet-101",),
            ("resnet-152",),
            ("wide-resnet-50-2",),
        ),
        top={"Conv_0": "conv1", "BatchNorm_0": "bn1", "Dense_0": "fc"},
        inner=_blocks("downsample"),
        unit="layer{stage}.{unit}",
    ),
    *_CONVNEXTS,
    *_VITS,
    _XCIT,
)

# Our networks that have a PyTorch form.
TORCH_MODELS = tuple(
    dict.fromkeys(
        name for layout in LAYOUTS for group in layout.networks for name in group
    )
)
