"""A small network on digits, in JAX and in PyTorch with the same weights."""

import functools

import jax
import numpy as np
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier


@functools.cache
def weights():
    """Return two kernels and two biases, trained by scikit-learn on the last digits."""
    digits = load_digits()
    network = MLPClassifier((64,), alpha=1.0, max_iter=60, random_state=0)
    network.fit(digits.data[600:] / 16, digits.target[600:])
    kernels = [np.float32(kernel) for kernel in network.coefs_]
    return kernels, [np.float32(bias) for bias in network.intercepts_]


def correct_examples(count):
    """Return images f32[count, 8, 8, 1] that the network classifies right, and labels."""
    digits = load_digits()
    images = np.float32(digits.images[:600, ..., None] / 16)
    labels = digits.target[:600].astype(np.int32)
    right = np.flatnonzero(np.argmax(logits(images), axis=-1) == labels)[:count]
    return images[right], labels[right]


def logits(images):
    """Return the logits f32[b, 10] of images f32[b, 8, 8, 1]."""
    (first, second), (one, two) = weights()
    return jax.nn.relu(images.reshape(len(images), -1) @ first + one) @ second + two


def torch_model():
    """Return the network as a PyTorch module of images [b, 1, 8, 8]."""
    import torch

    (first, second), (one, two) = weights()
    model = torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    )
    values = {"1.weight": first.T, "1.bias": one, "3.weight": second.T, "3.bias": two}
    model.load_state_dict({name: torch.tensor(v) for name, v in values.items()})
    return model.eval().requires_grad_(False)
