"""Our pre-activation residual networks in PyTorch, with the weights of a run."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from freeadv_jax.models.preact_resnet import PreActResNet
from freeadv_jax.run import Run

_BATCH_NORM_EPSILON = 1e-5

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# From Flax's [h, w, c, features] and [c, features].
_AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}


class TorchUnit(nn.Module):
    """The counterpart of models.preact_resnet.PreActUnit; children named as in Flax."""

    def __init__(self, channels: int, features: int, *, stride: int):
        super().__init__()
        self.BatchNorm_0 = nn.BatchNorm2d(channels, eps=_BATCH_NORM_EPSILON)
        self.Conv_0 = _conv3x3(channels, features, stride=stride)
        self.BatchNorm_1 = nn.BatchNorm2d(features, eps=_BATCH_NORM_EPSILON)
        self.Conv_1 = _conv3x3(features, features, stride=1)
        self.projection = None
        if stride != 1 or channels != features:
            self.projection = nn.Conv2d(channels, features, 1, stride, bias=False)

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
            for unit in range(network.units):
                stride = 2 if stage > 0 and unit == 0 else 1
                self.units.append(f"PreActUnit_{len(self.units)}")
                layer = TorchUnit(channels, features, stride=stride)
                self.add_module(self.units[-1], layer)
                channels = features
        self.BatchNorm_0 = nn.BatchNorm2d(channels, eps=_BATCH_NORM_EPSILON)
        self.Dense_0 = nn.Linear(channels, network.num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.Conv_0(images)
        for name in self.units:
            hidden = self.get_submodule(name)(hidden)
        hidden = F.relu(self.BatchNorm_0(hidden))
        return self.Dense_0(hidden.mean(dim=(2, 3)))


class TorchClassifier(nn.Module):
    """`network` behind models.classifier.Classifier's normalisation, [0, 1] in."""

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
    """The PreActResNet of `run` with its `variables`, for evaluation only, in float32.

    Images are float32 [b, c, h, w] in [0, 1]; no gradient of the weights is kept.
    """
    model = run.model()
    if not isinstance(model.network, PreActResNet):
        raise TypeError(f"{run.config.model.name} is no PreActResNet")
    network = TorchPreActResNet(run.image_shape[-1], model.network)
    weights = dict(_flat(variables["params"]["network"]))
    weights |= dict(_flat(variables["batch_stats"]["network"]))
    for name, count in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            weights[name] = count
    network.load_state_dict(weights)
    classifier = TorchClassifier(
        network, normalization=model.normalization, mean=model.mean, std=model.std
    )
    return classifier.eval().requires_grad_(False)


def _conv3x3(channels, features, *, stride):
    return nn.Conv2d(channels, features, 3, stride, padding=1, bias=False)


def _flat(tree, prefix=""):
    """(PyTorch's name, tensor) of every leaf below `tree`."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            array = np.array(value, np.float32)
            array = np.ascontiguousarray(array.transpose(_AXES[array.ndim]))
            yield prefix + _LEAVES[name], torch.from_numpy(array)
