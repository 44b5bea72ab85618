"""Stochastic gradient descent as the papers use it, and their learning rates."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

SCHEDULES = ("step", "triangular")
DECAYED = ("kernels", "all")


def learning_rate_schedule(
    name: str, *, peak: float, updates: int, turns: tuple[float, ...]
) -> Callable:
    """The learning rate as a function of the UPDATE, counted from 0.

    'step' is divided by 10 at each turn; 'triangular' rises from 0 to `peak` at its
    one turn and falls to 0 at the end. `turns` are fractions of the budget `updates`,
    so that a short run keeps the schedule's shape.
    """
    if name == "step":
        drops = jnp.array([round(turn * updates) for turn in turns])
        return lambda update: peak * jnp.prod(jnp.where(update >= drops, 0.1, 1.0))
    corners = jnp.array([0.0, turns[0] * updates, updates])
    heights = jnp.array([0.0, peak, 0.0])
    return lambda update: jnp.interp(jnp.asarray(update, float), corners, heights)


def sgd(
    learning_rate: Callable,
    *,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decayed: str,
) -> optax.GradientTransformation:
    """SGD with coupled L2 decay, added to the gradient before the momentum.

    `decayed` says of which parameters: 'kernels' (of convolutions and dense layers;
    not BatchNorm, not biases) or 'all'.
    """

    def mask(params):
        return jax.tree.map(lambda p: decayed == "all" or p.ndim > 1, params)

    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(learning_rate, momentum, nesterov),
    )
