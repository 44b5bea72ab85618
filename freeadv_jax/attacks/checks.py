"""Checks of a model, images, labels and settings, each with a one-line message."""

import jax
import jax.numpy as jnp
import numpy as np

from freeadv_jax.attacks.threat import Real, make_threat
from freeadv_jax.errors import InputError


def is_traced(*trees) -> bool:
    """Return whether JAX traces this call, or a value in one of these pytrees."""
    # Inside jax.jit a new array is traced too, whatever the model has captured.
    leaves = jax.tree.leaves((jnp.zeros(()), *trees))
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def check_threat(norm: str, epsilon: Real) -> None:
    """Raise InputError for an unknown norm or an epsilon outside the norm's range."""
    threat = make_threat(norm, epsilon)
    if isinstance(epsilon, jax.core.Tracer):
        return
    if not 0 < epsilon <= threat.largest_epsilon:
        most = threat.largest_epsilon
        limit = f"0 to {most:g}" if np.isfinite(most) else "above 0"
        raise InputError(
            f"epsilon = {epsilon}: must be above 0, in [0, 1] pixels ({limit} for "
            f"{norm}): eight of 255 levels are 8 / 255"
        )


def check_step_size(step_size: Real) -> None:
    """Raise InputError unless the step size is above 0."""
    if not isinstance(step_size, jax.core.Tracer) and not step_size > 0:
        raise InputError(f"step size {step_size}: must be above 0, in [0, 1] pixels")


def check_images(images, labels, *, raw: bool = False) -> None:
    """Raise InputError unless `images` [n, h, w, c] and `labels` [n] belong together.

    At least one image is needed. Labels must be integers and images floats in [0, 1];
    `raw` also allows uint8 pixels.
    """
    shape = np.shape(images)
    if len(shape) != 4:
        raise InputError(
            f"images of shape {shape}: must be [n, height, width, channels]"
        )
    if not shape[0]:
        raise InputError("there are no images to attack: give at least one")
    if np.shape(labels) != shape[:1]:
        raise InputError(
            f"{shape[0]} images and labels of shape {np.shape(labels)}: must be one "
            "label an image"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(f"labels of type {labels.dtype}: must be whole numbers")
    if raw and images.dtype == np.uint8:
        return
    if not jnp.issubdtype(images.dtype, np.floating):
        raise InputError(
            f"images of type {images.dtype}: must be floats in [0, 1]; divide by 255"
        )
    if isinstance(images, jax.core.Tracer):
        return
    pixels = np.asarray(images, np.float32)
    lowest, highest = float(np.min(pixels)), float(np.max(pixels))
    if not (lowest >= 0 and highest <= 1):
        raise InputError(
            f"images range from {lowest:.4g} to {highest:.4g}: must be in [0, 1], "
            "normalisation belongs into the model"
        )


def check_labels(labels, num_classes: int) -> None:
    """Raise InputError unless every label is a class of the model."""
    if isinstance(labels, jax.core.Tracer):
        return
    lowest, highest = int(np.min(labels)), int(np.max(labels))
    if lowest < 0 or highest >= num_classes:
        raise InputError(
            f"labels range from {lowest} to {highest}: the model has {num_classes} "
            f"classes, 0 to {num_classes - 1}"
        )


def check_finite(logits: np.ndarray) -> None:
    """Raise InputError for logits [n, k] of NaN or infinity, naming the first image.

    Classes may be masked by -inf, but not all classes of an image.
    """
    masked = np.isneginf(logits)
    unusable = ~(np.isfinite(logits) | masked).all(axis=-1) | masked.all(axis=-1)
    if unusable.any():
        row = int(np.argmax(unusable))
        raise InputError(
            f"the model's logits for image {row} are not finite: only -inf is allowed, "
            "for masked classes, and not for all classes"
        )


def largest_difference(logits: np.ndarray, others: np.ndarray) -> float:
    """Return the largest difference between logits; masked classes, -inf, are equal."""
    apart = np.zeros(logits.shape, logits.dtype)
    np.subtract(logits, others, out=apart, where=logits != others)
    return float(np.max(np.abs(apart)))


def check_logits(logits: np.ndarray) -> None:
    """Raise InputError for logits [n, k] that are not finite or are probabilities."""
    check_finite(logits)
    if is_probabilities(logits):
        raise InputError(
            "the model returns probabilities (no entry is negative and each row sums "
            "to 1): attacks need logits, leave the softmax out"
        )


def is_probabilities(logits: np.ndarray) -> bool:
    """Return whether every row of [n, k] is a distribution over the classes."""
    sums = np.sum(logits, axis=-1)
    return bool(np.all(logits >= 0) and np.allclose(sums, 1, atol=1e-4))


def num_classes_of(logits_fn, images) -> int:
    """Return the model's number of classes, from its output for `images`.

    Raise InputError as `check_output` does.
    """
    of_floats = jax.ShapeDtypeStruct(np.shape(images), np.float32)
    # The lambda is for callables that JAX cannot wrap, such as equinox.filter_jit's.
    logits = jax.eval_shape(lambda x: logits_fn(x), of_floats)
    return check_output(logits, len(images))


def check_output(logits, images: int) -> int:
    """Return k of the shape of a model's output for so many images.

    Raise InputError unless the output is one array [images, k] of floats, with k of 2 or
    more.
    """
    if not isinstance(logits, jax.ShapeDtypeStruct):
        raise InputError(
            f"the model gives a {type(logits).__name__} of arrays: must be the logits "
            "alone"
        )
    shape = logits.shape
    if shape in ((images,), (images, 1)):
        together = "stack" if len(shape) == 1 else "concatenate"
        raise InputError(
            f"the model gives one output an image, {shape}: must be a logit for each "
            "class; of two classes, with z before the sigmoid, they are "
            f"jnp.{together}([jnp.zeros_like(z), z], axis=-1)"
        )
    if len(shape) != 2 or shape[0] != images or shape[1] < 2:
        raise InputError(
            f"the model gives {shape} for {images} images: must be ({images}, classes), "
            "with two classes or more"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise InputError(
            f"the model gives logits of type {logits.dtype}, which has no gradient: must "
            "be floats"
        )
    return shape[1]


def check_loss(attack, num_classes: int) -> None:
    """Raise InputError for a DLR loss with fewer classes than its formula needs."""
    if getattr(attack, "loss", None) != "dlr":
        return
    needed = 3 if attack.goal in ("untargeted", "given-target") else 4
    if num_classes < needed:
        raise InputError(
            f"loss 'dlr', {attack.goal}, needs {needed} classes and the model has "
            f"{num_classes}: take 'margin' (cw-<steps>)"
        )


def check_counts(attack) -> None:
    """Raise InputError for an attack that makes no attempt or steps downhill."""
    for name in ("restarts", "targets", "eot"):
        count = getattr(attack, name, 1)
        if not isinstance(count, jax.core.Tracer) and count < 1:
            raise InputError(f"{name} = {count}: must be 1 or more")
    check_step_size(getattr(attack, "step_size", 1.0))
