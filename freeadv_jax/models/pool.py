"""Max pooling as choices between shifted images."""

import itertools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def max_pool(
    images: Float[Array, "b h w c"], *, window: int, stride: int, padding: int
) -> Float[Array, "b h2 w2 c"]:
    """The largest in each square window, with `padding` on all sides that never is.

    Where several are equal the gradient goes to the first of them, row by row, as with
    `flax.linen.max_pool`. That one's gradient is a scatter: slower than this on CPU, and
    on GPU it adds in an order of its own in each run.
    """
    sides = (padding, padding, 0)
    padded = lax.pad(
        images,
        jnp.array(-jnp.inf, images.dtype),
        ((0, 0, 0), sides, sides, (0, 0, 0)),
    )
    b, h, w, c = padded.shape
    largest = None
    for row, column in itertools.product(range(window), repeat=2):
        here = lax.slice(
            padded,
            (0, row, column, 0),
            (b, h - window + row + 1, w - window + column + 1, c),
            (1, stride, stride, 1),
        )
        largest = here if largest is None else jnp.where(largest < here, here, largest)
    return largest
