import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.models.relu import leaky_relu, relu


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_negative_numbers_become_zero_and_nan_stays(dtype):
    inputs = jnp.array([-jnp.inf, -2.0, -0.0, 0.0, 1.5, jnp.inf, jnp.nan], dtype)
    outputs = relu(inputs)
    assert outputs.dtype == dtype
    expected = [0.0, 0.0, 0.0, 0.0, 1.5, np.inf, np.nan]
    np.testing.assert_array_equal(outputs.astype(jnp.float32), expected)


def test_the_gradient_equals_that_of_jax_and_is_zero_at_zero():
    inputs = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0])
    gradient = jax.vmap(jax.grad(relu))(inputs)
    np.testing.assert_array_equal(gradient, [0.0, 0.0, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(gradient, jax.vmap(jax.grad(jax.nn.relu))(inputs))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_leaky_relu_equals_that_of_jax_with_slope_a_tenth(dtype):
    inputs = jnp.array([-jnp.inf, -2.0, -0.0, 0.0, 1.5, jnp.inf, jnp.nan], dtype)
    outputs = leaky_relu(inputs)
    assert outputs.dtype == dtype
    expected = jax.nn.leaky_relu(inputs, 0.1)
    np.testing.assert_array_equal(
        outputs.astype(jnp.float32), expected.astype(jnp.float32)
    )
    gradient = jax.vmap(jax.grad(leaky_relu))(inputs.astype(jnp.float32))
    tenth = np.float32(0.1)
    np.testing.assert_array_equal(gradient, [tenth, tenth, 1, 1, 1, 1, tenth])


@pytest.mark.parametrize("rectifier, slope", [(relu, 0.0), (leaky_relu, 0.1)])
def test_a_bfloat16_gradient_is_the_float32_gradient_rounded_once(rectifier, slope):
    inputs = jnp.array([-1.0, 1.0] * 50, jnp.bfloat16)
    sent = jnp.linspace(-3, 3, 100).astype(jnp.bfloat16)
    _, back = jax.vjp(rectifier, inputs)
    (gradient,) = back(sent)
    assert gradient.dtype == jnp.bfloat16
    factors = np.where(np.asarray(inputs, np.float64) < 0, slope, 1)
    expected = (np.asarray(sent, np.float64) * factors).astype(jnp.bfloat16)
    np.testing.assert_array_equal(
        np.asarray(gradient, np.float32), np.asarray(expected, np.float32)
    )
    # The gradient is selected before it is rounded; relu.py says why.
    assert re.search(r"f32\[100\] = select_n", str(jax.make_jaxpr(back)(sent)))


@pytest.mark.parametrize("rectifier", [relu, leaky_relu])
def test_forward_and_reverse_mode_give_the_same_derivatives(rectifier):
    inputs = jnp.array([-2.0, -0.0, 0.0, 3.0])
    forward = jax.vmap(jax.jacfwd(rectifier))(inputs)
    np.testing.assert_array_equal(forward, jax.vmap(jax.grad(rectifier))(inputs))
