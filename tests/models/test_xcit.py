import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.models.xcit import XCiT, position_encoding


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_trains_by_free_m(dtype, free_2):
    network = XCiT(
        features=16,
        heads=2,
        num_classes=3,
        depth=1,
        strides=(1, 2, 2),
        drop_path=0.1,
        dtype=jnp.dtype(dtype),
    )
    before, after, losses = free_2(network, (8, 8, 3))
    assert np.isfinite(losses).all()
    leaves = jax.tree.leaves((after.params, after.collections))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    moved = jax.tree.map(
        lambda x, y: np.abs(x - y).max(),
        (before.params, before.collections),
        (after.params, after.collections),
    )
    params = moved[0]["network"]
    for unit in range(2):
        # A number added to all keys of a head changes no softmax.
        del params[f"ClassAttentionBlock_{unit}"]["Dense_1"]["bias"]
    assert min(jax.tree.leaves(moved)) > 0
    assert np.abs(after.delta).max() <= 8 / 255 + 1e-6
    # Steps as large as epsilon bring some pixels back to 0.
    assert np.mean(after.delta != 0) > 0.5


def test_the_position_encoding_is_that_of_the_row_then_of_the_column():
    encoding = position_encoding(4, 2)
    assert encoding.shape == (4, 2, 64)
    rows, columns = encoding[..., :32], encoding[..., 32:]
    assert (rows[:, :1] == rows).all()
    assert (columns[:1] == columns).all()
    # The first of four rows is at a quarter of the circle, the first of two columns at
    # half of it; the second period is 10,000 to the power 1 / 16.
    second = 10_000 ** (1 / 16)
    for found, angle in ((rows[0, 0], np.pi / 2), (columns[0, 0], np.pi)):
        expected = [
            np.sin(angle),
            np.cos(angle),
            np.sin(angle / second),
            np.cos(angle / second),
        ]
        np.testing.assert_allclose(found[:4], expected, atol=1e-5)


@pytest.mark.slow
def test_a_channel_without_any_signal_has_a_finite_gradient():
    network = XCiT(features=16, heads=2, num_classes=3, depth=1, strides=(2, 2))
    images = jnp.zeros((1, 8, 8, 3))
    shapes = jax.eval_shape(
        lambda: network.init(jax.random.key(0), images, train=False)
    )
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)

    def loss(params, images):
        state = variables | {"params": params}
        return jnp.sum(network.apply(state, images, train=False) ** 2)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables["params"], images)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
