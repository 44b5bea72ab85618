"""The losses that attacks maximise: one for each image, from logits and labels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "b k"], labels: Int[Array, " b"], *, smoothing: float = 0.0
) -> Float[Array, " b"]:
    """Return -log softmax(logits)[label].

    Training may set `smoothing`, the part of the label that is spread evenly over all
    classes (Szegedy et al. 2016, section 7).
    """
    exact = jax.nn.logsumexp(logits, axis=-1) - _at(logits, labels)
    if not smoothing:
        return exact
    even = -jax.nn.log_softmax(logits).mean(axis=-1)
    return (1 - smoothing) * exact + smoothing * even


def log_odds_against(
    logits: Float[Array, "b k"], labels: Int[Array, " b"]
) -> Float[Array, " b"]:
    """Return log((1 - p) / p) for the probability p of the label.

    Attacks maximise this in place of the cross-entropy -log p, which grows with it. The
    gradients have the same direction and differ by the factor 1 - p. In float32 that
    factor rounds to 0 where the label leads by 17 or more, and the cross-entropy itself
    to 0; this loss and its gradient lose nothing, whatever the scale of the logits.
    """
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    # Subtracted first: the difference is exact where the logits are large and close.
    leads = logits - _at(logits, labels)[:, None]
    return jax.nn.logsumexp(jnp.where(is_label, -jnp.inf, leads), axis=-1)


def stable_cross_entropy(
    logits: Float[Array, "b k"], labels: Int[Array, " b"]
) -> Float[Array, " b"]:
    """Return the cross-entropy with a gradient that does not round to 0.

    Attacks on a randomised model average this over samples: unlike log odds, it weights
    the samples as the cross-entropy does.
    """
    return jax.nn.softplus(log_odds_against(logits, labels))


def divergence(
    logits: Float[Array, "b k"], other: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """Return KL(softmax(logits) || softmax(other)) of each image."""
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(other)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def margin(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Return max over j != y of z_j, minus z_y: positive if the image is misclassified.

    This is the loss of Carlini & Wagner (2017). It exists for two classes and more.
    """
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    other = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return other - _at(logits, labels)


def dlr(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """Return the margin divided by z_pi1 - z_pi3, where pi sorts the logits downwards.

    The difference of logits ratio does not change with shift or scale of the logits
    (Croce & Hein, ICML 2020, equation (6)). It needs three classes, and is the margin
    where fewer are left because the others are masked by -inf.
    """
    falling = jax.lax.top_k(logits, 3)[0]
    return margin(logits, labels) / _positive(falling[:, 0] - falling[:, 2])


def targeted_cross_entropy(
    logits: Float[Array, "b k"], labels: Int[Array, " b"], targets: Int[Array, " b"]
) -> Float[Array, " b"]:
    """Return log softmax(logits)[target]."""
    del labels
    return -cross_entropy(logits, targets)


def targeted_margin(
    logits: Float[Array, "b k"], labels: Int[Array, " b"], targets: Int[Array, " b"]
) -> Float[Array, " b"]:
    """Return z_t - z_y, which is 0 on the decision boundary between target and label."""
    return _at(logits, targets) - _at(logits, labels)


def targeted_dlr(
    logits: Float[Array, "b k"], labels: Int[Array, " b"], targets: Int[Array, " b"]
) -> Float[Array, " b"]:
    """Return (z_t - z_y) / (z_pi1 - (z_pi3 + z_pi4) / 2), with pi as in `dlr`.

    Croce & Hein (ICML 2020), equation (7). It needs four classes, and is z_t - z_y where
    fewer are left because the others are masked by -inf.
    """
    falling = jax.lax.top_k(logits, 4)[0]
    scale = falling[:, 0] - (falling[:, 2] + falling[:, 3]) / 2
    return targeted_margin(logits, labels, targets) / _positive(scale)


# The losses that attacks maximise, by the names of the configuration.
UNTARGETED = {"cross-entropy": log_odds_against, "margin": margin, "dlr": dlr}
TARGETED = {
    "cross-entropy": targeted_cross_entropy,
    "margin": targeted_margin,
    "dlr": targeted_dlr,
}


def untargeted_loss(name: str, *, randomized: bool = False) -> Callable:
    """Return a loss of UNTARGETED; draws of a randomised model need the cross-entropy."""
    if randomized and name == "cross-entropy":
        return stable_cross_entropy
    return UNTARGETED[name]


def _at(logits, classes):
    # A sum with one term, not a gather. The gradient of a gather is a scatter, and XLA
    # assumes that a GPU adds a scatter up in any order, or sorts it first.
    is_class = jax.nn.one_hot(classes, logits.shape[-1], dtype=bool)
    return jnp.sum(jnp.where(is_class, logits, 0.0), axis=-1)


def _positive(scale):
    """Return the scale of a ratio, or 1 where its logits are equal or one is -inf."""
    return jnp.where((scale > 0) & jnp.isfinite(scale), scale, 1.0)
