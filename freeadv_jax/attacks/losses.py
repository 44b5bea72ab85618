"""What an attack maximises: a loss for each image, from logits and true labels."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "b k"], labels: Int[Array, " b"]
) -> Float[Array, " b"]:
    """-log softmax(logits)[label]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def margin(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Float[Array, " b"]:
    """max over j != y of z_j, less z_y: positive exactly when the image is broken.

    The loss of Carlini & Wagner (2017), for any number of classes.
    """
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    true = jnp.sum(jnp.where(is_label, logits, 0.0), axis=-1)
    other = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return other - true
