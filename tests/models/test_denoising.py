"""The denoising block agrees with a plain form of the paper's, and begins as nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.models import build_model
from freeadv_jax.models.batch_norm import BatchNorm
from freeadv_jax.models.conv import Conv
from freeadv_jax.models.denoising import Denoising


def normalize(features, *, initial_scale):
    layer = BatchNorm(epsilon=1e-5, axis_name=None, initial_scale=initial_scale)
    return layer(features, train=True)


def block(dtype):
    return Denoising(functools.partial(Conv, dtype=dtype), normalize)


def plain_block(params, features):
    """Return the block's outputs, place by place."""
    b, h, w, c = features.shape
    x = features.reshape(b, h * w, c)
    theta, phi, output = (
        params[name]["kernel"][0, 0] for name in ("theta", "phi", "output")
    )
    means = []
    for place in range(h * w):
        query = (x[:, place] @ theta)[:, None]
        scores = (query * (x @ phi)).sum(-1) / np.sqrt(c // 2)
        shares = jnp.exp(scores) / jnp.exp(scores).sum(1, keepdims=True)
        means.append((shares[..., None] * x).sum(1))
    changes = jnp.stack(means, 1) @ output
    centred = changes - changes.mean((0, 1))
    normal = centred / jnp.sqrt((centred**2).mean((0, 1)) + 1e-5)
    layer = params["BatchNorm_0"]
    return (x + normal * layer["scale"] + layer["bias"]).reshape(features.shape)


def test_outputs_and_gradients_agree_with_the_papers_formula_in_float64():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        features = jnp.array(rng.normal(size=(3, 2, 3, 6)))
        weights = jnp.array(rng.normal(size=features.shape))
        layers = block(jnp.float64)
        shapes = jax.eval_shape(lambda x: layers.init(jax.random.key(0), x), features)
        variables = jax.tree.map(lambda x: jnp.array(rng.normal(size=x.shape)), shapes)

        def ours(params, features):
            outputs, _ = layers.apply(
                variables | {"params": params}, features, mutable=["batch_stats"]
            )
            return (weights * outputs).sum()

        def theirs(params, features):
            return (weights * plain_block(params, features)).sum()

        arguments = variables["params"], features
        found, expected = (
            jax.jit(jax.value_and_grad(total, (0, 1)))(*arguments)
            for total in (ours, theirs)
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11),
            found,
            expected,
        )


def test_a_new_block_returns_its_features():
    features = jnp.array(np.random.default_rng(0).normal(size=(2, 3, 3, 8)), "float32")
    outputs, _ = block(jnp.float32).init_with_output(jax.random.key(0), features)
    np.testing.assert_array_equal(outputs, features)


@pytest.mark.parametrize(("name", "blocks"), [("wrn-10-1", 3), ("cifar-resnet-18", 4)])
def test_a_network_with_denoising_has_one_block_a_stage_and_else_the_same_arrays(
    name, blocks
):
    def shapes(name):
        model = build_model(name, num_classes=10, image_shape=(32, 32, 3))
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        variables = jax.eval_shape(
            lambda x: model.init(jax.random.key(0), x, train=False), images
        )
        return variables["params"]["network"]

    plain, denoising = shapes(name), shapes(f"{name}-denoise")
    added = denoising.keys() - plain.keys()
    assert added == {f"Denoising_{number}" for number in range(blocks)}
    assert {part: denoising[part] for part in plain} == plain
    width = [
        denoising[f"Denoising_{n}"]["output"]["kernel"].shape for n in range(blocks)
    ]
    assert sorted(width) == width
    assert width[-1][-1] == {"wrn-10-1": 64, "cifar-resnet-18": 512}[name]
