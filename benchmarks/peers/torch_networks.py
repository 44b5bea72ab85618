"""Our networks in PyTorch with the weights of a run; layers are named as in Flax."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from freeadv_jax.models.preact_resnet import PreActResNet
from freeadv_jax.models.resnet import ResNet
from freeadv_jax.models.small_cnn import SmallCNN
from freeadv_jax.models.wide_resnet import MadryWideResNet
from freeadv_jax.runs.build import model_of
from freeadv_jax.runs.folder import Run

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# The fields in which the networks here may differ; all others have their defaults.
_FIELDS = (
    "stem_features",
    "features",
    "units",
    "widen_factor",
    "num_classes",
    "hidden",
    "batch_norm",
    "dtype",
    "batch_norm_axis",
)
# The order of Flax's axes [h, w, c, features] and [c, features] in PyTorch.
_AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}


class TorchUnit(nn.Module):
    """The counterpart of models.preact_resnet.PreActUnit."""

    def __init__(self, channels: int, features: int, *, stride: int):
        super().__init__()
        self.BatchNorm_0 = nn.BatchNorm2d(channels)
        self.Conv_0 = _conv3x3(channels, features, stride=stride)
        self.BatchNorm_1 = nn.BatchNorm2d(features)
        self.Conv_1 = _conv3x3(features, features, stride=1)
        self.projection = None
        if stride != 1 or channels != features:
            self.projection = _conv1x1(channels, features, stride=stride)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        active = F.relu(self.BatchNorm_0(images))
        shortcut = images if self.projection is None else self.projection(active)
        branch = self.Conv_0(active)
        return shortcut + self.Conv_1(F.relu(self.BatchNorm_1(branch)))


class TorchPreActResNet(nn.Module):
    """The counterpart of models.preact_resnet.PreActResNet; `[b, c, h, w] -> [b, n]`."""

    def __init__(self, channels: int, network: PreActResNet):
        super().__init__()
        self.Conv_0 = _conv3x3(channels, network.stem_features, stride=1)
        channels = network.stem_features
        self.units = []
        for stage, features in enumerate(network.features):
            for unit in range(network.units[stage]):
                stride = 2 if stage > 0 and unit == 0 else 1
                self.units.append(f"PreActUnit_{len(self.units)}")
                layer = TorchUnit(channels, features, stride=stride)
                self.add_module(self.units[-1], layer)
                channels = features
        self.BatchNorm_0 = nn.BatchNorm2d(channels)
        self.Dense_0 = nn.Linear(channels, network.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.Conv_0(images)
        for name in self.units:
            hidden = self.get_submodule(name)(hidden)
        hidden = F.relu(self.BatchNorm_0(hidden))
        return self.Dense_0(hidden.mean(dim=(2, 3)))


class TorchMadryUnit(nn.Module):
    """The counterpart of models.wide_resnet.MadryUnit."""

    def __init__(self, channels: int, features: int, *, stride: int, first: bool):
        super().__init__()
        self.stride, self.first, self.extra = stride, first, features - channels
        self.BatchNorm_0 = nn.BatchNorm2d(channels, eps=1e-3)
        # TensorFlow's padding with a stride of 2 is at the end only.
        padding = 1 if stride == 1 else 0
        self.Conv_0 = nn.Conv2d(channels, features, 3, stride, padding, bias=False)
        self.BatchNorm_1 = nn.BatchNorm2d(features, eps=1e-3)
        self.Conv_1 = _conv3x3(features, features, stride=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        active = F.leaky_relu(self.BatchNorm_0(images), 0.1)
        padded = active if self.stride == 1 else F.pad(active, (0, 1, 0, 1))
        branch = self.Conv_0(padded)
        branch = self.Conv_1(F.leaky_relu(self.BatchNorm_1(branch), 0.1))
        shortcut = active if self.first else images
        if self.extra:
            sides = (self.extra // 2, self.extra - self.extra // 2)
            shortcut = F.avg_pool2d(shortcut, self.stride)
            shortcut = F.pad(shortcut, (0, 0, 0, 0, *sides))
        return shortcut + branch


class TorchMadryWideResNet(nn.Module):
    """The counterpart of models.wide_resnet.MadryWideResNet."""

    def __init__(self, channels: int, network: MadryWideResNet):
        super().__init__()
        self.Conv_0 = _conv3x3(channels, 16, stride=1)
        channels, self.units = 16, []
        for stage in range(3):
            features = 16 * network.widen_factor * 2**stage
            for unit in range(network.units):
                first = not self.units
                stride = 2 if stage > 0 and unit == 0 else 1
                layer = TorchMadryUnit(channels, features, stride=stride, first=first)
                self.units.append(f"MadryUnit_{len(self.units)}")
                self.add_module(self.units[-1], layer)
                channels = features
        self.BatchNorm_0 = nn.BatchNorm2d(channels, eps=1e-3)
        self.Dense_0 = nn.Linear(channels, network.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.Conv_0(images)
        for name in self.units:
            hidden = self.get_submodule(name)(hidden)
        hidden = F.leaky_relu(self.BatchNorm_0(hidden), 0.1)
        return self.Dense_0(hidden.mean(dim=(2, 3)))


class TorchBottleneck(nn.Module):
    """The counterpart of models.resnet.Bottleneck."""

    def __init__(self, channels: int, width: int, *, stride: int):
        super().__init__()
        self.Conv_0 = _conv1x1(channels, width, stride=1)
        self.BatchNorm_0 = nn.BatchNorm2d(width)
        self.Conv_1 = _conv3x3(width, width, stride=stride)
        self.BatchNorm_1 = nn.BatchNorm2d(width)
        self.Conv_2 = _conv1x1(width, 4 * width, stride=1)
        self.BatchNorm_2 = nn.BatchNorm2d(4 * width)
        self.projection = None
        if stride != 1 or channels != 4 * width:
            self.projection = _conv1x1(channels, 4 * width, stride=stride)
            self.BatchNorm_3 = nn.BatchNorm2d(4 * width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        branch = F.relu(self.BatchNorm_0(self.Conv_0(images)))
        branch = F.relu(self.BatchNorm_1(self.Conv_1(branch)))
        branch = self.BatchNorm_2(self.Conv_2(branch))
        shortcut = images
        if self.projection is not None:
            shortcut = self.BatchNorm_3(self.projection(images))
        return F.relu(branch + shortcut)


class TorchResNet(nn.Module):
    """The counterpart of models.resnet.ResNet."""

    def __init__(self, channels: int, network: ResNet):
        super().__init__()
        self.Conv_0 = nn.Conv2d(channels, 64, 7, 2, padding=3, bias=False)
        self.BatchNorm_0 = nn.BatchNorm2d(64)
        channels, self.units = 64, []
        for stage, units in enumerate(network.units):
            for unit in range(units):
                stride = 2 if stage > 0 and unit == 0 else 1
                layer = TorchBottleneck(channels, 64 * 2**stage, stride=stride)
                self.units.append(f"Bottleneck_{len(self.units)}")
                self.add_module(self.units[-1], layer)
                channels = 4 * 64 * 2**stage
        self.Dense_0 = nn.Linear(channels, network.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.BatchNorm_0(self.Conv_0(images)))
        hidden = F.max_pool2d(hidden, 3, 2, padding=1)
        for name in self.units:
            hidden = self.get_submodule(name)(hidden)
        return self.Dense_0(hidden.mean(dim=(2, 3)))


class TorchSmallCNN(nn.Module):
    """The counterpart of models.small_cnn.SmallCNN, for images of `image_shape`."""

    def __init__(self, image_shape: tuple[int, int, int], network: SmallCNN):
        super().__init__()
        height, width, channels = image_shape
        self.stages = range(len(network.features))
        self.batch_norm = network.batch_norm
        for stage, features in enumerate(network.features):
            bias = not network.batch_norm
            layer = nn.Conv2d(channels, features, 3, padding=1, bias=bias)
            self.add_module(f"Conv_{stage}", layer)
            if network.batch_norm:
                self.add_module(f"BatchNorm_{stage}", nn.BatchNorm2d(features))
            height, width, channels = height // 2, width // 2, features
        self.Dense_0 = nn.Linear(height * width * channels, network.hidden)
        self.Dense_1 = nn.Linear(network.hidden, network.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = images
        for stage in self.stages:
            hidden = self.get_submodule(f"Conv_{stage}")(hidden)
            if self.batch_norm:
                hidden = self.get_submodule(f"BatchNorm_{stage}")(hidden)
            hidden = F.max_pool2d(F.relu(hidden), 2)
        # Flax's order of features; channels_last makes it without a copy.
        hidden = hidden.permute(0, 2, 3, 1).flatten(1)
        return self.Dense_1(F.relu(self.Dense_0(hidden)))


class TorchClassifier(nn.Module):
    """`network` behind the normalisation of models.normalized.NormalizedNetwork.

    It takes images in [0, 1].
    """

    def __init__(self, network: nn.Module, *, normalization: str, mean, std):
        super().__init__()
        self.network = network
        self.normalization = normalization
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.normalization == "mean_std":
            return self.network((images - self.mean) / self.std)
        axes = (1, 2, 3)
        variance, mean = torch.var_mean(images, axes, correction=0, keepdim=True)
        smallest = 1 / images[0].numel()
        return self.network((images - mean) / variance.clamp(min=smallest).sqrt())


def torch_classifier(run: Run, variables) -> TorchClassifier:
    """Return the network of `run` with its `variables`, in float32, for evaluation.

    It takes images f32[b, c, h, w] in [0, 1]. Weights need no gradients;
    `.train().requires_grad_()` makes it a network for training.
    """
    model = model_of(run)
    network = model.network
    plain = type(network)(
        **{name: getattr(network, name) for name in _FIELDS if hasattr(network, name)}
    )
    if network != plain:
        raise ValueError(f"{run.config.model.name} has no counterpart in PyTorch")
    kind, described_by = {
        PreActResNet: (TorchPreActResNet, run.image_shape[-1]),
        MadryWideResNet: (TorchMadryWideResNet, run.image_shape[-1]),
        ResNet: (TorchResNet, run.image_shape[-1]),
        SmallCNN: (TorchSmallCNN, run.image_shape),
    }[type(network)]
    network = kind(described_by, network)
    weights = torch_tensors(variables)
    for name, count in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            weights[name] = count
    network.load_state_dict(weights)
    classifier = TorchClassifier(
        network, normalization=model.normalization, mean=model.mean, std=model.std
    )
    return classifier.eval().requires_grad_(False)


def torch_tensors(variables) -> dict[str, torch.Tensor]:
    """Return copies of weights and running averages, named as in the networks here."""
    return {
        name: tensor
        for kind in ("params", "batch_stats")
        for name, tensor in _flat(variables[kind].get("network", {}))
    }


def _conv1x1(channels, features, *, stride):
    return nn.Conv2d(channels, features, 1, stride, bias=False)


def _conv3x3(channels, features, *, stride):
    return nn.Conv2d(channels, features, 3, stride, padding=1, bias=False)


def _flat(tree, prefix=""):
    """Yield (PyTorch's name, tensor) of every leaf below `tree`."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            array = np.array(value, np.float32)
            array = np.ascontiguousarray(array.transpose(_AXES[array.ndim]))
            yield prefix + _LEAVES[name], torch.from_numpy(array)
