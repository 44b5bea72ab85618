"""Optimizers and learning rates, as in the papers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

DECAYED = ("kernels", "all")
# Arrays of ViTs and XCiTs that have the axes of kernels and are none.
_NO_KERNELS = ("cls_token", "pos_embed", "temperature")


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
    layers, without normalisations, biases, tokens and embeddings) or 'all'.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, _decays(decayed)),
        optax.sgd(learning_rate, momentum, nesterov),
    )


def adamw(
    learning_rate: Callable,
    *,
    momentum: float,
    beta2: float,
    nesterov: bool,
    weight_decay: float,
    decayed: str,
) -> optax.GradientTransformation:
    """Return AdamW, whose decay is apart from the gradient (Loshchilov & Hutter 2019).

    `momentum` is the decay of the gradient's mean, `beta2` that of its mean square. An
    update takes away the learning rate times `weight_decay` of the weights that
    `decayed` names, as for `sgd`.
    """
    return optax.adamw(
        learning_rate,
        b1=momentum,
        b2=beta2,
        weight_decay=weight_decay,
        mask=_decays(decayed),
        nesterov=nesterov,
    )


OPTIMIZERS = ("sgd", "adamw")


def clipped(
    tx: optax.GradientTransformation, norm: float
) -> optax.GradientTransformation:
    """Return `tx` for gradients scaled down to the L2 norm `norm` where theirs is larger.

    The norm is that of all weights together (Pascanu et al. 2013). With 0 it is `tx`.
    """
    return optax.chain(optax.clip_by_global_norm(norm), tx) if norm else tx


def _decays(decayed):
    """Return the function from parameters to whether each of them decays."""

    def decays(path, array):
        name = jax.tree_util.keystr(path[-1:], simple=True) if path else ""
        return decayed == "all" or array.ndim > 1 and name not in _NO_KERNELS

    return lambda params: jax.tree_util.tree_map_with_path(decays, params)
