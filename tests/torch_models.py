"""The published PyTorch architectures that are carried in, under their names.

PreActResNet-18 and the CIFAR form of ResNets are named as in kuangliu/pytorch-cifar, ResNets
for ImageNet as in torchvision (version 1.5: the stride on the 3x3), wide ResNets as in
TRADES, the networks with SiLU as in DeepMind's adversarial_robustness, WRN-34-R and WRN-A4
as in RobustBench. Each is a second implementation, written for these tests.
"""

import torch
from torch import nn
from torch.nn import functional


def conv(inputs, outputs, size, stride=1):
    return nn.Conv2d(
        inputs, outputs, size, stride=stride, padding=size // 2, bias=False
    )


def holder(**parts):
    """Return a module that has `parts` as its attributes."""
    module = nn.Module()
    for name, part in parts.items():
        module.add_module(name, part)
    return module


class PreActUnit(nn.Module):
    def __init__(self, inputs, outputs, stride, *, of_input=False, silu=False):
        super().__init__()
        self.of_input = of_input
        self.activation = functional.silu if silu else functional.relu
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride))

    def forward(self, x):
        active = self.activation(self.bn1(x))
        kept = x
        if hasattr(self, "shortcut"):
            kept = self.shortcut(x if self.of_input else active)
        return self.conv2(self.activation(self.bn2(self.conv1(active)))) + kept


class PreActResNet18(nn.Module):
    def __init__(self, num_classes, *, of_input=False, final_norm=True):
        super().__init__()
        self.conv1 = conv(3, 64, 3)
        inputs = 64
        for stage, width in enumerate((64, 128, 256, 512), start=1):
            stride = 1 if stage == 1 else 2
            first = PreActUnit(inputs, width, stride, of_input=of_input)
            layer = nn.Sequential(first, PreActUnit(width, width, 1))
            setattr(self, f"layer{stage}", layer)
            inputs = width
        self.bn = nn.BatchNorm2d(512) if final_norm else None
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x):
        x = self.conv1(x)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        if self.bn is not None:
            x = functional.relu(self.bn(x))
        return self.linear(functional.avg_pool2d(x, x.shape[-1]).flatten(1))


class WideUnit(nn.Module):
    """The unit of TRADES, and of WRN-34-R."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        self.convShortcut = None
        if inputs != outputs:
            self.convShortcut = conv(inputs, outputs, 1, stride)

    def forward(self, x):
        active = functional.relu(self.bn1(x))
        branch = self.conv2(functional.relu(self.bn2(self.conv1(active))))
        return branch + (self.convShortcut(active) if self.convShortcut else x)


def stage_of(unit, inputs, outputs, count, stride):
    """Return `count` units, the first of which changes the shape."""
    first = unit(inputs, outputs, stride)
    return nn.Sequential(first, *(unit(outputs, outputs, 1) for _ in range(count - 1)))


class WideResNet(nn.Module):
    """WRN-d-k; with `copied` it stores its first block twice, as TRADES does."""

    def __init__(self, depth, widen_factor, num_classes, *, copied=False):
        super().__init__()
        units, k = (depth - 4) // 6, widen_factor
        self.conv1 = conv(3, 16, 3)

        def block(inputs, outputs, stride):
            layer = stage_of(WideUnit, inputs, outputs, units, stride)
            return holder(layer=layer)

        self.block1 = block(16, 16 * k, 1)
        if copied:
            self.sub_block1 = block(16, 16 * k, 1)
        self.block2 = block(16 * k, 32 * k, 2)
        self.block3 = block(32 * k, 64 * k, 2)
        self.bn1 = nn.BatchNorm2d(64 * k)
        self.fc = nn.Linear(64 * k, num_classes)

    def forward(self, x):
        x = self.conv1(x)
        for block in (self.block1, self.block2, self.block3):
            x = block.layer(x)
        return self.fc(functional.relu(self.bn1(x)).mean(dim=(2, 3)))


class StagedResNet(nn.Module):
    """WRN-34-R or WRN-A4: stages of any depth and width."""

    def __init__(self, unit, features, units, num_classes, *, norm, silu):
        super().__init__()
        self.activation = functional.silu if silu else functional.relu
        self.norm = norm
        self.stem_conv = conv(3, 16, 3)
        self.blocks = nn.ModuleList()
        inputs = 16
        for stage, (outputs, count) in enumerate(zip(features, units, strict=True)):
            layer = stage_of(unit, inputs, outputs, count, 2 if stage else 1)
            self.blocks.append(holder(layer=layer))
            inputs = outputs
        self.add_module(norm, nn.BatchNorm2d(inputs))
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x):
        x = self.stem_conv(x)
        for block in self.blocks:
            x = block.layer(x)
        x = self.activation(self.get_submodule(self.norm)(x))
        return self.fc(x.mean(dim=(2, 3)))


def wrn_34_r(num_classes):
    """Return WRN-34-R (Huang et al. 2021)."""
    features, units = (320, 640, 512), (5, 5, 5)
    return StagedResNet(WideUnit, features, units, num_classes, norm="bn1", silu=False)


def wrn_a4(num_classes):
    """Return WRN-A4 (Huang et al. 2022)."""

    def unit(inputs, outputs, stride):
        return PreActUnit(inputs, outputs, stride, silu=True)

    features, units = (160, 448, 384), (27, 28, 13)
    return StagedResNet(unit, features, units, num_classes, norm="norm1", silu=True)


def same_padded(x, stride):
    """Return images with the padding of TensorFlow's SAME for a 3x3 kernel."""
    return functional.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))


