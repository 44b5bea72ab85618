"""Checks of a model, images, labels and settings, each with a one-line message."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from freeadv_jax.attacks.threat import NORMS, THREATS, Real, make_threat
from freeadv_jax.errors import InputError


def is_traced(*trees) -> bool:
    """Return whether JAX traces this call, or a value in one of these pytrees."""
    # Inside jax.jit a new array is traced too, whatever the model has captured.
    leaves = jax.tree.leaves((jnp.zeros(()), *trees))
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def check_threat(
    norm: str,
    epsilon: Real,
    *,
    norms: Iterable[str] = NORMS,
    image_shape: tuple[int, ...] | None = None,
) -> None:
    """Raise InputError for an unknown norm or an epsilon outside the norm's range.

    `norms` are those that the attack has. With `image_shape` [h, w, c], also raise it for a
    patch or a number of pixels that such images do not hold.
    """
    norms = tuple(norms)
    if norm in THREATS and norm not in norms:
        raise InputError(
            f"norm = {norm!r}: this attack has only {', '.join(norms)}; patches and few "
            "pixels are attacked by pgd, in tables natural, pgd-, cw- and dlr-"
        )
    # The caller may be traced, with numbers that are not.
    with jax.ensure_compile_time_eval():
        make_threat(norm, epsilon).check(image_shape)


def check_step_size(step_size: Real) -> None:
    """Raise InputError unless the step size is above 0 and finite."""
    if isinstance(step_size, jax.core.Tracer):
        return
    with jax.ensure_compile_time_eval():
        if not 0 < step_size < np.inf:
            raise InputError(
                f"step size {step_size}: must be above 0, finite, in [0, 1] pixels"
            )


def check_samples(samples: object) -> None:
    """Raise InputError unless `samples` is None or a whole number of draws above 0."""
    if samples is None or isinstance(samples, jax.core.Tracer):
        return
    if not np.issubdtype(np.asarray(samples).dtype, np.integer) or samples < 1:
        raise InputError(
            f"samples = {samples}: must be a whole number of draws, 1 or more, and None for "
            "a model that draws nothing"
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
    for name in ("restarts", "targets"):
        count = getattr(attack, name, 1)
        if not isinstance(count, jax.core.Tracer) and count < 1:
            raise InputError(f"{name} = {count}: must be 1 or more")
    check_samples(getattr(attack, "samples", None))
    check_step_size(getattr(attack, "step_size", 1.0))
