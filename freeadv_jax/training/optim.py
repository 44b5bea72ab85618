"""Stochastic gradient descent and learning rates, as in the papers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

DECAYED = ("kernels", "all")


def learning_rate_schedule(
    name: str,
    *,
    peak: float,
    updates: int,
    turns: tuple[float, ...],
    warmup: float = 0.0,
) -> Callable:
    """Return the learning rate as a function of the UPDATE, counted from 0.

    'step' divides the rate by 10 at each turn; 'triangular' rises from 0 to `peak` at its
    one turn and falls to 0 at the end; 'cosine' falls to 0 by half a cosine. `turns` and
    `warmup` are fractions of the budget `updates`: a short run keeps the schedule's
    shape. During the warm-up the schedule's rate is multiplied by a factor that rises
    linearly from 0 to 1 (Goyal et al. 2017, section 2.2).
    """
    schedule = SCHEDULES[name](peak, updates, turns)
    if not warmup:
        return schedule
    return lambda update: (
        schedule(update) * jnp.minimum(1.0, (update + 1) / (warmup * updates))
    )


def _step(peak, updates, turns):
    drops = jnp.array([round(turn * updates) for turn in turns])
    return lambda update: peak * jnp.prod(jnp.where(update >= drops, 0.1, 1.0))


def _triangular(peak, updates, turns):
    corner = turns[0] * updates

    def schedule(update):
        update = jnp.asarray(update, float)
        rising = update / corner * peak
        falling = peak - (update - corner) / (updates - corner) * peak
        return jnp.where(update < corner, rising, falling)

    return schedule


def _cosine(peak, updates, turns):
    del turns
    return lambda update: (
        peak * (1 + jnp.cos(jnp.pi * jnp.asarray(update, float) / updates)) / 2
    )


SCHEDULES = {"step": _step, "triangular": _triangular, "cosine": _cosine}


def sgd(
    learning_rate: Callable,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decayed: str,
) -> optax.GradientTransformation:
    """Return SGD with coupled L2 decay, added to the gradient before the momentum.

    `decayed` names the parameters that decay: 'kernels' (of convolutions and dense
    layers, without BatchNorm and biases) or 'all'.
    """

    def mask(params):
        return jax.tree.map(lambda p: decayed == "all" or p.ndim > 1, params)

    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(learning_rate, momentum, nesterov),
    )
