"""A model with fast convolutions has the same results, and gradients that are fast in
loops.
"""

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from freeadv_jax.devices import onednn
from freeadv_jax.errors import InputError
from freeadv_jax.models.conv import Conv
from freeadv_jax.models.fast_conv import convolution_flop, with_fast_convolutions

KERNELS = [
    "xla",
    pytest.param(
        "onednn",
        marks=pytest.mark.skipif(
            onednn.unavailable() is not None, reason="oneDNN is unavailable"
        ),
    ),
]
# XLA's CPU backend is fast inside loops with this order of axes: NHWC, HWIO, NHWC.
FAST = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


class Network(nn.Module):
    """Every kind of convolution in Flax; those with groups or dilation cannot be
    replaced.
    """

    @nn.compact
    def __call__(self, images, *, train):
        hidden = nn.relu(nn.Conv(8, (3, 3))(images))
        hidden = nn.relu(nn.Conv(8, (3, 3), strides=(2, 2))(hidden))
        hidden = nn.relu(nn.Conv(8, (5, 3), padding=((1, 2), (0, 1)))(hidden))
        hidden = nn.remat(nn.Conv)(8, (1, 1))(hidden)
        hidden = nn.relu(nn.Conv(8, (3, 3), feature_group_count=2)(hidden))
        hidden = nn.relu(nn.Conv(8, (3, 3), kernel_dilation=(2, 2))(hidden))
        if train:
            hidden = hidden * 2
        return nn.Dense(3)(hidden.mean(axis=(1, 2)))


@pytest.fixture(scope="module")
def example():
    images = jax.random.normal(jax.random.key(1), (4, 11, 9, 3))
    variables = Network().init(jax.random.key(0), images, train=False)
    return variables, images


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def convolutions(function, *arguments):
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return [
        equation.params
        for equation in equations(jaxpr)
        if equation.primitive.name == "conv_general_dilated"
    ]


def loss(apply):
    def of(variables, images):
        return jnp.sum(jnp.sin(apply(variables, images, train=True)))

    return of


def assert_equal_to_rounding(ours, theirs):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        scale = float(np.abs(other).max())
        np.testing.assert_allclose(one, other, atol=1e-5 * scale)


@pytest.mark.parametrize("kernels", KERNELS)
def test_values_and_gradients_of_a_flax_network_do_not_change(example, kernels):
    fast = with_fast_convolutions(Network().apply, kernels=kernels)
    found, wanted = (
        jax.jit(jax.value_and_grad(loss(apply), argnums=(0, 1)))(*example)
        for apply in (fast, Network().apply)
    )
    assert_equal_to_rounding(found, wanted)


@pytest.mark.parametrize("kernels", KERNELS)
def test_values_and_gradients_inside_a_loop_do_not_change(example, kernels):
    fast = with_fast_convolutions(Network().apply, kernels=kernels)

    def looped(apply):
        def body(images, _):
            step = jax.grad(loss(apply), argnums=1)(example[0], images)
            return images + 0.1 * jnp.sign(step), None

        return jax.jit(lambda images: lax.scan(body, images, length=3)[0])

    np.testing.assert_allclose(
        looped(fast)(example[1]), looped(Network().apply)(example[1]), atol=1e-5
    )


def test_only_convolutions_with_groups_or_dilation_stay_slow_in_loops(
    example,
):
    def slow(apply):
        gradients = jax.grad(loss(apply), argnums=(0, 1))
        return [
            params
            for params in convolutions(gradients, *example)
            if params["dimension_numbers"] != FAST
        ]

    assert len(slow(Network().apply)) > len(
        slow(with_fast_convolutions(Network().apply))
    )
    for params in slow(with_fast_convolutions(Network().apply)):
        grouped = params["feature_group_count"] > 1 or params["batch_group_count"] > 1
        assert grouped or max(params["rhs_dilation"] + params["window_strides"]) > 1


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(
    "names",
    [("NCHW", "OIHW", "NCHW"), ("NHWC", "OHWI", "NCHW"), ("HWNC", "HWIO", "CHNW")],
)
def test_convolutions_with_any_order_of_axes_are_replaced(names, kernels):
    rng = np.random.default_rng(0)
    sizes = {"N": 2, "C": 3, "H": 7, "W": 8}
    of_kernel = {"O": 5, "I": 3, "H": 3, "W": 2}
    images = jnp.asarray(rng.normal(size=[sizes[a] for a in names[0]]), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=[of_kernel[a] for a in names[1]]), jnp.float32)

    def convolve(images, kernel):
        return lax.conv_general_dilated(
            images, kernel, (2, 2), ((1, 1), (0, 1)), dimension_numbers=names
        )

    fast = jax.jit(with_fast_convolutions(convolve, kernels=kernels))
    assert_equal_to_rounding(fast(images, kernel), convolve(images, kernel))


