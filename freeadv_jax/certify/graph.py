"""A model as a graph of arrays: its program in JAX, read for one image.

Arrays that do not depend on the image are computed as the program says. For all others the
rules of `rules` give the arrays of `nodes`. Programs within the program, such as those of
`jax.jit`, `jax.custom_jvp` and `jax.custom_vjp`, are read in its place, and a scan is read
step by step.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.extend
import jax.numpy as jnp

from freeadv_jax.certify.nodes import Condition, Image, Node
from freeadv_jax.certify.rules import (
    NODE_RULES,
    OF_CONDITIONS,
    affine,
    evaluated,
    no_rule,
)
from freeadv_jax.errors import InputError

# Primitives that run another program once, and the parameters that may hold it.
_CALLS = {
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "call",
    "checkpoint",
    "remat",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "custom_vmap_call",
    "composite",
}
_PROGRAMS = ("jaxpr", "call_jaxpr", "fun_jaxpr", "call")


@dataclasses.dataclass(frozen=True)
class Graph:
    """Hold the arrays that the logits [k] of one image depend on, in order."""

    nodes: tuple[Node, ...]
    output: Node


def trace(logits_fn: Callable, image: jax.Array) -> Graph:
    """Return the graph of a function of images [1, h, w, c], for an image [h, w, c].

    The values of the image do not matter. Raise InputError for a primitive without a rule.
    """
    program = jax.make_jaxpr(lambda image: logits_fn(image[None])[0])(image)
    start = Image(inputs=(), shape=image.shape, dtype=image.dtype)
    (output,) = _run(program.jaxpr, program.consts, [start])
    if not isinstance(output, Node):
        raise InputError(
            "no certificate for this model: its logits do not depend on its images"
        )
    return Graph(tuple(sorted(_ancestors(output), key=lambda n: n.number)), output)


def _ancestors(output):
    found, waiting = {output}, [output]
    while waiting:
        for node in waiting.pop().inputs:
            if node not in found:
                found.add(node)
                waiting.append(node)
    return found


def _run(jaxpr, consts, arguments):
    """Return the outputs of a program, each a node, a condition or an array."""
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)

    def read(variable):
        if isinstance(variable, jax.extend.core.Literal):
            return jnp.asarray(variable.val, variable.aval.dtype)
        return values[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        outputs = _outputs(equation, inputs)
        values |= zip(equation.outvars, outputs, strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _outputs(equation, inputs):
    """Return the list of what an equation gives."""
    primitive, params = equation.primitive, equation.params
    if not _any(Node | Condition, inputs):
        found = evaluated(equation, inputs)
    elif primitive.name in _CALLS:
        return _run(*_program(params), inputs)
    elif primitive.name == "scan":
        return _scanned(params, inputs)
    elif primitive.name not in NODE_RULES:
        raise no_rule(equation)
    elif primitive.name not in OF_CONDITIONS and _any(Condition, inputs):
        raise no_rule(equation, " of a comparison")
    else:
        found = NODE_RULES[primitive.name](equation, *_constants_as_arrays(inputs))
    found = list(found) if primitive.multiple_results else [found]
    for node in found:
        _check_type(node, primitive)
    return found


def _any(kind, values):
    return any(isinstance(value, kind) for value in values)


def _constants_as_arrays(inputs):
    return [
        value if isinstance(value, Node | Condition) else jnp.asarray(value)
        for value in inputs
    ]


def _program(params):
    program = next(params[name] for name in _PROGRAMS if name in params)
    if isinstance(program, jax.extend.core.ClosedJaxpr):
        return program.jaxpr, program.consts
    return program, ()


def _check_type(node, primitive):
    if not isinstance(node, Node):
        return
    is_float = jnp.issubdtype(node.dtype, jnp.floating)
    if not is_float or jnp.finfo(node.dtype).bits < 32:
        raise InputError(
            f"no certificate for this model: {primitive.name} computes in {node.dtype}, "
            "must be float32"
        )


def _scanned(params, inputs):
    """Return the last carry and the stacked results of a scan, step by step."""
    constant, carry, sequences = _parts_of_scan(params, inputs)
    carried = len(carry)
    steps = range(params["length"])
    results = []
    for step in reversed(steps) if params["reverse"] else steps:
        here = [_entry(sequence, step) for sequence in sequences]
        outputs = _run(*_program(params), [*constant, *carry, *here])
        carry = outputs[:carried]
        results.append(outputs[carried:])
    if params["reverse"]:
        results.reverse()
    return [*carry, *map(_stacked, zip(*results))]


def _parts_of_scan(params, inputs):
    """Return the constants, the carry and the sequences among the inputs of a scan."""
    if "ft_in" in params:  # From JAX 0.12 on a tree of the inputs.
        return [list(part) for part in params["ft_in"].update(inputs).unpack()]
    first = params["num_consts"]
    last = first + params["num_carry"]
    return inputs[:first], inputs[first:last], inputs[last:]


def _entry(sequence, step):
    if not isinstance(sequence, Node):
        return sequence[step]
    return affine(
        sequence.shape[1:], sequence.dtype, lambda x: x[step], sequence, moves=True
    )


def _stacked(parts):
    nodes = [part for part in parts if isinstance(part, Node)]
    if not nodes:
        return jnp.stack(parts)

    def function(*arrays):
        arrays = iter(arrays)
        return jnp.stack(
            [next(arrays) if isinstance(part, Node) else part for part in parts]
        )

    shape = (len(parts), *nodes[0].shape)
    return affine(shape, nodes[0].dtype, function, *nodes, moves=True)
