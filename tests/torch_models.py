"""The two published PyTorch architectures that are carried in, under their names.

PreActResNet-18 as kuangliu/pytorch-cifar and locuslab/fast_adversarial name it, ResNets
as torchvision does (version 1.5: the stride on the 3x3).
"""

import torch
from torch import nn
from torch.nn import functional


def conv(inputs, outputs, size, stride=1):
    return nn.Conv2d(
        inputs, outputs, size, stride=stride, padding=size // 2, bias=False
    )


class PreActUnit(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs, 3)
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv(inputs, outputs, 1, stride))

    def forward(self, x):
        active = functional.relu(self.bn1(x))
        kept = self.shortcut(active) if hasattr(self, "shortcut") else x
        return self.conv2(functional.relu(self.bn2(self.conv1(active)))) + kept


class PreActResNet18(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = conv(3, 64, 3)
        inputs = 64
        for stage, width in enumerate((64, 128, 256, 512), start=1):
            first = PreActUnit(inputs, width, 1 if stage == 1 else 2)
            layer = nn.Sequential(first, PreActUnit(width, width, 1))
            setattr(self, f"layer{stage}", layer)
            inputs = width
        self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, num_classes)

    def forward(self, x):
        x = self.conv1(x)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        pooled = functional.avg_pool2d(functional.relu(self.bn(x)), x.shape[-1])
        return self.linear(pooled.flatten(1))


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(
                conv(inputs, 4 * width, 1, stride), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        kept = x if self.downsample is None else self.downsample(x)
        return functional.relu(self.bn3(self.conv3(y)) + kept)


class ResNet(nn.Module):
    def __init__(self, units, num_classes):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 64, 7, 2), nn.BatchNorm2d(64)
        inputs = 64
        for stage, count in enumerate(units, start=1):
            width = 64 * 2 ** (stage - 1)
            layer = [Bottleneck(inputs, width, 1 if stage == 1 else 2)]
            inputs = 4 * width
            layer += [Bottleneck(inputs, width, 1) for _ in range(count - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*layer))
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool2d(x, 3, stride=2, padding=1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean(dim=(2, 3)))


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
            if isinstance(layer, nn.Linear):
                draw(layer.bias, -0.5, 0.5)
    return module.eval()


def logits(module, images, mean, std):
    """Return the logits of NumPy images [b, h, w, c] in [0, 1]."""
    x = torch.tensor((images - mean) / std, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        return module(x).numpy()
