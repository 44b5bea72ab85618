"""Functions of one number, as the least and greatest value of f(x) - slope * x.

A line of any slope encloses f on an interval from below with the least value of
f(x) - slope * x as its offset, and from above with the greatest. These values are reached at
an end of the interval, at a breakpoint, or where f has that slope, so no case distinction
between convex, concave and S-shaped parts is needed.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from freeadv_jax.certify.ball import Interval
from freeadv_jax.certify.rounding import relative, unit_roundoff

# The elementary functions are exact to a few roundings; a line adds two more.
_ROUNDINGS = 8.0


@runtime_checkable
class Curve(Protocol):
    """Enclose a function of one number on an interval."""

    def slopes(self, interval: Interval) -> list[Array]:
        """Return the slopes that are worth trying for an enclosing line."""

    def extremes(self, slope: Array | float, interval: Interval) -> Interval:
        """Return bounds of f(x) - slope * x on the interval, rounding included."""


class Line(NamedTuple):
    """Hold slope * x + offset."""

    slope: Array
    offset: Array


def enclosing_lines(curve: Curve, interval: Interval) -> tuple[Line, Line]:
    """Return the lines below and above the curve that are nearest to it in the middle.

    The area between two lines is the width of the interval times their distance in its
    middle. For ReLU this is CROWN's adaptive choice (Zhang et al. 2018, section 3.3).
    """
    below, above = [], []
    for slope in curve.slopes(interval):
        least, greatest = curve.extremes(slope, interval)
        below.append(Line(*jnp.broadcast_arrays(slope, least)))
        above.append(Line(*jnp.broadcast_arrays(slope, greatest)))
    return _best(below, interval.middle, 1.0), _best(above, interval.middle, -1.0)


def _best(lines, middle, sign):
    """Return the line that is highest in the middle, or lowest with sign -1.

    One reduction takes the slope and the offset together. XLA may evaluate a comparison
    anew for each of its uses, with other rounding, and so mix two lines.
    """
    if len(lines) == 1:
        return lines[0]
    slopes, offsets = map(jnp.stack, zip(*lines))
    heights = sign * (slopes * middle + offsets)
    # A slope may be infinite, and its line is not a number then.
    heights = jnp.where(jnp.isnan(heights), -jnp.inf, heights)
    return Line(*_at_highest(heights, slopes, offsets))


@jax.custom_jvp
def _at_highest(heights, slopes, offsets):
    """Return the slope and the offset where the height is largest along the first axis."""

    def higher(one, other):
        take = other[0] > one[0]
        return tuple(jnp.where(take, new, old) for new, old in zip(other, one))

    lowest, unknown = (jnp.array(x, heights.dtype) for x in (-jnp.inf, jnp.nan))
    _, slope, offset = lax.reduce(
        (heights, slopes, offsets), (lowest, unknown, unknown), higher, (0,)
    )
    return slope, offset


@_at_highest.defjvp
def _at_highest_derivative(primals, tangents):
    # The choice of a line has no derivative. Among lines of equal height any will do.
    chosen = jnp.argmax(primals[0], axis=0)[None]
    taken = (jnp.take_along_axis(t, chosen, axis=0)[0] for t in tangents[1:])
    return _at_highest(*primals), tuple(taken)


@dataclasses.dataclass(frozen=True)
class PiecewiseLinear:
    """Define two linear pieces, which may not meet, on both sides of a breakpoint.

    Both pieces count as values at the breakpoint itself.
    """

    breakpoint: Array
    left: Line
    right: Line

    def slopes(self, interval: Interval) -> list[Array]:
        """Return the slopes of the two pieces and of the secant."""
        low, high = interval
        first, last = self._values(low)[0], self._values(high)[1]
        width = high - low
        secant = jnp.where(width > 0, (last - first) / _nonzero(width), 0)
        return [*(self._slope(piece, low) for piece in (self.left, self.right)), secant]

    def decided(self, interval: Interval) -> Array:
        """Return where only one piece meets the interval."""
        return (interval.low > self.breakpoint) | (interval.high < self.breakpoint)

    def chosen_slope(self, interval: Interval, share: Array) -> Array:
        """Return the slope that is `share` of the way from the left to the right piece.

        Where only one piece meets the interval, its own slope is returned.
        """
        low, high = interval
        left, right = (self._slope(piece, low) for piece in (self.left, self.right))
        mixed = left + share * (right - left)
        mixed = jnp.where(low >= self.breakpoint, right, mixed)
        return jnp.where(high <= self.breakpoint, left, mixed)

    def share_of(self, slope: Array, interval: Interval) -> Array:
        """Return the share for which `chosen_slope` returns this slope, within [0, 1]."""
        left, right = (self._slope(p, interval.low) for p in (self.left, self.right))
        turn = right - left
        return jnp.where(
            turn == 0, 0.5, jnp.clip((slope - left) / _nonzero(turn), 0, 1)
        )

    def extremes(self, slope: Array | float, interval: Interval) -> Interval:
        """Return bounds of f(x) - slope * x on the interval."""
        low, high = interval
        kink = jnp.clip(self.breakpoint, low, high)
        left, right = low <= self.breakpoint, high >= self.breakpoint
        # The two pieces within the interval.
        pieces = [(low, kink, self.left, left), (kink, high, self.right, right)]
        least, greatest, size = [], [], 0.0
        for first, last, piece, used in pieces:
            turned = piece.slope - slope
            begin, end = turned * first, turned * last
            below = jnp.where(turned >= 0, begin, end) + piece.offset
            above = jnp.where(turned >= 0, end, begin) + piece.offset
            least.append(jnp.where(used, below, jnp.inf))
            greatest.append(jnp.where(used, above, -jnp.inf))
            farthest = jnp.maximum(jnp.abs(first), jnp.abs(last))
            summands = jnp.abs(piece.slope) * farthest + jnp.abs(piece.offset)
            size = jnp.maximum(size, jnp.where(used, summands, 0))
        slack = _ROUNDINGS * unit_roundoff(low.dtype)
        slack = relative(slack, size + jnp.abs(slope * interval.size))
        return Interval(jnp.minimum(*least) - slack, jnp.maximum(*greatest) + slack)

    def _values(self, x):
        """Return the least and the greatest value at x, which differ at the breakpoint."""
        left, right = (
            piece.slope * x + piece.offset for piece in (self.left, self.right)
        )
        before = jnp.where(x <= self.breakpoint, left, right)
        return before, jnp.where(x >= self.breakpoint, right, left)

    @staticmethod
    def _slope(piece, like):
        return jnp.broadcast_to(jnp.asarray(piece.slope, like.dtype), like.shape)


def relu(dtype) -> PiecewiseLinear:
    """Return max(x, 0)."""
    zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
    return PiecewiseLinear(zero, Line(zero, zero), Line(one, zero))


@dataclasses.dataclass(frozen=True)
class Smooth:
    """Define a differentiable function.

    `stationary(slope)` returns all points at which f has this slope, and may return others
    and NaN. The function is defined from `lowest` on. `unit` is the size below which its
    values have an absolute error and no relative one.
    """

    value: Callable
    stationary: Callable
    lowest: float = -jnp.inf
    unit: float = 0.0
    roundings: float = _ROUNDINGS

    def slopes(self, interval: Interval) -> list[Array]:
        """Return the slope of the secant, or of the tangent at a point.

        A choice among several would be one by rounding where they are nearly as good, and
        XLA may decide it anew for the slope and for the offset.
        """
        interval = self._defined(interval)
        low, high = interval
        tangent = jax.jvp(self.value, (low,), (jnp.ones_like(low),))[1]
        tangent = jnp.where(jnp.isfinite(tangent), tangent, 0)
        width = high - low
        rise = self.value(high) - self.value(low)
        return [jnp.where(width > 0, rise / _nonzero(width), tangent)]

    def extremes(self, slope: Array | float, interval: Interval) -> Interval:
        """Return bounds of f(x) - slope * x on the interval."""
        interval = self._defined(interval)
        low, high = interval
        slope = jnp.asarray(slope, low.dtype)
        points = [low, high]
        # A line through a stationary point does not turn with it, and the roots in
        # `stationary` have derivatives that are not finite.
        for x in self.stationary(lax.stop_gradient(slope)):
            points.append(jnp.where(jnp.isnan(x), low, jnp.clip(x, low, high)))
        values = [self.value(x) for x in points]
        size = functools.reduce(jnp.maximum, map(jnp.abs, values))
        size = jnp.maximum(size, self.unit) + jnp.abs(slope) * interval.size
        slack = relative(self.roundings * unit_roundoff(low.dtype), size)
        lines = [value - slope * x for value, x in zip(values, points)]
        return Interval(
            functools.reduce(jnp.minimum, lines) - slack,
            functools.reduce(jnp.maximum, lines) + slack,
        )

    def _defined(self, interval):
        """The part of the interval where the function is defined."""
        return Interval(*(jnp.maximum(end, self.lowest) for end in interval))


def _nonzero(x):
    return jnp.where(x == 0, 1, x)


def _both(x):
    return x, -x


def _of_tanh(slope):
    # cosh(x)^2 = 1 / slope
    inverse = 1 / slope
    return _both(jnp.log(jnp.sqrt(inverse) + jnp.sqrt(inverse - 1)))


def _of_logistic(slope):
    # cosh(x) = 1 / (2 slope) - 1
    cosh = 0.5 / slope - 1
    return _both(jnp.log(cosh + jnp.sqrt(cosh - 1) * jnp.sqrt(cosh + 1)))


def _of_erf(slope):
    return _both(jnp.sqrt(-jnp.log(jnp.abs(slope) * (0.5 * jnp.pi**0.5))))


# Functions of one argument by the names of their primitives.
SMOOTH = {
    "exp": Smooth(lax.exp, lambda slope: (jnp.log(slope),)),
    "expm1": Smooth(lax.expm1, lambda slope: (jnp.log(slope),)),
    "log": Smooth(lax.log, lambda slope: (1 / slope,), lowest=0.0, unit=1.0),
    "log1p": Smooth(lax.log1p, lambda slope: (1 / slope - 1,), lowest=-1.0),
    "tanh": Smooth(lax.tanh, _of_tanh, unit=1.0),
    "logistic": Smooth(lax.logistic, _of_logistic, unit=1.0),
    "erf": Smooth(lax.erf, _of_erf, unit=1.0),
    "erfc": Smooth(lax.erfc, _of_erf, unit=1.0),
    "sqrt": Smooth(lax.sqrt, lambda slope: (jnp.square(0.5 / slope),), lowest=0.0),
    "rsqrt": Smooth(
        lax.rsqrt, lambda slope: (jnp.power(-2 * slope, -2 / 3),), lowest=0.0
    ),
    "square": Smooth(lax.square, lambda slope: (0.5 * slope,)),
}
# 1 / x for x > 0.
RECIPROCAL = Smooth(lambda x: 1 / x, lambda slope: (jnp.sqrt(-1 / slope),), lowest=0.0)


def power(exponent: int) -> Smooth:
    """Return x ** exponent for a whole exponent of 2 or more."""

    def stationary(slope):
        return _both(jnp.power(jnp.abs(slope) / exponent, 1 / (exponent - 1)))

    # Each product rounds, in the model and in the bound.
    roundings = _ROUNDINGS + 2 * exponent
    return Smooth(
        lambda x: lax.integer_pow(x, exponent), stationary, roundings=roundings
    )
