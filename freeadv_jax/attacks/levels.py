"""Levels that divide the pixels of an image, found exactly and without sorting."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_INTEGERS = {32: jnp.int32, 64: jnp.int64}


def lowest_level(
    holds: Callable[[Float[Array, "b 1"]], Bool[Array, "b 1"]],
    like: Float[Array, "b 1"],
) -> Float[Array, "b 1"]:
    """Return the least float from 0 on at which `holds` is true, one for each image.

    `holds` is true from some level on; `like` gives the shape and the type. The bits of
    floats of 0 and more, read as integers, are in the order of the floats. A bisection
    over bits therefore ends at the exact level, after as many steps for every image as a
    float has bits: images do not influence one another.
    """
    bits = jnp.finfo(like.dtype).bits
    whole = _INTEGERS[bits]
    infinity = jax.lax.bitcast_convert_type(jnp.full_like(like, jnp.inf), whole)

    def holds_at(level):
        value = jax.lax.bitcast_convert_type(jnp.minimum(level, infinity), like.dtype)
        return holds(value) | (level >= infinity)

    def raise_bit(place, failing):
        bit = jnp.left_shift(jnp.asarray(1, whole), (bits - 2 - place).astype(whole))
        return jnp.where(holds_at(failing | bit), failing, failing | bit)

    zero = jnp.zeros_like(infinity)
    failing = jax.lax.fori_loop(jnp.int32(0), jnp.int32(bits - 1), raise_bit, zero)
    level = jnp.where(holds_at(zero), zero, failing + 1)
    return jax.lax.bitcast_convert_type(level, like.dtype)


def accurate_sum(terms: Float[Array, "b n"]) -> Float[Array, "b 1"]:
    """Return the sum of each row, to a few units in the last place.

    Halves are added to one another, so that the error grows with the logarithm of n.
    """
    while terms.shape[1] > 1:
        if terms.shape[1] % 2:
            terms = jnp.pad(terms, ((0, 0), (0, 1)))
        half = terms.shape[1] // 2
        terms = terms[:, :half] + terms[:, half:]
    return terms
