import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.models.relu import relu


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_negative_numbers_become_zero_and_nan_stays(dtype):
    inputs = jnp.array([-jnp.inf, -2.0, -0.0, 0.0, 1.5, jnp.inf, jnp.nan], dtype)
    outputs = relu(inputs)
    assert outputs.dtype == dtype
    expected = [0.0, 0.0, 0.0, 0.0, 1.5, np.inf, np.nan]
    np.testing.assert_array_equal(outputs.astype(jnp.float32), expected)


def test_the_gradient_is_that_of_jax_which_is_zero_at_zero():
    inputs = jnp.array([-2.0, -0.0, 0.0, 1e-30, 3.0])
    gradient = jax.vmap(jax.grad(relu))(inputs)
    np.testing.assert_array_equal(gradient, [0.0, 0.0, 0.0, 1.0, 1.0])
    np.testing.assert_array_equal(gradient, jax.vmap(jax.grad(jax.nn.relu))(inputs))