def test_convolutions_inside_scans_branches_and_vmap_are_replaced():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(3, 2, 6, 6, 4)), jnp.float32)
    kernels = jnp.asarray(rng.normal(size=(2, 3, 3, 4, 4)), jnp.float32)

    def convolve(images, kernel):
        return lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def network(images, kernels):
        def body(hidden, kernel):
            branches = (convolve, lambda x, k: -convolve(x, k))
            return lax.cond(kernel.sum() > 0, *branches, hidden, kernel), None

        return lax.scan(body, images, kernels)[0]

    def total(function):
        mapped = jax.vmap(function, (0, None))
        return lambda x, k: jnp.sum(mapped(x, k) ** 2)

    fast = with_fast_convolutions(network)
    found, wanted = (
        jax.jit(jax.grad(total(each), argnums=(0, 1)))(images, kernels)
        for each in (fast, network)
    )
    assert_equal_to_rounding(found, wanted)
    assert "custom_vjp_call" in str(jax.make_jaxpr(fast)(images[0], kernels))


def test_functions_with_a_gradient_of_their_own_are_not_changed():
    @jax.custom_vjp
    def doubled_gradient(x):
        return x

    doubled_gradient.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))
    slope = jax.grad(with_fast_convolutions(doubled_gradient))(jnp.float32(3))
    assert slope == 2


def test_unknown_kernels_are_refused():
    with pytest.raises(InputError, match="allowed: auto, xla, onednn"):
        with_fast_convolutions(lambda x: x, kernels="mkl")


def test_without_a_name_the_kernels_are_those_chosen_where_it_is_traced(example):
    fast = with_fast_convolutions(Network().apply, kernels=None)

    def calls(name):
        with onednn.kernels(name):
            jaxpr = jax.make_jaxpr(loss(fast))(*example).jaxpr
        return [e for e in equations(jaxpr) if e.primitive.name == "ffi_call"]

    assert not calls("xla")
    if onednn.unavailable() is None:
        assert calls("onednn")


@pytest.mark.parametrize("convolution", [nn.Conv, Conv])
def test_the_flop_counted_are_those_of_the_convolutions(convolution):
    class Two(nn.Module):
        @nn.compact
        def __call__(self, images):
            if convolution is Conv:
                hidden = Conv(5, 3)(images)
                return Conv(4, 1, stride=2)(hidden)
            hidden = nn.Conv(5, (3, 3), use_bias=False)(images)
            return nn.Conv(4, (1, 1), strides=(2, 2), use_bias=False)(hidden)

    images = jax.ShapeDtypeStruct((2, 8, 6, 3), jnp.float32)
    variables = jax.eval_shape(Two().init, jax.random.key(0), images)
    once = 2 * 2 * (8 * 6 * 9 * 3 * 5 + 4 * 3 * 5 * 4)
    assert convolution_flop(Two().apply, variables, images) == once

    def thrice(variables, images):
        def body(total, _):
            return total + Two().apply(variables, images).sum(), None

        return lax.scan(body, 0.0, length=3)[0]

    assert convolution_flop(thrice, variables, images) == 3 * once


def test_grouped_convolutions_count_what_their_groups_compute():
    images, kernel = (
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((1, 4, 4, 6), (3, 3, 2, 9))
    )

    def grouped(images, kernel):
        return lax.conv_general_dilated(
            images,
            kernel,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3,
        )

    assert convolution_flop(grouped, images, kernel) == 2 * 16 * 9 * 9 * 2
