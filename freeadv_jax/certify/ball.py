"""The ball around one image, cut with the pixel box [0, 1]."""

import abc
import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.certify.rounding import (
    gamma,
    relative,
    terms_of_total,
    total,
    unit_roundoff,
)

# The steps towards the best multiplier of the L2 ball, and the least epsilon it divides by.
_STEPS, _TINY = 10, 1e-12


class Interval(NamedTuple):
    """Hold the least and the largest value of each entry of an array."""

    low: Array
    high: Array

    @property
    def middle(self) -> Array:
        return self.low + 0.5 * (self.high - self.low)

    @property
    def size(self) -> Array:
        """The largest absolute value of each entry."""
        return jnp.maximum(jnp.abs(self.low), jnp.abs(self.high))

    def minimum(self, rows: Float[Array, "rows ..."]) -> Float[Array, " rows"]:
        """Return a lower bound of the products of each row with all arrays inside."""
        allowance = relative(_allowance(self.low), self.size)
        least = jnp.maximum(rows, 0) * self.low + jnp.minimum(rows, 0) * self.high
        return total(least - jnp.abs(rows) * allowance)


@dataclasses.dataclass(frozen=True)
class Ball(abc.ABC):
    """Hold all images in [0, 1] within `epsilon` of `image` [h, w, c] in one norm."""

    image: Array
    epsilon: Array

    norm: ClassVar[str]
    # Whether the ball is all of its box.
    is_box: ClassVar[bool] = False

    def box(self) -> Interval:
        """Return the least and the largest value of each pixel."""
        # A rounded sum may lie one unit inside.
        slack = 2 * unit_roundoff(self.image.dtype)
        slack = relative(slack, self.image + self.epsilon)
        low = jnp.maximum(self.image - self.epsilon - slack, 0)
        return Interval(low, jnp.minimum(self.image + self.epsilon + slack, 1))

    @abc.abstractmethod
    def minimum(self, rows: Float[Array, "rows h w c"]) -> Float[Array, " rows"]:
        """Return a lower bound of the products of each row with all images inside."""


class LinfBall(Ball):
    """Hold the images that differ by at most `epsilon` in every pixel."""

    norm = "linf"
    is_box = True

    def minimum(self, rows: Float[Array, "rows h w c"]) -> Float[Array, " rows"]:
        """Return the minimum over the box that is left."""
        return self.box().minimum(rows)


class L2Ball(Ball):
    """Hold the images at a Euclidean distance of at most `epsilon`."""

    norm = "l2"

    def minimum(self, rows: Float[Array, "rows h w c"]) -> Float[Array, " rows"]:
        """Return the best lower bound that weak duality gives.

        For each multiplier m >= 0 the minimum over the box of a . d + m (|d|^2 - e^2) / 2 is
        a lower bound. The first m is the best one without a box; each step is the best m
        for the pixels that the box does not stop.
        """
        epsilon = jnp.maximum(self.epsilon, _TINY)
        below, above = -self.image, 1 - self.image
        rows_of_pixels = (len(rows), *[1] * self.image.ndim)

        def spread(values):
            return jnp.maximum(values, _TINY).reshape(rows_of_pixels)

        lengths = jnp.sqrt(total(jnp.square(rows)))
        multiplier = lengths / epsilon
        for _ in range(_STEPS):
            free = -rows / spread(multiplier)
            stopped = (free < below) | (free > above)
            used = total(
                jnp.where(stopped, jnp.square(jnp.clip(free, below, above)), 0)
            )
            left = total(jnp.where(stopped, 0, jnp.square(rows)))
            room = jnp.maximum(jnp.square(epsilon) - used, _TINY**2)
            multiplier = jnp.minimum(multiplier, jnp.sqrt(left / room))
        multiplier = jax.lax.stop_gradient(spread(multiplier))
        shift = jnp.clip(-rows / multiplier, below, above)
        pull = 0.5 * multiplier * jnp.square(shift)
        allowance = _allowance(self.image)
        sizes = jnp.abs(rows) * (self.image + jnp.abs(shift)) + pull
        products = rows * self.image + rows * shift + pull
        radius = 0.5 * multiplier.reshape(-1) * jnp.square(epsilon)
        return total(products - relative(allowance, sizes)) - (1 + allowance) * radius


BALLS: dict[str, type[Ball]] = {ball.norm: ball for ball in (LinfBall, L2Ball)}


def _allowance(array):
    """The relative error of a product, of its share in a total, and of what follows."""
    return gamma(terms_of_total(array.size) + 2 * terms_of_total(1) + 8, array.dtype)
