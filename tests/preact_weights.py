"""A PyTorch state_dict of PreActResNet-18 under the published names."""

import numpy as np

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


PREACT = {
    "model": "preact-resnet-18",
    "num_classes": 10,
    "image_shape": (32, 32, 3),
    "mean": MEAN,
    "std": STD,
}


def preact_state(num_classes=10):
    """Return a state_dict of the published names and shapes, as NumPy arrays."""
    shapes = {"conv1.weight": (64, 3, 3, 3)}

    def normalization(name, width):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (width,)
        shapes[f"{name}.num_batches_tracked"] = ()

    inputs = 64
    for stage, width in enumerate((64, 128, 256, 512), start=1):
        for unit in (0, 1):
            name = f"layer{stage}.{unit}"
            normalization(f"{name}.bn1", inputs)
            shapes[f"{name}.conv1.weight"] = (width, inputs, 3, 3)
            normalization(f"{name}.bn2", width)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            if width != inputs:
                shapes[f"{name}.shortcut.0.weight"] = (width, inputs, 1, 1)
            inputs = width
    normalization("bn", 512)
    shapes |= {"linear.weight": (num_classes, 512), "linear.bias": (num_classes,)}
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
