"""The smallest step inside the pixel box [0, 1] that reaches a hyperplane."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.attacks.levels import accurate_sum, lowest_level

# The limit of Newton's iterations. 3 to 6 are usual; 19 were the most in trials where
# the plane left 0.01 % of the box's room.
_MOST_ITERATIONS = 50
# The least slope or pace that is divided by.
_TINY = 1e-30


def fill_to_level(
    points: Float[Array, "b n"],
    w: Float[Array, "b n"],
    need: Float[Array, " b"],
    *,
    pace: Callable[[Float[Array, "b n"]], Float[Array, "b n"]],
) -> Float[Array, "b n"]:
    """Return d with w . d = need and points + d in [0, 1], by moving pixels to a level.

    Pixel i moves pace_i * min(level, reach_i) towards the plane, where reach_i is its
    room in the box divided by its pace; `pace` maps |w| (scaled to a maximum of 1) to
    the pace of each pixel. Where no d reaches the plane, every pixel uses all its room.

    One level serves all pixels: the sum of cost_i * min(level, reach_i) must be |need|.
    That sum is concave in the level. Newton's method from 0 therefore climbs to the
    root without passing it, and no sort is needed.
    """
    scale = jnp.max(jnp.abs(w), axis=-1, keepdims=True)
    scale = jnp.where(scale > 0, scale, 1.0)
    slant, need = jnp.abs(w) / scale, need[:, None] / scale
    direction = jnp.sign(w) * jnp.sign(need)
    room = jnp.where(direction > 0, 1 - points, points)
    pace = pace(slant)
    cost = slant * pace
    reach = room / jnp.maximum(pace, _TINY)
    highest = jnp.max(reach, axis=-1, keepdims=True)

    def climb(carry):
        iterations, _, level = carry
        found = jnp.sum(cost * jnp.minimum(level, reach), axis=-1, keepdims=True)
        slope = jnp.sum(jnp.where(reach > level, cost, 0.0), axis=-1, keepdims=True)
        missing = jnp.maximum(jnp.abs(need) - found, 0)
        higher = level + missing / jnp.maximum(slope, _TINY)
        return iterations + 1, level, jnp.minimum(higher, highest)

    def unfinished(carry):
        iterations, before, level = carry
        return (iterations < _MOST_ITERATIONS) & jnp.any(level > before)

    ground = jnp.zeros_like(highest)
    _, _, level = jax.lax.while_loop(unfinished, climb, climb((0, ground, ground)))
    return direction * pace * jnp.minimum(level, reach)


def fill_in_order(
    order: Float[Array, "b n"],
    room: Float[Array, "b n"],
    cost: Float[Array, "b n"],
    budget: Float[Array, "#b 1"],
) -> Float[Array, "b n"]:
    """Return how far each pixel moves if pixels of higher `order` move first.

    A pixel moves through all its `room`, at `cost` for each unit, until the budget is used
    up. Pixels of the same order share the rest of the budget evenly. No entry is negative.
    """
    price = cost * room

    def affordable(level):
        return accurate_sum(jnp.where(order > level, price, 0)) <= budget

    level = lowest_level(affordable, order[:, :1])
    ahead, last = order > level, order == level
    rest = budget - accurate_sum(jnp.where(ahead, price, 0))
    share = rest / jnp.maximum(accurate_sum(jnp.where(last, price, 0)), _TINY)
    return jnp.where(ahead, room, jnp.where(last, jnp.clip(share, 0, 1) * room, 0))
