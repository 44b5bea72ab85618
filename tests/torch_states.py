"""PyTorch state_dicts of PreActResNet-18 and WRN-d-k under the published names."""

import numpy as np

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


PREACT = {
    "model": "preact-resnet-18",
    "num_classes": 10,
    "image_shape": (32, 32, 3),
    "mean": MEAN,
    "std": STD,
}


def normalization(name, width):
    """Return the shapes of a BatchNorm's tensors."""
    leaves = ("weight", "bias", "running_mean", "running_var")
    shapes = {f"{name}.{leaf}": (width,) for leaf in leaves}
    return shapes | {f"{name}.num_batches_tracked": ()}


def preact_state(num_classes=10):
    """Return a state_dict of the published names and shapes, as NumPy arrays."""
    shapes = {"conv1.weight": (64, 3, 3, 3)}
    inputs = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for unit in (0, 1):
            name = f"layer{stage}.{unit}"
            shapes |= normalization(f"{name}.bn1", inputs)
            shapes[f"{name}.conv1.weight"] = (width, inputs, 3, 3)
            shapes |= normalization(f"{name}.bn2", width)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            if width != inputs:
                shapes[f"{name}.shortcut.0.weight"] = (width, inputs, 1, 1)
            inputs = width
    shapes |= normalization("bn", 512)
    shapes |= {"linear.weight": (num_classes, 512), "linear.bias": (num_classes,)}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def wide_state(depth=10, widen_factor=1, num_classes=10):
    """Return a random state_dict of WRN-d-k in the names of TRADES, as NumPy arrays."""
    shapes = {"conv1.weight": (16, 3, 3, 3)}
    inputs = 16
    for stage in (1, 2, 3):
        width = 16 * widen_factor * 2 ** (stage - 1)
        for unit in range((depth - 4) // 6):
            name = f"block{stage}.layer.{unit}"
            shapes |= normalization(f"{name}.bn1", inputs)
            shapes[f"{name}.conv1.weight"] = (width, inputs, 3, 3)
            shapes |= normalization(f"{name}.bn2", width)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            if width != inputs:
                shapes[f"{name}.convShortcut.weight"] = (width, inputs, 1, 1)
            inputs = width
    shapes |= normalization("bn1", inputs)
    shapes |= {"fc.weight": (num_classes, inputs), "fc.bias": (num_classes,)}
    rng = np.random.default_rng(0)
    return {
        name: np.asarray(rng.uniform(0.1, 0.9, shape), np.float32)
        for name, shape in shapes.items()
    }
