"""The rules that turn each primitive of JAX into an array of `nodes`.

A primitive that is linear in what depends on the image needs no rule of its own for the
transpose: JAX has one. `NODE_RULES` are by the name of the primitive.
"""

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from freeadv_jax.certify.ball import Interval
from freeadv_jax.certify.curves import (
    RECIPROCAL,
    SMOOTH,
    Line,
    PiecewiseLinear,
    power,
    relu,
)
from freeadv_jax.certify.nodes import (
    Affine,
    Choice,
    Combination,
    Comparison,
    Condition,
    Elementwise,
    Largest,
    Narrower,
    Node,
    Product,
    Step,
)
from freeadv_jax.errors import InputError
from freeadv_jax.models.fast_conv import with_fast_convolutions


def evaluated(equation, inputs):
    """Return what a primitive gives for arrays: one array or a list."""
    primitive = equation.primitive
    with equation.ctx.manager:  # JAX's settings at the time when it was traced.
        return primitive.bind(*inputs, **primitive.get_bind_params(equation.params))


def no_rule(equation, why: str = "") -> InputError:
    """Return the error for a primitive that no certificate covers."""
    return InputError(
        f"no certificate for this model: there is no rule for {equation.primitive.name}{why}"
    )


def affine(
    shape: tuple[int, ...],
    dtype,
    function: Callable,
    *nodes: Node,
    absolute: Callable | None = None,
    transposed: Callable | None = None,
    terms: int = 0,
    moves: bool = False,
    rises: bool | None = None,
    step: Step | None = None,
) -> Affine:
    """Return an affine function of nodes; by default its coefficients are not negative."""

    def linear_part(*sizes):
        zeros = tuple(jnp.zeros_like(size) for size in sizes)
        return jax.jvp(function, zeros, sizes)[1]

    return Affine(
        inputs=nodes,
        shape=shape,
        dtype=dtype,
        function=function,
        absolute=absolute or linear_part,
        transposed=transposed or function,
        terms=terms + 8 if terms else 0,
        moves=moves,
        rises=absolute is None if rises is None else rises,
        step=step,
    )


def _of_equation(equation, inputs, *, output=0, **options):
    """The affine function of the nodes among `inputs` that a primitive is."""
    places = [i for i, value in enumerate(inputs) if isinstance(value, Node)]

    def function(*arrays):
        filled = list(inputs)
        for place, array in zip(places, arrays):
            filled[place] = array
        results = evaluated(equation, filled)
        return results[output] if equation.primitive.multiple_results else results

    aval = equation.outvars[output].aval
    nodes = [inputs[place] for place in places]
    return affine(aval.shape, aval.dtype, function, *nodes, **options)


def _moved(equation, *inputs):
    """Entries that only change their places; some may be repeated or left out."""
    return _of_equation(equation, inputs, terms=_copies(equation), moves=True)


