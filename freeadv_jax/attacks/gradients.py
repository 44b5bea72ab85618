"""Measurements of input gradients: the rise that they promise, and the rise there is."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jaxtyping import Array, Float, Int

from freeadv_jax.attacks.attack import Batch, Count, as_pytree, attack_keys
from freeadv_jax.attacks.draws import evaluated, image_keys, mean_logits, over_draws
from freeadv_jax.attacks.losses import log_odds_against, margin
from freeadv_jax.attacks.threat import make_threat

# The random points of the ball at which the loss is compared with that at the image.
_POINTS = 8
# The rounding of a loss, in units in the last place of the largest logit.
_ULPS = 16


class Measured(NamedTuple):
    """Hold measurements at each image, for the log odds that attacks maximise.

    promised   f32[n, 2]: the rise that the gradient promises for one step along it, of the
               size of a step of PGD and of epsilon.
    rise       f32[n, 2]: the rise after these steps.
    most       f32[n]: the change that the gradient allows anywhere in the ball.
    surge      f32[n]: the largest rise at random points of the ball.
    swing      f32[n]: the largest change there, up or down.
    rounding   f32[n]: a change of the loss that rounding can explain.
    lead       f32[n]: the logit of the label minus the largest other logit.
    zeros      f32[n]: the share of the pixels whose gradient is zero.
    agreement  f32[n]: the cosine between the gradients of two sets of draws; 1 for a model
               that draws nothing.
    """

    promised: Float[np.ndarray | Array, "n 2"]
    rise: Float[np.ndarray | Array, "n 2"]
    most: Float[np.ndarray | Array, " n"]
    surge: Float[np.ndarray | Array, " n"]
    swing: Float[np.ndarray | Array, " n"]
    rounding: Float[np.ndarray | Array, " n"]
    lead: Float[np.ndarray | Array, " n"]
    zeros: Float[np.ndarray | Array, " n"]
    agreement: Float[np.ndarray | Array, " n"]


def measure_gradients(
    logits_fn: Callable,
    images: Float[Array, "b h w c"],
    labels: Int[Array, " b"],
    index: Int[Array, " b"],
    epsilon: Float[Array, " b"],
    step_size: Float[Array, " b"],
    precision: Float[Array, " b"],
    samples: Int[Array, " b"],
    *,
    norm: str,
    randomized: bool,
    seed: int | np.integer,
) -> Measured:
    """Return the measurements at images; each has its own numbers, all alike.

    `precision` is the distance between 1 and the next number of the model's float type.
    `samples` are the draws of a randomised model.
    """
    draws: Count | None = samples[0] if randomized else None
    none = jnp.zeros_like(index)
    keys = attack_keys(seed, index, none)
    batch = Batch(images, labels, keys, none, none)
    threat = make_threat(norm, epsilon[0])

    def loss(logits):
        return log_odds_against(logits, labels)

    def loss_at(point):
        return over_draws(lambda *keys: loss(logits_fn(point, *keys)), batch, 0, draws)

    before, _, gradient = evaluated(logits_fn, loss, images, batch, 0, draws)
    other = gradient
    if randomized:
        _, _, other = evaluated(logits_fn, loss, images, batch, 1, draws)

    def ahead(size):
        step_size = size[:, None, None, None]
        point = threat.inside(images, threat.advance(images, gradient, step_size))
        return _inner(gradient, point - images), loss_at(point) - before

    def random_point(number, changes):
        surge, swing = changes
        numbered = jnp.broadcast_to(number, labels.shape)
        fresh = jax.vmap(jax.random.fold_in)(keys, numbered)
        noise = threat.wide_noise(fresh, numbered, images.shape[1:])
        point = threat.inside(images, images + noise)
        change = loss_at(point) - before
        return jnp.maximum(surge, change), jnp.maximum(swing, jnp.abs(change))

    steps = map(ahead, (step_size, epsilon))
    promised, rise = (jnp.stack(pair, axis=-1) for pair in zip(*steps, strict=True))
    nothing = jnp.zeros_like(before)
    surge, swing = jax.lax.fori_loop(
        jnp.int32(0), jnp.int32(_POINTS), random_point, (nothing - jnp.inf, nothing)
    )

    logits = mean_logits(logits_fn, images, batch, 0, draws)
    largest = jnp.max(jnp.where(jnp.isfinite(logits), jnp.abs(logits), 0), axis=-1)
    return Measured(
        promised=promised,
        rise=rise,
        most=epsilon * threat.dual_size(gradient),
        surge=surge,
        swing=swing,
        rounding=_ULPS * precision * largest,
        lead=-margin(logits, labels),
        zeros=jnp.mean(gradient == 0, axis=(1, 2, 3), dtype=jnp.float32),
        agreement=_cosine(gradient, other),
    )


def narrow_floats(logits_fn: Callable, images, *, randomized: bool) -> list[str]:
    """Return the float types narrower than 32 bits in which a model computes.

    `images` are [n, h, w, c]. Weights that are kept in such a type and computed with in
    float32 do not count.
    """
    image = jax.ShapeDtypeStruct((1, *images.shape[1:]), jnp.float32)
    keys = (image_keys(1),) if randomized else ()
    program = jax.make_jaxpr(lambda logits_fn, *given: logits_fn(*given))(
        as_pytree(logits_fn), image, *keys
    )
    return sorted(set(_narrow(program.jaxpr)))


def _narrow(program):
    for equation in program.eqns:
        for inner in core.jaxprs_in_params(equation.params):
            inner = inner.jaxpr if isinstance(inner, core.ClosedJaxpr) else inner
            yield from _narrow(inner)
        for variable in equation.outvars:
            kind = getattr(variable.aval, "dtype", None)
            is_float = kind is not None and jnp.issubdtype(kind, jnp.floating)
            if is_float and kind.itemsize < 4:
                yield str(kind)


def _inner(one, other):
    return jnp.sum(one * other, axis=(1, 2, 3))


def _cosine(one, other):
    """Return the cosine of the angle between gradients, 1 where both are zero."""
    # Scaled first: the squares of a confident model's gradient would underflow.
    largest = jnp.maximum(jnp.abs(one), jnp.abs(other)).max(axis=(1, 2, 3))
    scale = jnp.where(largest > 0, largest, 1)[:, None, None, None]
    one, other = one / scale, other / scale
    lengths = jnp.sqrt(_inner(one, one) * _inner(other, other))
    equal = jnp.all(one == other, axis=(1, 2, 3))
    cosine = _inner(one, other) / jnp.where(lengths > 0, lengths, 1)
    return jnp.where(equal, 1.0, cosine)
