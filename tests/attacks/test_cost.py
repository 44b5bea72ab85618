"""The estimates by which batches move and optimisations are left out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.cost import Cost, cost_of
from freeadv_jax.attacks.programs import find_program, forget_programs
from freeadv_jax.devices import parallel
from freeadv_jax.devices.parallel import SPLIT
from freeadv_jax.models.conv import convolution


def cost(function, *shapes):
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return cost_of(jax.make_jaxpr(function)(*arrays).jaxpr)


def test_products_are_counted_in_matrices_convolutions_and_scans():
    assert cost(jnp.matmul, (3, 4), (4, 5)).products == 3 * 4 * 5
    conv = functools.partial(convolution, stride=2, padding="SAME")
    assert cost(conv, (2, 8, 8, 3), (3, 3, 3, 7)).products == 2 * 4 * 4 * 7 * 27

    def scanned(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=6)[0]

    assert cost(scanned, (5, 5)).products == 6 * 125


def test_the_body_of_an_open_loop_counts_once():
    def looped(x):
        return jax.lax.fori_loop(0, jnp.int32(x[0, 0]), lambda _, x: x @ x, x)

    assert cost(looped, (5, 5)).products == 125


@pytest.mark.parametrize("ours", [True, False])
def test_gradients_of_convolutions_are_fast_in_loops_if_the_convolution_is_ours(ours):
    def plain(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    conv = functools.partial(convolution, stride=1, padding="SAME") if ours else plain
    shapes = (2, 8, 8, 8), (3, 3, 8, 8)
    assert cost(conv, *shapes).fast_in_loops
    gradient = jax.grad(lambda *given: conv(*given).sum())
    assert cost(gradient, *shapes).fast_in_loops == ours


def test_a_forward_pass_in_the_axes_of_pytorch_is_slow_in_loops():
    def nchw(images, kernel):
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW")
        )

    assert not cost(nchw, (2, 3, 8, 8), (4, 3, 3, 3)).fast_in_loops


def test_optimisations_are_left_out_for_few_runs_of_small_programs():
    small, large = Cost(300, 1e4, 1e5, True), Cost(300, 1e8, 1e9, True)
    assert small.pays_unoptimised(1000)
    assert not small.pays_unoptimised(100_000)
    assert not large.pays_unoptimised(10)


def halved(logits_fn, images):
    return logits_fn(images / 2)


def test_a_program_of_more_runs_is_compiled_again_and_kept_for_fewer():
    forget_programs()
    model = jax.tree_util.Partial(lambda w, x: jnp.tanh(x @ w), np.eye(4, dtype="f4"))
    images = np.ones((8, 4), np.float32)
    arguments = (parallel.place(images, SPLIT),)
    found = [
        find_program(functools.partial(halved), model, arguments, (SPLIT,), runs=runs)
        for runs in (1, 1, 1e9, 1, 1e9)
    ]
    assert [program.compiled for program in found] == [True, False, True, False, False]
    assert found[3].function is found[2].function
    for program in found:
        np.testing.assert_allclose(program(*arguments), np.tanh(images / 2), rtol=1e-6)
