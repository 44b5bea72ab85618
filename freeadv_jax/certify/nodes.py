"""The arrays of a model that depend on its image, each with its bounds.

An `Affine` array is an affine function of others and has no error but rounding. Every other
kind is enclosed by a `Relaxation`: planes above and below it, which hold on the intervals
of the arrays that it is computed from.
"""

import abc
import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from freeadv_jax.certify.ball import Interval
from freeadv_jax.certify.curves import Curve, Line, PiecewiseLinear, enclosing_lines
from freeadv_jax.certify.rounding import (
    gamma,
    relative,
    terms_of_total,
    total,
    unit_roundoff,
)

# A plane's coefficient is rounded a few times, and so are the parts of its offset.
_ROUNDINGS = 4
# The totals of so many arrays are added in the end.
_MOST_ARRAYS = 4096

_numbers = itertools.count()


@dataclasses.dataclass(eq=False, kw_only=True)
class Node(abc.ABC):
    """Hold one array of the model and the arrays it is computed from.

    Numbers grow in the order of computation.
    """

    inputs: tuple["Node", ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    number: int = dataclasses.field(default_factory=lambda: next(_numbers))

    @property
    def entries(self) -> int:
        return math.prod(self.shape)

    @abc.abstractmethod
    def interval(self, *bounds: Interval) -> Interval:
        """Return bounds of every entry from bounds of the inputs."""

    def rounding_of_total(self) -> float:
        """Return the relative error of a product's share in the sum over this array."""
        terms = terms_of_total(self.entries) + terms_of_total(_MOST_ARRAYS)
        return gamma(terms + _ROUNDINGS, self.dtype)


class Relaxation(abc.ABC):
    """Bound one array from below and above by affine functions of its inputs."""

    @abc.abstractmethod
    def backward(self, rows: Array) -> tuple[tuple[Array | None, ...], Array]:
        """Return coefficients [rows, ...] of each input, and constants [rows].

        The products of `rows` [rows, ...] with the array are at least those of the
        coefficients with the inputs, plus the constants. None stands for no influence.
        """


@dataclasses.dataclass(eq=False, kw_only=True)
class Image(Node):
    """Hold the image itself."""

    def interval(self, *bounds: Interval) -> Interval:
        # `Bounds` takes the ball's own box; a call of this is a fault of the interpreter.
        raise AssertionError("the ball bounds the image")


class Step(NamedTuple):
    """Say that an array is factor * parent + offset, entry by entry."""

    parent: Node
    factor: Array
    offset: Array


class Narrower(NamedTuple):
    """Hold a second rule for the bounds of an array, from bounds of other arrays."""

    inputs: tuple[Node, ...]
    rule: Callable[..., Interval]


@dataclasses.dataclass(eq=False, kw_only=True)
class Affine(Node):
    """Hold an affine function of the inputs, W x + b.

    function    the function of the input arrays
    absolute    |W| x, which may be called for x >= 0 alone
    transposed  a function equal to `function` whose gradient is W
    terms       the n of `gamma`: the products in an entry of W x, plus those in an entry of
                W's transpose times an array, plus a few; 0 where entries are only moved
    moves       whether each entry depends on one entry of the inputs
    rises       whether no entry of W is negative
    """

    function: Callable[..., Array]
    absolute: Callable[..., Array]
    transposed: Callable[..., Array]
    terms: int
    moves: bool = False
    rises: bool = False
    step: Step | None = None
    narrower: Narrower | None = None

    def bias(self) -> Array:
        """Return b."""
        return self.function(*self._zeros())

    def size(self, *sizes: Array) -> Array:
        """Return the largest absolute value of each entry, for those of the inputs."""
        return self.absolute(*sizes) + jnp.abs(self.bias())

    def slack(self, size: Array) -> Array:
        """Return the rounding of each entry, in the model and in its transpose."""
        return relative(gamma(self.terms, self.dtype), size)

    def interval(self, *bounds: Interval) -> Interval:
        # Once for the model, and once for the bound.
        slack = 2 * self.slack(self.size(*(each.size for each in bounds)))
        if self.moves:
            ends = [self.function(*each) for each in zip(*bounds)]
            if self.rises:
                return Interval(ends[0] - slack, ends[1] + slack)
            return Interval(jnp.minimum(*ends) - slack, jnp.maximum(*ends) + slack)
        middles = [each.middle for each in bounds]
        radii = [
            jnp.maximum(each.high - middle, middle - each.low)
            for each, middle in zip(bounds, middles)
        ]
        middle, radius = self.function(*middles), self.absolute(*radii)
        return Interval(middle - radius - slack, middle + radius + slack)

    def relaxation(self, *sizes: Array) -> Relaxation:
        """Return the array as planes, given the largest absolute value of each input."""
        return _Exact(self, self.bias(), self.slack(self.size(*sizes)))

    def pulled_back(self, rows: Array) -> tuple[Array, ...]:
        """Return `rows` [rows, ...] times W, for each input."""
        _, pull = jax.vjp(self.transposed, *self._zeros())
        return jax.vmap(pull)(rows)

    def _zeros(self):
        return [jnp.zeros(each.shape, each.dtype) for each in self.inputs]


@dataclasses.dataclass(frozen=True)
class _Exact(Relaxation):
    node: Affine
    bias: Array
    slack: Array

    def parts(self) -> tuple[Array, Array]:
        """Return the constant of each entry, and its allowance for rounding."""
        rounding = relative(self.node.rounding_of_total(), jnp.abs(self.bias))
        shape = self.node.shape
        return tuple(
            jnp.broadcast_to(each, shape) for each in (self.bias, self.slack + rounding)
        )

    def backward(self, rows: Array) -> tuple[tuple[Array | None, ...], Array]:
        bias, allowance = self.parts()
        constants = total(rows * bias - jnp.abs(rows) * allowance)
        return self.node.pulled_back(rows), constants


@dataclasses.dataclass(frozen=True)
class Planes(Relaxation):
    """Enclose an array entry by entry.

    `coefficients` has a pair for each input, of the planes below and above, or None. With
    `stacked` the inputs have one axis more in front. `offsets` is the pair of constants and
    `slack` the rounding of the coefficients times the inputs.
    """

    coefficients: tuple[tuple[Array, Array] | None, ...]
    offsets: tuple[Array, Array]
    slack: Array
    rounding: float
    stacked: bool = False

    def backward(self, rows: Array) -> tuple[tuple[Array | None, ...], Array]:
        up, down = jnp.maximum(rows, 0), jnp.minimum(rows, 0)
        below, above = self.offsets
        size = jnp.maximum(jnp.abs(below), jnp.abs(above))
        allowance = self.slack + relative(self.rounding, size)
        constants = total(up * below + down * above - jnp.abs(rows) * allowance)
        if self.stacked:
            up, down = up[:, None], down[:, None]
        parts = tuple(
            None if pair is None else up * pair[0] + down * pair[1]
            for pair in self.coefficients
        )
        return parts, constants


class Nonlinear(Node):
    """Hold an array that planes enclose."""

    @abc.abstractmethod
    def relaxation(self, *bounds: Interval) -> Relaxation:
        """Return planes that hold where the inputs are within bounds."""

    def planes(self, coefficients, offsets, bounds, **options) -> Planes:
        """Return planes with the rounding of each coefficient times its input."""
        slack = jnp.zeros(self.shape, self.dtype)
        for pair, interval in zip(coefficients, bounds):
            if pair is not None:
                parts = jnp.maximum(*map(jnp.abs, pair)) * interval.size
                slack += jnp.sum(parts, axis=0) if options.get("stacked") else parts
        slack = relative(_ROUNDINGS * unit_roundoff(self.dtype), slack)
        return Planes(coefficients, offsets, slack, self.rounding_of_total(), **options)


@dataclasses.dataclass(eq=False, kw_only=True)
class Elementwise(Nonlinear):
    """Hold a function of one number, applied to every entry of an array of the same shape."""

    curve: Curve

    def interval(self, *bounds: Interval) -> Interval:
        return self.curve.extremes(0.0, *bounds)

    def relaxation(self, *bounds: Interval) -> Planes:
        below, above = enclosing_lines(self.curve, *bounds)
        return self._planes(below, above, bounds)

    def starting_share(self, *bounds: Interval) -> Array:
        """Return where CROWN's line below lies between the slopes of the two pieces."""
        below, _ = enclosing_lines(self.curve, *bounds)
        return self.curve.share_of(below.slope, *bounds)

    def relaxation_with(self, share: Array, above: Line, bounds) -> Planes:
        """Return planes with a given line above, and one below of a chosen slope.

        `share` [rows, ...] is that of `PiecewiseLinear.chosen_slope`.
        """
        slope = self.curve.chosen_slope(*bounds, share)
        below = Line(slope, self.curve.extremes(slope, *bounds).low)
        return self._planes(below, above, bounds)

    @property
    def is_piecewise(self) -> bool:
        return isinstance(self.curve, PiecewiseLinear)

    def _planes(self, below, above, bounds):
        coefficients = ((below.slope, above.slope),)
        return self.planes(coefficients, (below.offset, above.offset), bounds)


@dataclasses.dataclass(eq=False, kw_only=True)
class Product(Nonlinear):
    """Hold the product of two arrays of the same shape."""

    def interval(self, *bounds: Interval) -> Interval:
        left, right = bounds
        corners = [x * y for x in left for y in right]
        slack = relative(_ROUNDINGS * unit_roundoff(self.dtype), left.size * right.size)
        low = jnp.minimum(jnp.minimum(*corners[:2]), jnp.minimum(*corners[2:]))
        high = jnp.maximum(jnp.maximum(*corners[:2]), jnp.maximum(*corners[2:]))
        return Interval(low - slack, high + slack)

    def relaxation(self, *bounds: Interval) -> Planes:
        """Return the means of the two planes below and of the two above.

        They are the planes of McCormick (1976), through three corners of the rectangle. All
        four meet in the middle, so a choice by their values there would be one by rounding,
        which XLA may decide anew for each coefficient.
        """
        left, right = bounds
        x, y = left.middle, right.middle
        slack = relative(_ROUNDINGS * unit_roundoff(self.dtype), left.size * right.size)
        below = -0.5 * (left.low * right.low + left.high * right.high)
        above = -0.5 * (left.low * right.high + left.high * right.low)
        # The middles are rounded, and the planes are moved by as much.
        slack = 4 * slack
        return self.planes(((y, y), (x, x)), (below - slack, above + slack), bounds)


@dataclasses.dataclass(eq=False, kw_only=True)
class Largest(Nonlinear):
    """Hold the largest entry along the first axis of an array."""

    def interval(self, *bounds: Interval) -> Interval:
        (entries,) = bounds
        return Interval(*(jnp.max(end, axis=0) for end in entries))

    def relaxation(self, *bounds: Interval) -> Planes:
        """Return the entry with the highest lower bound as the plane below.

        It is the plane above too where no other entry can be larger; elsewhere that is the
        largest upper bound. Both parts of a plane come of one choice: it compares bounds
        as they are stored (`rounding.stored`), with one outcome for all uses.
        """
        (entries,) = bounds
        count = entries.low.shape[0]
        best = jnp.argmax(entries.low, axis=0)
        chosen = jax.nn.one_hot(best, count, axis=0, dtype=self.dtype)
        others = jnp.max(jnp.where(chosen > 0, -jnp.inf, entries.high), axis=0)
        decided = others <= jnp.max(entries.low, axis=0)
        above = jnp.where(decided, chosen, 0)
        offset = jnp.where(decided, 0, jnp.max(entries.high, axis=0))
        return self.planes(
            ((chosen, above),), (jnp.zeros_like(offset), offset), bounds, stacked=True
        )


class Truth(NamedTuple):
    """Hold where a condition holds for all images of the ball, and where for none."""

    always: Array
    never: Array


class Condition(abc.ABC):
    """Hold an array of truth values that depends on the image, and its `inputs`."""

    inputs: tuple[Node, ...]

    @abc.abstractmethod
    def truth(self, *bounds: Interval) -> Truth:
        """Return where the condition is decided, from bounds of the inputs."""


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison(Condition):
    """Hold left < right, or another `relation`: lt, le or eq.

    One side may be an array that does not depend on the image.
    """

    relation: str
    left: Node | Array
    right: Node | Array

    @property
    def inputs(self) -> tuple[Node, ...]:
        return tuple(s for s in (self.left, self.right) if isinstance(s, Node))

    def truth(self, *bounds: Interval) -> Truth:
        bounds = list(bounds)
        left, right = (
            bounds.pop(0) if isinstance(side, Node) else Interval(side, side)
            for side in (self.left, self.right)
        )
        if self.relation == "lt":
            return Truth(left.high < right.low, left.low >= right.high)
        if self.relation == "le":
            return Truth(left.high <= right.low, left.low > right.high)
        apart = (left.high < right.low) | (left.low > right.high)
        return Truth(jnp.zeros_like(apart), apart)


@dataclasses.dataclass(frozen=True, eq=False)
class Combination(Condition):
    """Hold `and`, `or` or `not` of conditions; arrays of truth values may be among them."""

    operation: str
    parts: tuple[Condition | Array, ...]

    @property
    def inputs(self) -> tuple[Node, ...]:
        conditions = (each for each in self.parts if isinstance(each, Condition))
        return tuple(node for each in conditions for node in each.inputs)

    def truth(self, *bounds: Interval) -> Truth:
        bounds, truths = list(bounds), []
        for part in self.parts:
            if isinstance(part, Condition):
                own = [bounds.pop(0) for _ in part.inputs]
                truths.append(part.truth(*own))
            else:
                truths.append(Truth(part, ~part))
        if self.operation == "not":
            return Truth(truths[0].never, truths[0].always)
        one, other = truths
        if self.operation == "and":
            return Truth(one.always & other.always, one.never | other.never)
        return Truth(one.always | other.always, one.never & other.never)


@dataclasses.dataclass(eq=False, kw_only=True)
class Choice(Nonlinear):
    """Hold `cases[1]` where a condition holds, and `cases[0]` elsewhere.

    A case may be an array that does not depend on the image. The inputs are those of the
    condition, then the cases that do.
    """

    condition: Condition
    cases: tuple[Node | Array, Node | Array]

    def interval(self, *bounds: Interval) -> Interval:
        truth, otherwise, then = self._parts(bounds)
        low = jnp.minimum(otherwise.low, then.low)
        high = jnp.maximum(otherwise.high, then.high)
        return Interval(
            *(
                jnp.where(truth.always, own, jnp.where(truth.never, other, both))
                for own, other, both in zip(then, otherwise, (low, high))
            )
        )

    def relaxation(self, *bounds: Interval) -> Planes:
        """Return the case that is certain, and elsewhere the bounds of both cases.

        Weights and offsets come of one choice, see `Largest`.
        """
        truth, *_ = self._parts(bounds)
        undecided = ~truth.always & ~truth.never
        offsets = [jnp.where(undecided, end, 0) for end in self.interval(*bounds)]
        coefficients = [None] * len(self.condition.inputs)
        for case, certain in zip(self.cases, (truth.never, truth.always)):
            if isinstance(case, Node):
                weight = jnp.broadcast_to(certain, self.shape).astype(self.dtype)
                coefficients.append((weight, weight))
            else:
                offsets = [jnp.where(certain, case, offset) for offset in offsets]
        return self.planes(tuple(coefficients), tuple(offsets), bounds)

    def _parts(self, bounds):
        bounds = list(bounds)
        truth = self.condition.truth(*(bounds.pop(0) for _ in self.condition.inputs))
        cases = [
            bounds.pop(0) if isinstance(case, Node) else Interval(case, case)
            for case in self.cases
        ]
        return truth, *cases