class SiLUWideUnit(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_0 = nn.Conv2d(inputs, outputs, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_1 = conv(outputs, outputs, 3)
        self.shortcut = None
        if inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        active = functional.silu(self.batchnorm_0(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        branch = self.conv_0(same_padded(active, self.stride))
        return kept + self.conv_1(functional.silu(self.batchnorm_1(branch)))


class SiLUWideResNet(nn.Module):
    def __init__(self, depth, widen_factor, num_classes):
        super().__init__()
        units, k = (depth - 4) // 6, widen_factor
        self.init_conv = conv(3, 16, 3)
        widths = (16, 16 * k, 32 * k, 64 * k)
        stages = []
        for stage in range(3):
            stride = 2 if stage else 1
            layer = stage_of(
                SiLUWideUnit, widths[stage], widths[stage + 1], units, stride
            )
            stages.append(holder(block=layer))
        self.layer = nn.ModuleList(stages)
        self.batchnorm = nn.BatchNorm2d(64 * k)
        self.logits = nn.Linear(64 * k, num_classes)

    def forward(self, x):
        x = self.init_conv(x)
        for stage in self.layer:
            x = stage.block(x)
        return self.logits(functional.silu(self.batchnorm(x)).mean(dim=(2, 3)))


class SiLUPreActUnit(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_2d_1 = nn.Conv2d(inputs, outputs, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.conv_2d_2 = conv(outputs, outputs, 3)
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 3, stride, bias=False)

    def forward(self, x):
        active = functional.silu(self.batchnorm_0(x))
        kept = x
        if hasattr(self, "shortcut"):
            kept = self.shortcut(same_padded(x, self.stride))
        branch = self.conv_2d_1(same_padded(active, self.stride))
        return kept + self.conv_2d_2(functional.silu(self.batchnorm_1(branch)))


class SiLUPreActResNet18(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv_2d = conv(3, 64, 3)
        inputs = 64
        for stage, width in enumerate((64, 128, 256, 512)):
            layer = stage_of(SiLUPreActUnit, inputs, width, 2, 2 if stage else 1)
            setattr(self, f"layer_{stage}", layer)
            inputs = width
        self.batchnorm = nn.BatchNorm2d(512)
        self.logits = nn.Linear(512, num_classes)

    def forward(self, x):
        x = self.conv_2d(x)
        for stage in range(4):
            x = getattr(self, f"layer_{stage}")(x)
        return self.logits(functional.silu(self.batchnorm(x)).mean(dim=(2, 3)))


class Block(nn.Module):
    """A basic block (3x3, 3x3) or a bottleneck (1x1, 3x3, 1x1) of a ResNet."""

    def __init__(self, inputs, width, stride, *, bottleneck, widen_factor, shortcut):
        super().__init__()
        inner = widen_factor * width
        outputs = 4 * width if bottleneck else width
        sizes = (1, 3, 1) if bottleneck else (3, 3)
        widths = (inputs, *(inner,) * (len(sizes) - 1), outputs)
        strided = sizes.index(3)
        self.count = len(sizes)
        for i, size in enumerate(sizes):
            layer = conv(widths[i], widths[i + 1], size, stride if i == strided else 1)
            setattr(self, f"conv{i + 1}", layer)
            setattr(self, f"bn{i + 1}", nn.BatchNorm2d(widths[i + 1]))
        self.projection = shortcut if stride > 1 or inputs != outputs else None
        if self.projection:
            layer = nn.Sequential(
                conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )
            self.add_module(shortcut, layer)

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = functional.relu(y) if i < self.count else y
        kept = self.get_submodule(self.projection)(x) if self.projection else x
        return functional.relu(y + kept)


class ResNet(nn.Module):
    """A ResNet for ImageNet as torchvision names it, or for CIFAR as kuangliu does."""

    def __init__(
        self, units, num_classes, *, bottleneck=True, widen_factor=1, cifar=False
    ):
        super().__init__()
        self.cifar = cifar
        self.conv1 = conv(3, 64, 3) if cifar else conv(3, 64, 7, 2)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, count in enumerate(units, start=1):
            width = 64 * 2 ** (stage - 1)
            outputs = 4 * width if bottleneck else width
            layer = []
            for unit in range(count):
                layer.append(
                    Block(
                        inputs,
                        width,
                        2 if stage > 1 and unit == 0 else 1,
                        bottleneck=bottleneck,
                        widen_factor=widen_factor,
                        shortcut="shortcut" if cifar else "downsample",
                    )
                )
                inputs = outputs
            setattr(self, f"layer{stage}", nn.Sequential(*layer))
        self.head = "linear" if cifar else "fc"
        self.add_module(self.head, nn.Linear(inputs, num_classes))

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        if not self.cifar:
            x = functional.max_pool2d(x, 3, stride=2, padding=1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.get_submodule(self.head)(x.mean(dim=(2, 3)))


class Normalized(nn.Module):
    """A network behind a normalisation whose buffers are in the state_dict."""

    def __init__(self, network, mean, std):
        super().__init__()
        self.normalize = nn.Module()
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(values).view(1, -1, 1, 1)
            self.normalize.register_buffer(name, buffer)
        self.model = network

    def forward(self, x):
        return self.model((x - self.normalize.mean) / self.normalize.std)


# {our name: the network of PyTorch for a number of classes}
PEERS = {
    "wrn-10-2": lambda classes: WideResNet(10, 2, classes),
    "wrn-16-4": lambda classes: WideResNet(16, 4, classes, copied=True),
    "wrn-28-10": lambda classes: WideResNet(28, 10, classes),
    "wrn-10-2-silu": lambda classes: SiLUWideResNet(10, 2, classes),
    "wrn-28-10-silu": lambda classes: SiLUWideResNet(28, 10, classes),
    "wrn-34-r": wrn_34_r,
    "wrn-a4": wrn_a4,
    "preact-resnet-18": PreActResNet18,
    "preact-resnet-18-input": lambda classes: PreActResNet18(classes, of_input=True),
    "preact-resnet-18-no-norm": lambda classes: PreActResNet18(
        classes, final_norm=False
    ),
    "preact-resnet-18-input-no-norm": lambda classes: PreActResNet18(
        classes, of_input=True, final_norm=False
    ),
    "preact-resnet-18-silu": SiLUPreActResNet18,
    "cifar-resnet-18": lambda classes: ResNet(
        (2, 2, 2, 2), classes, bottleneck=False, cifar=True
    ),
    "cifar-resnet-34": lambda classes: ResNet(
        (3, 4, 6, 3), classes, bottleneck=False, cifar=True
    ),
    "cifar-resnet-50": lambda classes: ResNet((3, 4, 6, 3), classes, cifar=True),
    "resnet-18": lambda classes: ResNet((2, 2, 2, 2), classes, bottleneck=False),
    "resnet-34": lambda classes: ResNet((3, 4, 6, 3), classes, bottleneck=False),
    "resnet-50": lambda classes: ResNet((3, 4, 6, 3), classes),
    "wide-resnet-50-2": lambda classes: ResNet((3, 4, 6, 3), classes, widen_factor=2),
}


def randomized(module, seed=0):
    """Return the module in evaluation mode, with tensors that all differ."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor, low, high):
        tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))

    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                draw(layer.weight, 0.4, 0.8)
                draw(layer.bias, -0.2, 0.2)
                draw(layer.running_mean, -0.2, 0.2)
                draw(layer.running_var, 0.5, 1.5)
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                bound = (3 / layer.weight[0].numel()) ** 0.5
                draw(layer.weight, -bound, bound)
                if layer.bias is not None:
                    draw(layer.bias, -0.5, 0.5)
            else:  # LayerNorms, tokens, embeddings, scales and temperatures.
                for name, tensor in layer.named_parameters(recurse=False):
                    embedding = name == "bias" or name.endswith(("token", "embed"))
                    draw(tensor, *((-0.3, 0.3) if embedding else (0.4, 0.8)))
    return module.eval()


def logits(module, images, mean, std):
    """Return the logits of NumPy images [b, h, w, c] in [0, 1]."""
    x = torch.tensor((images - mean) / std, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        return module(x).numpy()
