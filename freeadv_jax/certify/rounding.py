"""The allowance for rounding that makes every bound an outward one.

A sum of n products in floating point differs from the exact sum by at most gamma(n) times
the sum of the absolute products, in any order of the additions (Higham 2002, "Accuracy and
Stability of Numerical Algorithms", section 3.1).
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# The entries that one step of a sum adds.
_BLOCK = 16

_counted = contextvars.ContextVar("counted", default=True)


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    """Trace bounds inside the `with` as if numbers were exact, for training.

    The allowance costs a pass through the network, and its gradient says nothing. It counts
    where a function is traced; a compiled program keeps what it was traced with.
    """
    token = _counted.set(False)
    try:
        yield
    finally:
        _counted.reset(token)


def unit_roundoff(dtype) -> float:
    """Return the largest relative error of one operation in this type, 0 if `uncounted`."""
    return float(jnp.finfo(dtype).eps) / 2 if _counted.get() else 0.0


def relative(error: float, size: Array) -> Array:
    """Return `error` * `size`, and 0 at no cost where nothing is counted."""
    return error * size if error else jnp.zeros_like(size)


def gamma(terms: int, dtype) -> float:
    """Return n u / (1 - n u), with n = `terms` and u the unit roundoff of `dtype`."""
    error = terms * unit_roundoff(dtype)
    return error / (1 - error)


def total(products: Float[Array, "rows ..."]) -> Float[Array, " rows"]:
    """Return the sum of each row, in blocks, so that few roundings add up."""
    flat = products.reshape(len(products), -1)
    window = (1, _BLOCK)
    while flat.shape[1] > _BLOCK:
        zero = flat.dtype.type(0)
        flat = lax.reduce_window(flat, zero, lax.add, window, window, "SAME")
    return jnp.sum(flat, axis=1)


def terms_of_total(size: int) -> int:
    """Return the n of `gamma` for `total` over `size` entries."""
    terms = _BLOCK
    while size > _BLOCK:
        size = -(-size // _BLOCK)
        terms += _BLOCK
    return terms


def stored(
    low: Float[Array, "..."], high: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Return both arrays as they are, each number computed once for all its uses.

    XLA may compute an array anew for each of its uses, with other rounding, so that two
    comparisons of one number disagree near a tie. It computes a reduction with several
    results once, and on a CPU it drops an optimisation barrier. If `uncounted` the arrays
    are returned at no cost.
    """
    return _stored(low, high) if _counted.get() else (low, high)


@jax.custom_jvp
def _stored(low, high):
    keys = lax.broadcasted_iota(jnp.int32, (2, *low.shape), 0)
    arrays = (keys, *(jnp.stack([end, end]) for end in (low, high)))

    def later(one, other):
        take = other[0] > one[0]
        return tuple(jnp.where(take, new, old) for new, old in zip(other, one))

    starts = (jnp.int32(-1), *(jnp.zeros((), end.dtype) for end in (low, high)))
    _, *found = lax.reduce(arrays, starts, later, (0,))
    return tuple(found)


@_stored.defjvp
def _stored_jvp(primals, tangents):
    return _stored(*primals), tangents
