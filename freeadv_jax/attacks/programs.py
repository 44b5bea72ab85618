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

from freeadv_jax.devices import parallel
from freeadv_jax.devices.parallel import REPLICATED, SPLIT

# AutoAttack compiles at most 25 programs for one model and shape.
_MOST_PROGRAMS = 128


class Program(NamedTuple):
    """Hold a function over all devices with the weights of one model.

    `compiled` says whether it was compiled for this call, not found.
    """

    function: Callable
    weights: list
    compiled: bool

    def __call__(self, *arguments):
        """Run on all devices; the results are SPLIT."""
        return self.function(self.weights, *arguments)


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
    function: functools.partial, logits_fn: Callable, arguments: tuple, layout: tuple
) -> Program:
    """Return `function(logits_fn, *arguments)` as a program over all devices.

    `function` is a partial whose keywords are hashable; it returns arrays that are SPLIT.
    `layout` has REPLICATED or SPLIT for each argument.

    A callable pytree with arrays is looked up by its structure, as `jax.jit` does. Any
    other callable is traced in every call, because the arrays that it captures may have
    changed since; they become arguments of the program.
    """
    weights, model = jax.tree.flatten(logits_fn)
    hands_over_arrays = any(np.ndim(array) for array in weights)
    key = None
    if hands_over_arrays:
        arrays, structure = jax.tree.flatten((weights, arguments))
        bound = function.func, tuple(sorted(function.keywords.items()))
        key = bound, model, structure, tuple(map(_shape, arrays)), jax.devices()[0]
        if kept := _BY_STRUCTURE.find(key):
            return Program(kept, weights, compiled=False)
        flat = _from_leaves(function, model)
    else:
        # Scalars that lie on all devices would not go with the arrays of one device.
        logits_fn = parallel.fetch(logits_fn)
        weights, flat = _from_captured(function, logits_fn, arguments, layout)
        weights = parallel.place(weights, REPLICATED)

    made = parallel.spmd(
        flat, inputs=(REPLICATED, *layout), outputs=SPLIT, keep_unused=True
    )
    lowered = made.lower(weights, *arguments)
    code = lowered.as_text()
    # The code of a host callback does not say which Python function it calls.
    shareable = "callback" not in code and "host_transfer" not in code
    digest = (
        hashlib.sha256(code.encode()).digest(),
        # The code numbers the arrays; the structures say which of them are the weights.
        (lowered.in_tree, lowered.out_tree),
        jax.default_backend(),
    )
    kept = _BY_CODE.find(digest) if shareable else None
    if kept is None and shareable:
        _BY_CODE.keep(digest, made)
    if key is not None and shareable:
        _BY_STRUCTURE.keep(key, kept or made)
    return Program(kept or made, weights, compiled=kept is None)


def _from_leaves(function, model):
    """Return `function` of the leaves of a model in place of the model."""

    def flat(weights, *arguments):
        return function(jax.tree.unflatten(model, weights), *arguments)

    return flat


def _from_captured(function, logits_fn, arguments, layout):
    """Return the arrays that a model captures, and `function` of these arrays."""
    shapes = parallel.shapes_on_a_device(arguments, layout)
    bound = functools.partial(function, logits_fn)
    traced, results = jax.make_jaxpr(bound, return_shape=True)(*shapes)
    code, results = traced.jaxpr, jax.tree.structure(results)

    def flat(captured, *arguments):
        run = core.jaxpr_as_fun(core.ClosedJaxpr(code, captured))
        return jax.tree.unflatten(results, run(*jax.tree.leaves(arguments)))

    captured = [
        array if isinstance(array, jax.Array) else np.asarray(array)
        for array in traced.consts
    ]
    return captured, flat


def _shape(array):
    """Return what a program depends on: shape, type, and whether the type is weak."""
    kind = jax.typeof(array)
    return kind.shape, str(kind.dtype), kind.weak_type
