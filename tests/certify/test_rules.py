"""Every primitive with a rule is enclosed, in the forms in which frameworks write it."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enclosure import enclosure, points
from flax import linen as nn
from jax import lax

from freeadv_jax.errors import InputError
from freeadv_jax.models import pool
from freeadv_jax.models.normalized import standardize_per_image
from freeadv_jax.models.relu import leaky_relu, relu
from freeadv_jax.models.small_cnn import _halve

DRAW = np.random.default_rng(0)
SHAPE = (4, 4, 2)
IMAGES = DRAW.random((3, *SHAPE), np.float32)
MIX = DRAW.normal(size=(32, 5)).astype(np.float32)
KERNEL = DRAW.normal(size=(3, 3, 2, 4)).astype(np.float32)
GROUPED = DRAW.normal(size=(3, 3, 1, 4)).astype(np.float32)
EPSILONS = (0.0, 0.03, 0.4)


def mixed(images):
    """Return five numbers on both sides of zero."""
    return (images - 0.5).reshape(len(images), -1) @ (0.5 * MIX)


def positive(images):
    """Return five numbers above 0.1."""
    return 0.1 + images.reshape(len(images), -1) @ jnp.abs(0.2 * MIX)


def convolution(images, kernel=KERNEL, strides=(1, 1), padding="SAME", **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    options = {"dimension_numbers": numbers} | options
    return lax.conv_general_dilated(images, kernel, strides, padding, **options)


def of_channels_first(images):
    images = jnp.moveaxis(images, -1, 1)
    kernel = jnp.transpose(KERNEL, (3, 2, 0, 1))
    return lax.conv_general_dilated(images, kernel, (2, 1), [(1, 0), (0, 2)])


def scanned(images):
    def step(carry, row):
        carry = jax.nn.relu(carry + row)
        return carry, 2 * carry

    last, rows = lax.scan(step, images[:, 0], jnp.moveaxis(images - 0.5, 1, 0))
    return jnp.concatenate(
        [last.reshape(len(images), -1), rows[1].reshape(len(images), -1)], 1
    )


def scanned_backwards(images):
    return lax.scan(
        lambda c, w: (c * w, c), images[:, 0], jnp.arange(3.0), reverse=True
    )[1][2]


@jax.custom_vjp
def with_own_gradient(x):
    return jnp.maximum(x, 0.2)


with_own_gradient.defvjp(lambda x: (x, None), lambda _, cotangent: (cotangent,))


LINEAR = {
    "reshape, transpose, reverse": lambda x: jnp.flip(
        jnp.transpose(x, (0, 3, 2, 1)), 2
    ),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=0.3),
    "slice": lambda x: x[:, 1:4:2, ::-1],
    "gather": lambda x: x[:, jnp.array([3, 0, 0])],
    "dynamic slice": lambda x: lax.dynamic_slice_in_dim(x, jnp.int32(1), 2, axis=1),
    "update": lambda x: lax.dynamic_update_slice(x, 2 * x[:, :1], (0, 2, 0, 0)),
    "concatenate": lambda x: jnp.concatenate([x, -x[:, :1], jnp.ones_like(x)], 1),
    "stack, split": lambda x: jnp.stack(jnp.split(x, 2, axis=1)[::-1], axis=1),
    "broadcast": lambda x: jnp.broadcast_to(x[:, :, :1], x.shape) - x,
    "tile": lambda x: jnp.tile(x, (1, 2, 1, 1)),
    "sum, mean": lambda x: x.sum((1, 2)) - x.mean((2, 3))[:, :2],
    "cumulative sum": lambda x: jnp.cumsum(x, axis=1),
    "arithmetic": lambda x: (
        (3 - 2 * x) / 4 + x * KERNEL[0, 0, 0, 0] - x / KERNEL[1, 1, 0, 0]
    ),
    "twice itself": lambda x: x + x,
    "by a scalar of the image": lambda x: x - x[:, 0, 0, 0].reshape(-1, 1, 1, 1),
    "dense": lambda x: x.reshape(len(x), -1) @ MIX + MIX[0],
    "matrix first": lambda x: jnp.einsum("kd,bd->bk", MIX.T, x.reshape(len(x), -1)),
    "batched product": lambda x: jnp.einsum(
        "bhwc,hcd->bhwd", x, KERNEL[0, :2].repeat(2, 0)
    ),
    "convolution": convolution,
    "strides": lambda x: convolution(x, strides=(2, 2)),
    "uneven strides": of_channels_first,
    "dilation": lambda x: convolution(x, rhs_dilation=(2, 2)),
    "transposed": lambda x: convolution(
        x, lhs_dilation=(2, 2), padding=((1, 2), (0, 1))
    ),
    "groups": lambda x: convolution(x, GROUPED, feature_group_count=2),
    "average pooling": lambda x: (
        lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    ),
    "overlapping": lambda x: nn.avg_pool(
        x, (3, 3), (1, 1), padding="SAME", count_include_pad=False
    ),
    "masked": lambda x: jnp.where(
        KERNEL[0, 0, 0, 0] > 0, x, jnp.where(MIX[0, 0] > 0, -x, 1)
    ),
    "stopped gradient": lambda x: lax.stop_gradient(x) * 2,
    "checkpoint, jit": lambda x: jax.checkpoint(jax.jit(lambda y: y - 1))(x),
    "scan of multiples": scanned_backwards,
}
PIECEWISE = {
    "jax.nn.relu": lambda x, z, p: jax.nn.relu(z),
    "own relu": lambda x, z, p: relu(z),
    "own leaky relu": lambda x, z, p: leaky_relu(z),
    "maximum": lambda x, z, p: jnp.maximum(0.3, z),
    "minimum": lambda x, z, p: jnp.minimum(z, MIX[0]),
    "where above": lambda x, z, p: jnp.where(z > 0, z, 0),
    "shared where": lambda x, z, p: jnp.where(z > 0, z, -0.2 * z + 0),
    "where below": lambda x, z, p: jnp.where(0.1 >= z, 0.1, z),
    "two slopes": lambda x, z, p: jnp.where(z < 0.2, z / 4, 2 * z - 0.3),
    "jump": lambda x, z, p: jnp.where(z <= 0.2, z + 1, -z),
    "jax.nn.leaky_relu": lambda x, z, p: jax.nn.leaky_relu(z, 0.3),
    "relu6": lambda x, z, p: jax.nn.relu6(4 * z),
    "hard_tanh": lambda x, z, p: jax.nn.hard_tanh(z),
    "clip": lambda x, z, p: jnp.clip(z, -0.4, 0.5),
    "clamp": lambda x, z, p: lax.clamp(-0.4, z, 0.5),
    "abs": lambda x, z, p: jnp.abs(z),
    "sign": lambda x, z, p: jnp.sign(z),
    "step": lambda x, z, p: (z > 0).astype(jnp.float32),
    "own gradient": lambda x, z, p: with_own_gradient(z),
    "scan": lambda x, z, p: scanned(x),
    "larger of two": lambda x, z, p: jnp.maximum(z[:, :2], z[:, 2:4]),
    "smaller of two": lambda x, z, p: jnp.minimum(z[:, :2], z[:, 2:4]),
    "halves": lambda x, z, p: _halve(x),
    "max pooling": lambda x, z, p: nn.max_pool(x, (2, 2), (2, 2)),
    "padded max pooling": lambda x, z, p: nn.max_pool(
        x, (3, 3), (2, 2), padding="SAME"
    ),
    "own max pooling": lambda x, z, p: pool.max_pool(x, window=2, stride=2, padding=0),
    "min pooling": lambda x, z, p: lax.reduce_window(
        x, jnp.inf, lax.min, (1, 2, 2, 1), (1, 1, 1, 1), "VALID"
    ),
    "largest": lambda x, z, p: x.max((1, 3)) + x.min((1, 3)),
}
SMOOTH = {
    "exp": lambda x, z, p: jnp.exp(z) + jnp.expm1(z),
    "log": lambda x, z, p: jnp.log(p) + jnp.log1p(p),
    "tanh": lambda x, z, p: jnp.tanh(2 * z),
    "sigmoid": lambda x, z, p: jax.nn.sigmoid(3 * z),
    "softplus": lambda x, z, p: jax.nn.softplus(z),
    "square": lambda x, z, p: jnp.square(z) + z * z,
    "powers": lambda x, z, p: z**3 - z**4 + 0.1 * p**-2,
    "roots": lambda x, z, p: jnp.sqrt(p) + lax.rsqrt(p),
    "product": lambda x, z, p: z[:, :2] * z[:, 2:4],
    "quotient": lambda x, z, p: z / p + 0.3 / p,
    "silu": lambda x, z, p: jax.nn.silu(z),
    "gelu": lambda x, z, p: jax.nn.gelu(z) + jax.nn.gelu(z, approximate=False),
    "elu": lambda x, z, p: jax.nn.elu(z),
    "choice": lambda x, z, p: jnp.where(z[:, :2] < z[:, 2:4], z[:, :2] ** 2, 0.5),
    "conditions": lambda x, z, p: jnp.where(
        (z > 0) & ~(z > 0.5) | jnp.isnan(z), jnp.exp(z), 0.1 * z
    ),
    "standardised": lambda x, z, p: 0.1 * standardize_per_image(x),
}


def outputs(forms):
    """Return all forms as one function of images: each gives two numbers.

    Forms that are not linear are also given numbers on both sides of zero, and above it.
    """

    def function(images):
        found = []
        shared = () if forms is LINEAR else (mixed(images), positive(images))
        for name, form in forms.items():
            flat = form(images, *shared).reshape(len(images), -1)
            draw = np.random.default_rng(zlib.crc32(name.encode()))
            weights = draw.normal(size=(flat.shape[1], 2)).astype(np.float32)
            found.append(flat @ weights)
        return jnp.concatenate(found, axis=1)

    return function


FUNCTIONS = {
    kind: (outputs(forms), [name for name in forms for _ in range(2)])
    for kind, forms in {
        "linear": LINEAR,
        "piecewise": PIECEWISE,
        "smooth": SMOOTH,
    }.items()
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "backward", "norm"),
    [
        ("piecewise", True, "linf"),
        ("smooth", False, "linf"),
        ("smooth", True, "l2"),
    ],
)
def test_no_point_of_the_ball_lies_outside_the_bounds(kind, backward, norm):
    function, names = FUNCTIONS[kind]
    radii = np.float32(EPSILONS) if norm == "linf" else 2 * np.float32(EPSILONS)
    images = IMAGES.repeat(len(radii), axis=0)
    epsilons = np.tile(radii, len(IMAGES))
    low, high, finite = enclosure(
        function, images, epsilons, norm=norm, backward=backward
    )
    values = jax.jit(function)
    for row, (image, epsilon) in enumerate(zip(images, epsilons)):
        inside = points(image, epsilon, norm=norm, count=200, seed=row)
        found = np.asarray(values(inside))
        known = finite[row] & np.ones(len(names), bool)
        outside = (found < low[row]).any(0) | (found > high[row]).any(0)
        assert not [n for n, bad in zip(names, outside & known) if bad], epsilon
        if epsilon == 0:
            wide = np.asarray(high[row] - low[row]) > 1e-2 * (1 + np.abs(found[0]))
            assert not [n for n, bad in zip(names, wide) if bad]
    assert finite.reshape(len(IMAGES), -1)[:, :2].all()


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf"])
def test_crown_is_exact_for_affine_functions(norm):
    function, names = FUNCTIONS["linear"]
    epsilon = np.float32(0.05)
    grey = np.full((1, *SHAPE), 0.5, np.float32)
    low, high, _ = enclosure(function, grey, epsilon[None], norm=norm, backward=True)
    slopes = jax.jacobian(lambda x: function(x)[0])(grey).reshape(len(names), -1)
    size = np.linalg.norm(slopes, 1 if norm == "linf" else 2, axis=1)
    known = np.array(["stopped" not in n for n in names])
    exact = np.asarray(function(grey))[0]
    np.testing.assert_allclose((low[0] + high[0]) / 2, exact, atol=1e-4)
    np.testing.assert_allclose(
        ((high - low)[0] / 2)[known], epsilon * size[known], rtol=1e-3, atol=1e-4
    )


def attention(images):
    rows = images[..., 0]
    return (rows @ rows).reshape(len(images), -1)


def with_a_loop(images):
    return lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, images).sum((1, 2))


REFUSED = {
    "sort": (lambda x: jnp.sort(mixed(x)), "there is no rule for sort"),
    "sine": (lambda x: jnp.sin(mixed(x)), "there is no rule for sin"),
    "attention": (attention, "dot_general of two arrays that both depend on the image"),
    "loop": (with_a_loop, "there is no rule for while"),
    "rounding": (lambda x: jnp.round(mixed(x)), "there is no rule for round"),
    "integers": (
        lambda x: mixed(x).astype(jnp.int32).astype(jnp.float32),
        "convert_element_type to int32",
    ),
    "half precision": (
        lambda x: mixed(x.astype(jnp.bfloat16).astype(jnp.float32)),
        "convert_element_type computes in bfloat16, must be float32",
    ),
    "dilated pooling": (
        lambda x: lax.reduce_window(
            x,
            -jnp.inf,
            lax.max,
            (1, 2, 2, 1),
            (1, 1, 1, 1),
            "VALID",
            None,
            (1, 2, 2, 1),
        ).reshape(len(x), -1),
        "reduce_window_max with dilation",
    ),
    "pooling in padding alone": (
        lambda x: lax.reduce_window(
            x,
            -jnp.inf,
            lax.max,
            (1, 2, 2, 1),
            (1, 1, 1, 1),
            ((0, 0), (2, 0), (0, 0), (0, 0)),
        ).reshape(len(x), -1),
        "reduce_window_max with negative padding, or as wide as the window",
    ),
    "counted comparisons": (
        lambda x: jnp.sum(mixed(x) > 0, axis=-1, keepdims=True).astype(jnp.float32),
        "computes in int32, must be float32",
    ),
    "a constant": (lambda x: jnp.ones((len(x), 3)), "do not depend on its images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_primitive_without_a_rule_is_named_in_one_line(case):
    function, message = REFUSED[case]
    with pytest.raises(InputError) as refused:
        enclosure(
            function, IMAGES[:1], np.zeros(1, np.float32), norm="linf", backward=False
        )
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