def _copies(equation):
    """The most copies of an entry, or 0 where there are none."""
    before, after = (
        sum(math.prod(v.aval.shape) for v in variables)
        for variables in (equation.invars[:1], equation.outvars)
    )
    if equation.primitive.name == "gather":
        return after
    if equation.primitive.name in ("broadcast_in_dim", "tile"):
        return -(-after // max(before, 1)) if after > before else 0
    return 0


def _moved_to_several(equation, *inputs):
    return [
        _of_equation(equation, inputs, output=i, moves=True)
        for i in range(len(equation.outvars))
    ]


def _unchanged(equation, *inputs):
    return list(inputs) if equation.primitive.multiple_results else inputs[0]


def _converted(equation, value):
    aval = equation.outvars[0].aval
    if isinstance(value, Condition):
        cases = jnp.zeros(aval.shape, aval.dtype), jnp.ones(aval.shape, aval.dtype)
        return _chosen(equation, value, *cases)
    if not jnp.issubdtype(aval.dtype, jnp.floating):
        raise no_rule(equation, f" to {aval.dtype}")
    step = Step(value, jnp.ones((), aval.dtype), jnp.zeros((), aval.dtype))
    return _of_equation(equation, (value,), terms=1, moves=True, step=step)


def _summed(equation, *inputs):
    before = math.prod(equation.invars[0].aval.shape)
    after = math.prod(equation.outvars[0].aval.shape)
    return _of_equation(equation, inputs, terms=before // max(after, 1) + 1)


def _summed_in_windows(equation, *inputs):
    window = math.prod(equation.params["window_dimensions"])
    return _of_equation(equation, inputs, terms=2 * window)


def _summed_along(equation, *inputs):
    length = equation.invars[0].aval.shape[equation.params["axis"]]
    return _of_equation(equation, inputs, terms=2 * length)


def _added(equation, left, right):
    return _sum(equation, left, right, 1.0)


def _subtracted(equation, left, right):
    return _sum(equation, left, right, -1.0)


def _sum(equation, left, right, sign):
    """left + sign * right."""
    aval = equation.outvars[0].aval
    one = jnp.ones((), aval.dtype)
    step = None
    if not isinstance(right, Node):
        step = Step(left, one, sign * right)
    elif not isinstance(left, Node):
        step = Step(right, sign * one, left)

    def absolute(*sizes):
        return jnp.broadcast_to(functools.reduce(jnp.add, sizes), aval.shape)

    return _of_equation(
        equation,
        (left, right),
        absolute=absolute,
        terms=2 + _spread(aval.shape, left, right),
        moves=step is not None,
        rises=sign > 0 or not isinstance(right, Node),
        step=_same_shape(step, aval),
    )


def _negated(equation, value):
    aval = equation.outvars[0].aval
    step = Step(value, -jnp.ones((), aval.dtype), jnp.zeros((), aval.dtype))
    return _of_equation(
        equation, (value,), absolute=lambda size: size, moves=True, step=step
    )


def _multiplied(equation, left, right):
    aval = equation.outvars[0].aval
    if left is right:
        return _elementwise(SMOOTH["square"], left)
    if isinstance(left, Node) and isinstance(right, Node):
        return _product(left, right, aval)
    node, factor = (left, right) if isinstance(left, Node) else (right, left)
    return _scaled(node, factor, aval, terms=1 + _spread(aval.shape, left, right))


def _divided(equation, left, right):
    aval = equation.outvars[0].aval
    if not isinstance(right, Node):
        return _scaled(
            left, 1 / right, aval, terms=2 + _spread(aval.shape, left, right)
        )
    inverse = _elementwise(RECIPROCAL, right)
    if isinstance(left, Node):
        return _product(left, inverse, aval)
    return _scaled(inverse, left, aval, terms=2 + _spread(aval.shape, left, right))


def _scaled(node, factor, aval, *, terms):
    step = Step(node, factor, jnp.zeros((), aval.dtype))
    return affine(
        aval.shape,
        aval.dtype,
        lambda x: jnp.broadcast_to(x * factor, aval.shape),
        node,
        absolute=lambda x: jnp.broadcast_to(x * jnp.abs(factor), aval.shape),
        terms=terms,
        moves=True,
        step=_same_shape(step, aval),
    )


def _product(left, right, aval):
    inputs = tuple(_broadcast(each, aval.shape) for each in (left, right))
    return Product(inputs=inputs, shape=aval.shape, dtype=aval.dtype)


def _spread(shape, *inputs):
    """The copies of a scalar that depends on the image."""
    scalar = any(isinstance(each, Node) and each.shape == () for each in inputs)
    return math.prod(shape) if scalar else 1


def _same_shape(step, aval):
    return step if step and step.parent.shape == aval.shape else None


def _broadcast(node, shape):
    """The node itself, or a scalar repeated."""
    if node.shape == shape:
        return node
    copies = math.prod(shape)
    function = functools.partial(jnp.broadcast_to, shape=shape)
    return affine(shape, node.dtype, function, node, terms=copies, moves=True)


def _dot(equation, left, right):
    if isinstance(left, Node) and isinstance(right, Node):
        raise no_rule(equation, " of two arrays that both depend on the image")
    (of_left, of_right), (batch, other_batch) = equation.params["dimension_numbers"]
    contracted, batch = (
        (of_left, batch) if isinstance(right, Node) else (of_right, other_batch)
    )
    # The array of weights: its contracted axes, and the axes that it adds.
    shape = jnp.shape(left if isinstance(right, Node) else right)
    summed = math.prod(shape[axis] for axis in contracted)
    added = math.prod(shape) // max(
        math.prod(shape[axis] for axis in (*contracted, *batch)), 1
    )
    return _bilinear(equation, (left, right), terms=summed + added)


def _convolved(equation, images, kernel):
    if isinstance(kernel, Node):
        raise no_rule(equation, " with a kernel that depends on the image")
    features, channels, *_ = equation.params["dimension_numbers"].rhs_spec
    taps = math.prod(kernel.shape)
    terms = taps // kernel.shape[features] + taps // kernel.shape[channels]

    # The gradient that XLA derives is slow on a CPU, see `fast_conv`.
    @with_fast_convolutions
    def convolution(images, kernel):
        return evaluated(equation, (images, kernel))

    return _bilinear(
        equation,
        (images, kernel),
        terms=terms,
        transposed=lambda images: convolution(images, kernel),
    )


def _bilinear(equation, inputs, **options):
    """A product with constants in one of its inputs."""

    def absolute(size):
        sizes = [size if isinstance(each, Node) else jnp.abs(each) for each in inputs]
        return evaluated(equation, sizes)

    return _of_equation(equation, inputs, absolute=absolute, **options)


def _elementwise(curve, node):
    return Elementwise(inputs=(node,), shape=node.shape, dtype=node.dtype, curve=curve)


def _smooth(equation, node):
    return _elementwise(SMOOTH[equation.primitive.name], node)


def _raised(equation, node):
    exponent = equation.params["y"]
    if exponent == 0:
        return jnp.ones(node.shape, node.dtype)
    if abs(exponent) > 1:
        node = _elementwise(power(abs(exponent)), node)
    return _elementwise(RECIPROCAL, node) if exponent < 0 else node


def _maximum(equation, left, right):
    aval = equation.outvars[0].aval
    if isinstance(left, Node) and isinstance(right, Node):
        return _larger(left, right, aval)
    node, bound = (left, right) if isinstance(left, Node) else (right, left)
    zero, one = jnp.zeros((), aval.dtype), jnp.ones((), aval.dtype)
    curve = PiecewiseLinear(bound, Line(zero, bound), Line(one, zero))
    return _elementwise(curve, _broadcast(node, aval.shape))


def _minimum(equation, left, right):
    aval = equation.outvars[0].aval
    if isinstance(left, Node) and isinstance(right, Node):
        return _smaller(left, right, aval)
    node, bound = (left, right) if isinstance(left, Node) else (right, left)
    zero, one = jnp.zeros((), aval.dtype), jnp.ones((), aval.dtype)
    curve = PiecewiseLinear(bound, Line(one, zero), Line(zero, bound))
    return _elementwise(curve, _broadcast(node, aval.shape))


def _larger(left, right, aval):
    """The larger of two nodes, left + ReLU(right - left)."""
    left, right = (_broadcast(each, aval.shape) for each in (left, right))
    excess = _elementwise(relu(aval.dtype), _difference(right, left))
    result = affine(aval.shape, aval.dtype, jnp.add, left, excess, terms=2)

    def rule(one, other):
        return Interval(*(jnp.maximum(*ends) for ends in zip(one, other)))

    result.narrower = Narrower((left, right), rule)
    return result


def _smaller(left, right, aval):
    """The smaller of two nodes, left - ReLU(left - right)."""
    left, right = (_broadcast(each, aval.shape) for each in (left, right))
    result = _difference(left, _elementwise(relu(aval.dtype), _difference(left, right)))

    def rule(one, other):
        return Interval(*(jnp.minimum(*ends) for ends in zip(one, other)))

    result.narrower = Narrower((left, right), rule)
    return result


def _difference(left, right):
    return affine(
        left.shape, left.dtype, jnp.subtract, left, right, absolute=jnp.add, terms=2
    )


def _clamped(equation, lowest, node, highest):
    if not isinstance(node, Node) or isinstance(lowest, Node):
        raise no_rule(equation, " with bounds that depend on the image")
    return _minimum(equation, _maximum(equation, node, lowest), highest)


def _absolute_value(equation, node):
    return _two_pieces(node, Line(-1.0, 0.0), Line(1.0, 0.0))


def _sign(equation, node):
    return _two_pieces(node, Line(0.0, -1.0), Line(0.0, 1.0))


def _two_pieces(node, left, right):
    left, right = (
        Line(*(jnp.asarray(number, node.dtype) for number in piece))
        for piece in (left, right)
    )
    return _elementwise(PiecewiseLinear(jnp.zeros((), node.dtype), left, right), node)


def _largest(equation, node):
    return _largest_of(_along_first_axis(equation, node))


def _smallest(equation, node):
    return _opposite(_largest_of(_along_first_axis(equation, _opposite(node))))


def _along_first_axis(equation, node):
    axes = equation.params["axes"]
    rest = [axis for axis in range(len(node.shape)) if axis not in axes]
    shape = (-1, *(node.shape[axis] for axis in rest))

    def function(x):
        return jnp.transpose(x, (*axes, *rest)).reshape(shape)

    return _stack_of(function, node)


def _largest_in_windows(equation, node):
    return _largest_of(_taps(equation, node))


def _smallest_in_windows(equation, node):
    return _opposite(_largest_of(_taps(equation, _opposite(node))))


def _taps(equation, node):
    """The entries of each window along a new first axis.

    Pixels of the padding repeat the nearest one, which is in the same window.
    """
    params = equation.params
    if set(params["base_dilation"]) | set(params["window_dilation"]) != {1}:
        raise no_rule(equation, " with dilation")
    window, strides = params["window_dimensions"], params["window_strides"]
    after = equation.outvars[0].aval.shape
    widths = [tuple(map(int, pair)) for pair in params["padding"]]
    if any(not 0 <= w < size for pair, size in zip(widths, window) for w in pair):
        raise no_rule(equation, " with negative padding, or as wide as the window")

    def function(x):
        padded = jnp.pad(x, widths, mode="edge")
        return jnp.stack(
            [
                lax.slice(
                    padded,
                    start,
                    [
                        first + (count - 1) * stride + 1
                        for first, count, stride in zip(start, after, strides)
                    ],
                    strides,
                )
                for start in itertools.product(*map(range, window))
            ]
        )

    # A pixel at the border is repeated as often as the window is wide, along each axis.
    padded = any(map(any, widths))
    return _stack_of(function, node, copies=math.prod(window) ** (1 + padded))


def _stack_of(function, node, *, copies=0):
    shape = jax.eval_shape(function, jax.ShapeDtypeStruct(node.shape, node.dtype)).shape
    return affine(shape, node.dtype, function, node, terms=copies, moves=True)


def _largest_of(stack):
    return Largest(inputs=(stack,), shape=stack.shape[1:], dtype=stack.dtype)


def _opposite(node):
    return affine(
        node.shape,
        node.dtype,
        jnp.negative,
        node,
        absolute=lambda size: size,
        moves=True,
    )


def _compared(equation, left, right):
    name = equation.primitive.name
    if left is right:
        # A test for NaN.
        return jnp.full(left.shape, name in ("eq", "ge", "le"))
    if name in ("gt", "ge"):
        left, right = right, left
    relation = {"gt": "lt", "ge": "le", "ne": "eq"}.get(name, name)
    condition = Comparison(relation, left, right)
    return Combination("not", (condition,)) if name == "ne" else condition


def _combined(equation, *parts):
    if any(isinstance(part, Node) for part in parts):
        raise no_rule(equation)
    return Combination(equation.primitive.name, parts)


def _selected(equation, which, *cases):
    if any(isinstance(case, Condition) for case in cases):
        raise no_rule(equation, " between comparisons")
    if not isinstance(which, Condition):
        return _of_equation(equation, (which, *cases), moves=True)
    return _chosen(equation, which, *cases)


def _chosen(equation, condition, otherwise, then):
    """`then` where the condition holds, as one of the shapes that have better bounds."""
    aval = equation.outvars[0].aval
    if isinstance(condition, Comparison) and condition.relation != "eq":
        left, right = condition.left, condition.right
        if isinstance(left, Node) and isinstance(right, Node):
            if then is left and otherwise is right:
                return _smaller(left, right, aval)
            if then is right and otherwise is left:
                return _larger(left, right, aval)
        else:
            node, bound = (left, right) if isinstance(left, Node) else (right, left)
            pieces = [_piece(case, node) for case in (then, otherwise)]
            if node.shape == aval.shape and None not in pieces:
                if node is right:
                    pieces = pieces[::-1]
                return _elementwise(PiecewiseLinear(bound, *pieces), node)
    nodes = [case for case in (otherwise, then) if isinstance(case, Node)]
    return Choice(
        inputs=(*condition.inputs, *nodes),
        shape=aval.shape,
        dtype=aval.dtype,
        condition=condition,
        cases=(otherwise, then),
    )


def _piece(case, node):
    """The line that an array is of a node, entry by entry; None where it is none."""
    zero, one = jnp.zeros((), node.dtype), jnp.ones((), node.dtype)
    if not isinstance(case, Node):
        return Line(zero, case)
    slope, offset = one, zero
    while case is not node:
        step = getattr(case, "step", None)
        if step is None:
            return None
        parent, factor, shift = step
        slope, offset = slope * factor, slope * shift + offset
        case = parent
    return Line(slope, offset)


# The primitives that may be given a condition that depends on the image.
OF_CONDITIONS = {"and", "or", "not", "convert_element_type", "select_n"}

NODE_RULES: dict[str, Callable] = {
    **dict.fromkeys(
        (
            "reshape",
            "transpose",
            "broadcast_in_dim",
            "squeeze",
            "rev",
            "slice",
            "dynamic_slice",
            "dynamic_update_slice",
            "gather",
            "concatenate",
            "pad",
            "stack",
            "tile",
        ),
        _moved,
    ),
    **dict.fromkeys(("split", "unstack"), _moved_to_several),
    **dict.fromkeys(
        (
            "copy",
            "copy_p",
            "name",
            "optimization_barrier",
            "pvary",
            "sharding_constraint",
            "stop_gradient",
        ),
        _unchanged,
    ),
    **dict.fromkeys(SMOOTH, _smooth),
    **dict.fromkeys(("lt", "le", "gt", "ge", "eq", "ne"), _compared),
    **dict.fromkeys(("and", "or", "not"), _combined),
    "convert_element_type": _converted,
    "reduce_sum": _summed,
    "reduce_window_sum": _summed_in_windows,
    "cumsum": _summed_along,
    "add": _added,
    "add_any": _added,
    "sub": _subtracted,
    "neg": _negated,
    "mul": _multiplied,
    "div": _divided,
    "dot_general": _dot,
    "conv_general_dilated": _convolved,
    "integer_pow": _raised,
    "max": _maximum,
    "min": _minimum,
    "clamp": _clamped,
    "abs": _absolute_value,
    "sign": _sign,
    "reduce_max": _largest,
    "reduce_min": _smallest,
    "reduce_window_max": _largest_in_windows,
    "reduce_window_min": _smallest_in_windows,
    "select_n": _selected,
}
