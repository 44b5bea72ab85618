"""Randomised models: means over draws, and the rule by which an attack succeeds.

A randomised model is a function of images f32[b, h, w, c] and one key for each of them.
Attacks average its losses, logits and gradients over `samples` draws of the keys at every
step: expectation over transformation (Athalye et al., ICML 2018). Where `samples` is
None, the model takes images alone.

An image is broken if the mean of these logits is misclassified, and so are JUDGES means
of DRAWS fresh draws each and the mean of all of them. A lucky draw breaks nothing.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from freeadv_jax.attacks.attack import Batch, Count, as_pytree, value_and_gradient
from freeadv_jax.models.user_model import arrays_as_leaves, check_randomized_model

# A hundred steps are as many chances of a lucky mean. An image on the boundary passes 20
# means once in a million steps.
JUDGES, DRAWS = 20, 10
# The first number of the evaluations that judge, beyond the number of any step.
_FRESH = 2**30
# The keys of the draws are apart from those of starts, targets and proposals.
_STREAM = 2**31 - 1


def evaluated(
    logits_fn: Callable,
    loss: Callable[[Float[Array, "b k"]], Float[Array, " b"]],
    point: Float[Array, "b h w c"],
    batch: Batch,
    number: Count | Int[Array, " b"],
    samples: Count | None,
):
    """Return (losses f32[b], logits f32[b, k], gradient f32[b, h, w, c]) at a point.

    All three are means over the draws; the gradient is that of the mean loss. Each
    `number` of an evaluation has draws of its own.
    """

    def draw(*keys):
        def objective(point):
            logits = logits_fn(point, *keys)
            return loss(logits), logits

        return value_and_gradient(objective, point)

    return over_draws(draw, batch, number, samples)


def mean_logits(
    logits_fn: Callable,
    point: Float[Array, "b h w c"],
    batch: Batch,
    number: Count | Int[Array, " b"],
    samples: Count | None,
) -> Float[Array, "b k"]:
    """Return the logits at a point, their mean over the draws of a randomised model."""
    return over_draws(lambda *keys: logits_fn(point, *keys), batch, number, samples)


def over_draws(
    draw: Callable,
    batch: Batch,
    number: Count | Int[Array, " b"],
    samples: Count | None,
):
    """Return the mean of `draw(keys)` over the draws, or `draw()` without samples."""
    if samples is None:
        return draw()
    keys = _evaluation_keys(batch, number)
    return _mean(lambda index: draw(_folded(keys, index)), samples)


def confirmed(
    found: Bool[Array, " b"],
    success: Callable,
    logits_fn: Callable,
    point: Float[Array, "b h w c"],
    batch: Batch,
    number: Count | Int[Array, " b"],
    samples: Count | None,
) -> Bool[Array, " b"]:
    """Return which of the images `found` broken at a point stay so on fresh draws.

    All are, for a model that is not randomised. `success(logits, labels)` is that of the
    attack. The loop ends early where no image is left.

    Few draws are often wrong where many are right: each time another class is ahead of
    the true one by chance. The mean of all draws, by which natural images are classified,
    decides there.
    """
    if samples is None:
        return found
    keys = _evaluation_keys(batch, number + _FRESH)

    def mean(judge):
        def draw(index):
            return logits_fn(point, _folded(keys, judge * DRAWS + index))

        return _mean(draw, DRAWS)

    def judge(carry):
        judges, total, found = carry
        logits = mean(judges)
        return judges + 1, total + logits, found & success(logits, batch.labels)

    def undecided(carry):
        judges, _, found = carry
        return (judges < JUDGES) & jnp.any(found)

    like = jax.eval_shape(mean, np.int32(0))
    start = (jnp.int32(0), jnp.zeros(like.shape, like.dtype), found)
    judges, total, found = jax.lax.while_loop(undecided, judge, start)
    return found & success(total / judges.astype(total.dtype), batch.labels)


def randomized(logits_fn: Callable) -> Callable:
    """Return a model of images and keys as one that also takes images alone.

    Without keys it returns the mean over JUDGES * DRAWS draws, by which natural images
    are classified. Raise InputError for a model that takes no keys.
    """
    if getattr(logits_fn, "func", None) is _logits_or_mean:
        return logits_fn
    check_randomized_model(logits_fn)
    return jax.tree_util.Partial(
        _logits_or_mean, as_pytree(arrays_as_leaves(logits_fn))
    )


def image_keys(images: int) -> Key[Array, " b"]:
    """Return a key for each of so many images, to find out what a model returns."""
    return jax.random.split(jax.random.key(0), images)


def _logits_or_mean(logits_fn, images, keys=None):
    if keys is not None:
        return logits_fn(images, keys)

    def draw(index):
        return logits_fn(images, _folded(image_keys(len(images)), index))

    return _mean(draw, JUDGES * DRAWS)


def _mean(draw, count):
    """Return the mean of the pytrees `draw(0)` to `draw(count - 1)`."""

    def add(index, sums):
        return jax.tree.map(jnp.add, sums, draw(index))

    shapes = jax.eval_shape(draw, np.int32(0))
    zeros = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), shapes)
    sums = jax.lax.fori_loop(0, count, add, zeros)
    return jax.tree.map(lambda total: total / jnp.asarray(count, total.dtype), sums)


def _evaluation_keys(batch, number):
    """Return a key for each image and evaluation."""

    def key(image, number):
        return jax.random.fold_in(jax.random.fold_in(image, _STREAM), number)

    number = jnp.broadcast_to(jnp.asarray(number, jnp.int32), batch.keys.shape)
    return jax.vmap(key)(batch.keys, number)


def _folded(keys, index):
    return jax.vmap(jax.random.fold_in, (0, None))(keys, index)
