"""Estimates of what a program costs, from its equations alone.

The choices that rest on them are the same in every run: nothing is timed.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.extend import core

# Seconds of compilation for an equation, and of a run for a number that is written and for
# a product. On two cores of a CPU they were fitted to attacks on an MLP, a small CNN and a
# WRN-10-1 and are right to a factor of two.
_CPU, _ACCELERATOR = (3e-3, 2.5e-10, 2e-11), (1e-2, 1e-12, 1e-13)
# The same where XLA's CPU compiler leaves its optimisations out.
_UNOPTIMISED = (6e-4, 2e-9, 2e-11)


class Cost(NamedTuple):
    """Hold the size of a program and what one run of it computes.

    The body of a loop whose length is open counts once. `fast_in_loops` says whether a
    CPU computes the convolutions as fast inside a loop as outside (jax-ml/jax#12868).
    """

    equations: int
    numbers: float
    products: float
    fast_in_loops: bool

    def compilation(self, runs: float) -> float:
        """Return about how many seconds the compilation for so many runs takes."""
        seconds = _UNOPTIMISED if self.pays_unoptimised(runs) else _seconds()
        return self.equations * seconds[0]

    def run(self, *, scale: float = 1) -> float:
        """Return about how many seconds a run takes, for `scale` times the images."""
        return scale * self._run(_seconds())

    def pays_unoptimised(self, runs: float) -> bool:
        """Return whether compiler optimisations cost more than they save in these runs."""
        if jax.default_backend() != "cpu":
            return False
        compilation = self.equations * (_seconds()[0] - _UNOPTIMISED[0])
        return runs * (self._run(_UNOPTIMISED) - self.run()) < compilation / 2

    def _run(self, seconds):
        return self.numbers * seconds[1] + self.products * seconds[2]


def cost_of(program: core.Jaxpr) -> Cost:
    """Return the cost of a program."""
    equations, numbers, products, fast_in_loops = 0, 0.0, 0.0, True
    for equation, times in _equations(program):
        equations += 1
        written = sum(math.prod(getattr(v.aval, "shape", ())) for v in equation.outvars)
        numbers += times * written
        products += times * written * _terms(equation)
        fast_in_loops &= _is_fast_in_loops(equation)
    return Cost(equations, numbers, products, fast_in_loops)


def _seconds():
    return _CPU if jax.default_backend() == "cpu" else _ACCELERATOR


def _equations(program, times=1) -> Iterator[tuple]:
    """Yield each equation that computes, and how often it runs."""
    for equation in program.eqns:
        inner = list(core.jaxprs_in_params(equation.params))
        length = equation.params["length"] if equation.primitive.name == "scan" else 1
        for part in inner:
            part = part.jaxpr if isinstance(part, core.ClosedJaxpr) else part
            yield from _equations(part, times * length)
        if not inner:
            yield equation, times


def _terms(equation):
    """Return how many products make a number of the result."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        return math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
    # The calls of oneDNN, the only ones here: images, and a kernel whose features are last.
    if name == "ffi_call" and len(equation.invars) == 2:
        return math.prod(equation.invars[1].aval.shape[:-1])
    return 0


def _is_fast_in_loops(equation):
    """Return False for a convolution that XLA's CPU backend rewrites outside loops only."""
    if equation.primitive.name != "conv_general_dilated":
        return True
    axes = tuple(range(len(equation.outvars[0].aval.shape)))
    images = axes[0], axes[-1], *axes[1:-1]
    kernel = axes[-1], axes[-2], *axes[:-2]
    return tuple(equation.params["dimension_numbers"]) == (images, kernel, images)
