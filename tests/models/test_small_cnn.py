from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.models.small_cnn import SmallCNN, _halve


@pytest.mark.parametrize(
    "batch_norm, shapes",
    [
        (False, {"Conv_0": ["bias", "kernel"]}),
        (True, {"Conv_0": ["kernel"], "BatchNorm_0": ["bias", "scale"]}),
    ],
)
def test_a_convolution_has_either_a_bias_or_batch_normalisation(batch_norm, shapes):
    network = SmallCNN(10, batch_norm, features=(4,), hidden=8)
    variables = jax.eval_shape(
        lambda x: network.init(jax.random.key(0), x, train=False),
        jnp.ones((2, 8, 8, 1)),
    )
    params = variables["params"]
    assert {name: sorted(params[name]) for name in shapes} == shapes
    assert ("BatchNorm_0" in params) == batch_norm == ("batch_stats" in variables)


def test_the_default_network_for_digits_has_53_002_parameters():
    network = SmallCNN(10, batch_norm=False)
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    variables = jax.eval_shape(
        lambda x: network.init(jax.random.key(0), x, train=False), images
    )
    convolutions = (9 * 32 + 32) + (9 * 32 * 64 + 64)
    dense = (2 * 2 * 64 * 128 + 128) + (128 * 10 + 10)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert count == convolutions + dense == 53_002


def test_pooling_keeps_the_largest_of_each_two_by_two_pixels():
    network = SmallCNN(3, batch_norm=False, features=(1,), hidden=4)
    images = jax.random.uniform(jax.random.key(0), (2, 4, 6, 1))
    initial = jax.jit(partial(network.init, train=False))
    params = initial(jax.random.key(1), images)["params"]
    identity = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1)
    params = params | {"Conv_0": {"kernel": identity, "bias": jnp.zeros(1)}}
    logits = jax.jit(partial(network.apply, train=False))({"params": params}, images)
    pooled = np.zeros((2, 2, 3))
    for row in range(2):
        for column in range(3):
            tile = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            pooled[:, row, column] = np.max(tile, axis=(1, 2, 3))
    first, second = params["Dense_0"], params["Dense_1"]
    hidden = np.maximum(pooled.reshape(2, 6) @ first["kernel"] + first["bias"], 0)
    np.testing.assert_allclose(
        logits, hidden @ second["kernel"] + second["bias"], atol=1e-5
    )


def test_the_gradient_of_pooling_goes_to_the_largest_without_a_division():
    """Dividing by the number of largest entries would not be finite if none equals the
    maximum, because the compiler rounded them in two ways."""
    images = jnp.asarray(np.random.default_rng(0).permutation(48) * 1.0).reshape(
        1, 4, 4, 3
    )

    def pooled(images):
        return jnp.sum(_halve(images))

    largest = np.repeat(np.repeat(_halve(images), 2, axis=1), 2, axis=2)
    np.testing.assert_array_equal(jax.grad(pooled)(images), images == largest)
    program = str(jax.make_jaxpr(jax.grad(pooled))(images))
    assert " select_n " in program
    assert " div " not in program
