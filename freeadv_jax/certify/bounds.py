"""Bounds of the arrays of one image: interval arithmetic forward, CROWN backward.

IBP (Gowal et al. 2018, "On the effectiveness of interval bound propagation") bounds each array
from the bounds of its inputs. CROWN (Zhang et al. 2018, "Efficient neural network robustness
certification with general activation functions") writes an array as an affine function of
the arrays before it, replaces each of these by its planes, and so on down to the image.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from freeadv_jax.certify.ball import Ball, Interval
from freeadv_jax.certify.graph import Graph
from freeadv_jax.certify.nodes import Affine, Elementwise, Image, Node, Relaxation
from freeadv_jax.certify.rounding import stored, total

# Bounds beyond this say nothing, and products with them would overflow.
_LARGEST = 1e30


class Bounds:
    """Hold the bounds of the arrays of a graph on a ball around one image.

    Arrays are bounded backward if `backward`, and forward otherwise. Backward bounds of an
    array are computed for `rows` of its entries at a time, and only for entries that need
    them: forward bounds of the array, from the bounds of the arrays before it, already
    decide which piece of a piecewise linear function many entries meet.
    """

    def __init__(self, graph: Graph, ball: Ball, *, backward: bool, rows: int):
        self.graph = graph
        self._ball = ball
        self._backward = backward
        self._rows = rows
        self._intervals: dict[Node, Interval] = {}
        self._sizes: dict[Node, Array] = {}
        self._relaxations: dict[Node, Relaxation] = {}
        self._forwards: dict[Node, Interval] = {}
        self._consumers: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
        for node in graph.nodes:
            for each in dict.fromkeys(node.inputs):
                self._consumers[each].append(node)
        for node in graph.nodes:
            if not backward:
                self.interval(node)
            elif not isinstance(node, Affine | Image):
                for each in node.inputs:
                    self.interval(each)

    def interval(self, node: Node) -> Interval:
        """Return the bounds of an array."""
        if node not in self._intervals:
            # Planes are chosen by comparisons of bounds, each for several uses.
            ends = (jnp.broadcast_to(x, node.shape) for x in self._interval(node))
            self._intervals[node] = Interval(*stored(*ends))
        return self._intervals[node]

    def are_finite(self) -> Bool[Array, ""]:
        """Return whether all bounds are numbers: without that, nothing is certain."""
        checks = [
            jnp.all((low <= high) & (jnp.abs(low) < _LARGEST) & (high < _LARGEST))
            for low, high in self._intervals.values()
        ]
        return jnp.all(jnp.stack(checks)) if checks else jnp.array(True)

    def lower(
        self,
        rows: Float[Array, "rows k"],
        *,
        forward: bool,
        changed: Mapping[Node, Relaxation] | None = None,
    ) -> Float[Array, " rows"]:
        """Return lower bounds of `rows` times the logits.

        With `forward` the last affine part of the model is combined with the rows, and
        bounds are those of the arrays before it. Otherwise they are traced to the image.
        `changed` replaces the planes of some arrays.
        """
        path = self._path(self.graph.output, forward=forward)
        if changed:
            path = [(node, changed.get(node, planes)) for node, planes in path]
        return self._traced(path, {self.graph.output: rows}, [])

    def piecewise(self) -> list[Elementwise]:
        """Return the piecewise linear functions, whose planes may be chosen."""
        return [
            node
            for node in self.graph.nodes
            if isinstance(node, Elementwise) and node.is_piecewise
        ]

    def _interval(self, node):
        if isinstance(node, Image):
            return self._ball.box()
        if self._backward and isinstance(node, Affine) and not node.moves:
            return self._by_rows(node)
        return _from_inputs(node, self.interval)

    def _forward(self, node):
        """Return bounds that need no backward pass beyond those that are made."""
        if node in self._intervals:
            return self._intervals[node]
        if node not in self._forwards:
            if isinstance(node, Image):
                found = self._ball.box()
            else:
                found = _from_inputs(node, self._forward)
            self._forwards[node] = found
        return self._forwards[node]

    def _undecided(self, node):
        """Return where an array needs backward bounds, bool of its shape.

        Every function of the array counts, also behind arrays that only move or scale its
        entries. A sum of several entries is bounded backward itself.
        """
        found = jnp.zeros(node.shape, bool)
        for consumer in self._consumers[node]:
            if isinstance(consumer, Affine):
                if consumer.moves:
                    outer = self._undecided(consumer).astype(node.dtype)
                    _, pull = jax.vjp(
                        consumer.absolute,
                        *(
                            jnp.zeros(each.shape, each.dtype)
                            for each in consumer.inputs
                        ),
                    )
                    for each, part in zip(consumer.inputs, pull(outer)):
                        if each is node:
                            found |= part > 0
            elif isinstance(consumer, Elementwise) and consumer.is_piecewise:
                found |= ~consumer.curve.decided(self._forward(node))
            else:
                return jnp.ones(node.shape, bool)
        return found

    def _is_exact(self, node):
        """Return whether the forward bounds of an array are the best there are.

        That holds for one sum over pixels, if the ball is a box.
        """
        return self._ball.is_box and _sums_to_image(node) <= 1

    def _by_rows(self, node):
        """Return the bounds of an array by CROWN, a few entries at a time."""
        forward = self._forward(node)
        if self._is_exact(node):
            return forward
        (_, planes), *path = self._path(node, forward=False)
        undecided = self._undecided(node).reshape(-1)
        chunks = -(-node.entries // self._rows)
        count = -(-node.entries // chunks)
        # The undecided entries come first, and a place beyond the end fills the last chunk.
        order = jnp.argsort(~undecided, stable=True).astype(jnp.int32)
        order = jnp.pad(
            order, (0, chunks * count - node.entries), constant_values=node.entries
        )
        bias, allowance = (each.reshape(-1) for each in planes.parts())

        def bound(chunk, ends):
            places = lax.dynamic_slice(order, (chunk * count,), (count,))
            rows = jax.nn.one_hot(places, node.entries, dtype=node.dtype)
            pulled = node.pulled_back(rows.reshape(count, *node.shape))
            coefficients: dict[Node, Array] = {}
            for parent, part in zip(node.inputs, pulled):
                _add(coefficients, parent, jnp.concatenate([part, -part]))
            centre, slack = bias[places], allowance[places]
            constant = jnp.concatenate([centre - slack, -centre - slack])
            found = self._traced(path, coefficients, [constant])
            found = found[:count], -found[count:]
            keep = ~undecided[places]
            return tuple(
                end.at[places].set(jnp.where(keep, end[places], new), mode="drop")
                for end, new in zip(ends, found)
            )

        filled = -(-jnp.sum(undecided) // count)
        ends = tuple(end.reshape(-1) for end in forward)
        ends = lax.fori_loop(0, filled, bound, ends)
        return Interval(*(end.reshape(node.shape) for end in ends))

    def _path(self, target, *, forward):
        """Return each array from `target` back to where bounds end, with its planes.

        Bounds end at the image, and with `forward` at all arrays that are not affine or
        have a second rule. None stands for planes there.
        """
        needed, path = {target}, []
        for node in reversed(self.graph.nodes):
            if node not in needed:
                continue
            bounded = not isinstance(node, Affine) or node.narrower
            if isinstance(node, Image) or forward and bounded:
                path.append((node, None))
            else:
                path.append((node, self._relaxation(node)))
                needed.update(node.inputs)
        return path

    def _relaxation(self, node):
        if node not in self._relaxations:
            if isinstance(node, Affine):
                found = node.relaxation(*map(self._size, node.inputs))
            else:
                found = node.relaxation(*map(self.interval, node.inputs))
            self._relaxations[node] = found
        return self._relaxations[node]

    def _size(self, node):
        """Return the largest absolute values of an array, which need not be tight."""
        if node not in self._sizes:
            if node in self._intervals or not isinstance(node, Affine):
                size = self.interval(node).size
            else:
                size = node.size(*map(self._size, node.inputs))
            self._sizes[node] = size
        return self._sizes[node]

    def _traced(self, path, coefficients, constants):
        """Return lower bounds [rows] of a sum of products with arrays, plus constants.

        `coefficients` [rows, ...] are by the array. They are traced along the path.
        """
        coefficients, constants = dict(coefficients), list(constants)
        for node, planes in path:
            if node not in coefficients:
                continue
            here = coefficients.pop(node)
            if planes is None:
                end = self._ball if isinstance(node, Image) else self.interval(node)
                constants.append(end.minimum(here))
                continue
            parts, constant = planes.backward(here)
            constants.append(constant)
            for parent, part in zip(node.inputs, parts):
                if part is not None:
                    _add(coefficients, parent, part)
        return total(jnp.stack(constants, axis=1))


def _add(coefficients, node, part):
    before = coefficients.get(node)
    coefficients[node] = part if before is None else before + part


def _from_inputs(node, interval):
    """Return the bounds of an array from those of its inputs, by its own rules."""
    found = node.interval(*map(interval, node.inputs))
    narrower = getattr(node, "narrower", None)
    if narrower:
        low, high = narrower.rule(*map(interval, narrower.inputs))
        found = Interval(jnp.maximum(low, found.low), jnp.minimum(high, found.high))
    return found


def _sums_to_image(node):
    """Return how many sums lie one after another between an array and the image."""
    if isinstance(node, Image):
        return 0
    if not isinstance(node, Affine):
        return math.inf
    return max(map(_sums_to_image, node.inputs)) + (not node.moves)
