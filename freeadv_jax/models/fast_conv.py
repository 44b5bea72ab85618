"""Fast convolutions for any model on a CPU: ours in place of `lax.conv_general_dilated`."""

import contextlib
import functools
import math
from collections.abc import Callable

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Shaped

from freeadv_jax.devices import onednn
from freeadv_jax.models.conv import convolution

# The primitives whose inner program is rewritten, and the parameter that holds it. Those with
# a gradient of their own (`custom_jvp`, `custom_vjp`) stay whole.
_INNER = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "scan": "jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "cond": "branches",
}


def with_fast_convolutions(
    function: Callable, *, kernels: str | None = "xla"
) -> Callable:
    """Return `function` with this package's convolutions, equal to rounding.

    Use it for the logits of a model written with any library, such as `flax.linen.Conv`.
    On a CPU the gradients that XLA derives for convolutions run 20 to 230 times slower
    inside a loop (jax-ml/jax#12868), as in Free-m; these do not. `kernels` is "xla",
    "onednn" or "auto", see `freeadv_jax.devices.onednn`, or None for those that are chosen
    where the function is traced. On GPU and TPU the function stays as it is.

    Two-dimensional convolutions with equal strides are replaced, in any order of axes.
    Those with groups or dilation, and those inside `while` loops or functions with a
    gradient of their own, stay. The function must be pure and may be differentiated in
    reverse mode only. Raise InputError for "onednn" where it is unavailable.
    """
    chosen = kernels and onednn.choose(kernels)

    @functools.wraps(function)
    def fast(*arguments, **keywords):
        if jax.default_backend() != "cpu":
            return function(*arguments, **keywords)
        leaves, structure = jax.tree.flatten((arguments, keywords))
        places = [place for place, leaf in enumerate(leaves) if _is_array(leaf)]

        def of_arrays(*arrays):
            filled = list(leaves)
            for place, array in zip(places, arrays, strict=True):
                filled[place] = array
            arguments, keywords = jax.tree.unflatten(structure, filled)
            return function(*arguments, **keywords)

        arrays = [leaves[place] for place in places]
        with onednn.kernels(chosen) if chosen else contextlib.nullcontext():
            program, shapes = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
            outputs = _run(program.jaxpr, program.consts, arrays)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return fast


def convolution_flop(function: Callable, *arguments) -> int:
    """Return the FLOP of all convolutions in one call; arrays may be given as shapes.

    A loop whose length is unknown counts as one pass.
    """
    with onednn.kernels(onednn.XLA):
        program = jax.make_jaxpr(function)(*arguments)
    return _flop(program.jaxpr)


def _flop(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name == "conv_general_dilated":
            kernel, outputs = (*equation.invars, *equation.outvars)[1:]
            features = kernel.aval.shape[params["dimension_numbers"].rhs_spec[0]]
            taps = math.prod(kernel.aval.shape) // max(features, 1)
            total += 2 * taps * math.prod(outputs.aval.shape)
        inner = sum(map(_flop, jax.extend.core.jaxprs_in_params(params)))
        total += inner * (params["length"] if equation.primitive.name == "scan" else 1)
    return total


def _is_array(leaf):
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def _run(jaxpr, consts, arguments):
    """Return the outputs of a program, with its convolutions replaced."""
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= zip(jaxpr.invars, arguments, strict=True)

    def read(variable):
        literal = isinstance(variable, jax.extend.core.Literal)
        return variable.val if literal else values[variable]

    for equation in jaxpr.eqns:
        inputs = [read(variable) for variable in equation.invars]
        outputs = _evaluate(equation, inputs)
        if not equation.primitive.multiple_results:
            outputs = [outputs]
        values |= zip(equation.outvars, outputs, strict=True)
    return [read(variable) for variable in jaxpr.outvars]


def _evaluate(equation, inputs):
    primitive, params = equation.primitive, dict(equation.params)
    if primitive.name == "conv_general_dilated" and _replaceable(equation):
        return _replacement(*inputs, params)
    name = _INNER.get(primitive.name)
    if name and isinstance(params[name], tuple):
        params[name] = tuple(map(_rewritten, params[name]))
    elif name:
        params[name] = _rewritten(params[name])
    with equation.ctx.manager:  # JAX's settings at the time when it was traced.
        return primitive.bind(*inputs, **primitive.get_bind_params(params))


def _rewritten(program):
    """Return a program, with or without constants of its own, rewritten likewise."""
    closed = isinstance(program, jax.extend.core.ClosedJaxpr)
    jaxpr, consts = (program.jaxpr, program.consts) if closed else (program, ())
    if not any(
        equation.primitive.name == "conv_general_dilated" and _replaceable(equation)
        for equation in _equations(jaxpr)
    ):
        return program

    def run(*arguments):
        return _run(jaxpr, consts, arguments)

    found = jax.make_jaxpr(run)(*(variable.aval for variable in jaxpr.invars))
    if closed:
        return found
    return program if found.consts else found.jaxpr


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name in _INNER:
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from _equations(inner)


def _replaceable(equation):
    params = equation.params
    images, kernel = (variable.aval for variable in equation.invars)
    same_type = params["preferred_element_type"] in (None, images.dtype)
    return (
        images.ndim == 4
        and jnp.issubdtype(images.dtype, jnp.floating)
        and images.dtype == kernel.dtype
        and same_type
        and len(set(params["window_strides"])) == 1
        and set(params["lhs_dilation"]) | set(params["rhs_dilation"]) == {1}
        and params["feature_group_count"] == params["batch_group_count"] == 1
        and min(min(pair) for pair in params["padding"]) >= 0
        and 0 not in images.shape + kernel.shape
    )


def _replacement(
    images: Shaped[Array, "..."], kernel: Shaped[Array, "..."], params: dict
) -> Shaped[Array, "..."]:
    # (batch, channels, height, width), (features, channels, ...) and the result's likewise.
    of_images, of_kernel, of_result = params["dimension_numbers"]
    outputs = convolution(
        jnp.transpose(images, [of_images[axis] for axis in (0, 2, 3, 1)]),
        jnp.transpose(kernel, [of_kernel[axis] for axis in (2, 3, 1, 0)]),
        stride=params["window_strides"][0],
        padding=tuple(tuple(map(int, pair)) for pair in params["padding"]),
    )
    places = [0, 3, 1, 2]  # Batch, features, height and width have these axes now.
    order = np.empty(4, int)
    order[list(of_result)] = places
    return lax.transpose(outputs, tuple(map(int, order)))
