"""Programs over all devices, compiled once and kept from call to call.

Two calls share a program if they lower to the same code: the same structure of the
model, the same shapes and the same kind of attack. Weights, epsilon and the other
numbers of an attack are arguments of the program.
"""

import collections
import functools
import hashlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.extend import core

from freeadv_jax.attacks.cost import Cost, cost_of
from freeadv_jax.devices import parallel
from freeadv_jax.devices.parallel import REPLICATED, SPLIT

# AutoAttack compiles at most 25 programs for one model and shape.
_MOST_PROGRAMS = 128


class Program(NamedTuple):
    """Hold a function over all devices with the weights of one model.

    `compiled` says whether it was compiled for this call, not found. `first_choice` says
    whether it is the function asked for, not the one to take `otherwise`.
    """

    function: Callable
    weights: list
    compiled: bool
    cost: Cost
    first_choice: bool

    def __call__(self, *arguments):
        """Run on all devices; the results are SPLIT."""
        return self.function(self.weights, *arguments)


class _Traced(NamedTuple):
    """Hold a function of flat arrays as JAX traced it, and its compiled `programs`.

    The programs are by whether they are optimised.
    """

    function: Callable
    cost: Cost
    first_choice: bool
    programs: dict[bool, Callable]


class _Recent(collections.OrderedDict):
    """Keep the entries used last, at most _MOST_PROGRAMS."""

    def find(self, key):
        value = self.pop(key, None)
        if value is not None:
            self[key] = value
        return value

    def keep(self, key, value):
        self[key] = value
        while len(self) > _MOST_PROGRAMS:
            self.popitem(last=False)


# Programs by their code, and by the structures and shapes that lead to that code.
_BY_CODE, _BY_STRUCTURE = _Recent(), _Recent()


def forget_programs() -> None:
    """Drop all kept programs, so that the next calls compile their own."""
    _BY_CODE.clear()
    _BY_STRUCTURE.clear()


def find_program(
    function: functools.partial,
    logits_fn: Callable,
    arguments: tuple,
    layout: tuple,
    *,
    runs: float,
    otherwise: functools.partial | None = None,
) -> Program:
    """Return `function(logits_fn, *arguments)` as a program over all devices.

    `function` is a partial whose keywords are hashable; it returns arrays that are SPLIT.
    `layout` has REPLICATED or SPLIT for each argument. A program of few `runs` is compiled
    without optimisations where that is faster in all. `otherwise` takes the place of
    `function` if the convolutions would be slow in its loop.

    A callable pytree with arrays is looked up by its structure, as `jax.jit` does. Any
    other callable is traced in every call, because the arrays that it captures may have
    changed since; they become arguments of the program.
    """
    key, traced, weights = _find_traced(
        function, otherwise, logits_fn, arguments, layout
    )
    if key is None:
        weights = parallel.place(weights, REPLICATED)

    optimised = not traced.cost.pays_unoptimised(runs)
    good_enough = (True,) if optimised else (True, False)
    for kind in good_enough:
        if kind in traced.programs:
            found = traced.programs[kind]
            return Program(found, weights, False, traced.cost, traced.first_choice)

    made = parallel.pmap(
        traced.function,
        inputs=(REPLICATED, *layout),
        outputs=SPLIT,
        keep_unused=True,
        optimised=optimised,
    )
    lowered = made.lower(weights, *arguments)
    code = lowered.as_text()
    # The code of a host callback does not say which Python function it calls.
    shareable = "callback" not in code and "host_transfer" not in code
    kept = None
    if shareable:
        digest = (
            hashlib.sha256(code.encode()).digest(),
            # The code numbers the arrays; the structures say which of them are the weights.
            (lowered.in_tree, lowered.out_tree),
            jax.default_backend(),
        )
        by_kind = (_BY_CODE.find((*digest, kind)) for kind in good_enough)
        kept = next(filter(None, by_kind), None)
        if kept is None:
            _BY_CODE.keep((*digest, optimised), made)
        traced.programs[optimised] = kept or made
        if key is not None:
            _BY_STRUCTURE.keep(key, traced)
    compiled = kept is None
    return Program(kept or made, weights, compiled, traced.cost, traced.first_choice)


def program_cost(
    function: functools.partial,
    logits_fn: Callable,
    arguments: tuple,
    layout: tuple,
    *,
    otherwise: functools.partial | None = None,
) -> Cost:
    """Return the cost of the program that `find_program` returns for these arguments."""
    return _find_traced(function, otherwise, logits_fn, arguments, layout)[1].cost


def _find_traced(function, otherwise, logits_fn, arguments, layout):
    """Return the key of the structure, or None, the traced function and its weights."""
    weights, model = jax.tree.flatten(logits_fn)
    if not any(np.ndim(array) for array in weights):
        # Scalars that lie on all devices would not go with the arrays of one device.
        logits_fn = parallel.fetch(logits_fn)
        return None, *_traced(function, otherwise, logits_fn, arguments, layout)
    arrays, structure = jax.tree.flatten((weights, arguments))
    bound = function.func, tuple(sorted(function.keywords.items()))
    key = bound, model, structure, tuple(map(_shape, arrays)), jax.devices()[0]
    traced = _BY_STRUCTURE.find(key)
    if traced is None:
        traced, _ = _traced(function, otherwise, logits_fn, arguments, layout)
    return key, traced, weights


def _traced(function, otherwise, logits_fn, arguments, layout):
    """Return the traced function of (weights, *arguments), and the weights.

    The weights are the leaves of a model that has arrays, else the arrays that it
    captures.
    """
    shapes = parallel.shapes_on_a_device(arguments, layout)
    weights, model = jax.tree.flatten(logits_fn)
    has_arrays = any(np.ndim(array) for array in weights)
    if has_arrays:
        like = parallel.shapes_on_a_device(weights, REPLICATED)

        def bound(weights, *arguments):
            return function(jax.tree.unflatten(model, weights), *arguments)

        shapes = like, *shapes
    else:
        bound = functools.partial(function, logits_fn)
    found, results = jax.make_jaxpr(bound, return_shape=True)(*shapes)
    cost = cost_of(found.jaxpr)
    if otherwise and not cost.fast_in_loops:
        traced, weights = _traced(otherwise, None, logits_fn, arguments, layout)
        return traced._replace(first_choice=False), weights

    results = jax.tree.structure(results)
    if has_arrays:

        def flat(*arguments):
            return jax.tree.unflatten(
                results, core.jaxpr_as_fun(found)(*jax.tree.leaves(arguments))
            )

        return _Traced(flat, cost, True, {}), weights

    def flat_with_captured(captured, *arguments):
        run = core.jaxpr_as_fun(core.ClosedJaxpr(found.jaxpr, captured))
        return jax.tree.unflatten(results, run(*jax.tree.leaves(arguments)))

    captured = [
        array if isinstance(array, jax.Array) else np.asarray(array)
        for array in found.consts
    ]
    return _Traced(flat_with_captured, cost, True, {}), captured


def _shape(array):
    """Return what a program depends on: shape, type, and whether the type is weak."""
    kind = jax.typeof(array)
    return kind.shape, str(kind.dtype), kind.weak_type
