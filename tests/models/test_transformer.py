import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from freeadv_jax.models.transformer import (
    Patches,
    attend,
    drop_path,
    drop_path_rates,
    gelu,
    layer_norm,
)


def test_gelu_is_the_exact_one():
    # x times the normal distribution function; the tanh form gives 0.8412 and -0.0454.
    expected = [0.8413447, -0.0455003, 0.0]
    np.testing.assert_allclose(gelu(jnp.array([1.0, -2.0, 0.0])), expected, atol=1e-6)


def test_attention_is_the_softmax_of_each_head():
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(2, 3, 2, 4))
    keys, values = rng.normal(size=(2, 2, 5, 2, 4))
    expected = np.empty((2, 3, 2, 4))
    for image in range(2):
        for head in range(2):
            scores = queries[image, :, head] @ keys[image, :, head].T / 2
            weights = np.exp(scores)
            weights /= weights.sum(axis=1, keepdims=True)
            expected[image, :, head] = weights @ values[image, :, head]
    found = attend(*(jnp.float32(each) for each in (queries, keys, values)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


class Normal(nn.Module):
    @nn.compact
    def __call__(self, hidden):
        return layer_norm(hidden, dtype=hidden.dtype)


def test_layer_norm_computes_in_float32_also_far_from_zero():
    rng = np.random.default_rng(0)
    hidden = 100 + rng.normal(size=(2, 3, 16))
    params = {"LayerNorm_0": {"scale": jnp.full(16, 2.0), "bias": jnp.full(16, 0.5)}}

    def run(dtype):
        return Normal().apply({"params": params}, jnp.asarray(hidden, dtype))

    def exact(hidden):
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
        return 2 * centred / deviation + 0.5

    np.testing.assert_allclose(run("float32"), exact(hidden), atol=1e-4)
    narrow = run("bfloat16")
    assert narrow.dtype == jnp.bfloat16
    rounded = np.asarray(jnp.asarray(hidden, "bfloat16"), np.float64)
    np.testing.assert_allclose(
        narrow.astype("float32"), exact(rounded), rtol=2**-8, atol=1e-2
    )


class Branch(nn.Module):
    rate: float

    @nn.compact
    def __call__(self, branch, train):
        return drop_path(branch, self.rate, train=train)


def test_stochastic_depth_leaves_out_whole_images_and_keeps_the_mean():
    branch = jnp.ones((4000, 2, 3))
    keys = {"dropout": jax.random.key(0)}
    trained = Branch(0.25).apply({}, branch, True, rngs=keys)
    images = np.asarray(trained).reshape(4000, -1)
    assert (images == images[:, :1]).all()
    np.testing.assert_allclose(np.unique(images), [0, 4 / 3], rtol=1e-6)
    # Three deviations of the mean of 4,000 draws.
    assert abs(images.mean() - 1) < 3 * (1 / 3 / 4000) ** 0.5
    np.testing.assert_array_equal(Branch(0.25).apply({}, branch, False), branch)
    np.testing.assert_array_equal(Branch(0.0).apply({}, branch, True), branch)


def test_the_rates_of_stochastic_depth_rise_evenly_over_the_blocks():
    rates = drop_path_rates(0.3, (1, 2, 1))
    assert [len(stage) for stage in rates] == [1, 2, 1]
    np.testing.assert_allclose(np.concatenate(rates), [0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, (1,)) == [[0.0]]


def test_patches_are_a_convolution_whose_windows_do_not_overlap():
    rng = np.random.default_rng(0)
    images = jnp.float32(rng.normal(size=(2, 8, 12, 3)))
    layer = Patches(5, 4, jnp.float32)
    kernel = jnp.float32(rng.normal(size=(4, 4, 3, 5)))
    bias = jnp.arange(5.0)
    found = layer.apply({"params": {"kernel": kernel, "bias": bias}}, images)
    expected = lax.conv_general_dilated(
        images, kernel, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found, expected + bias, atol=1e-4)
