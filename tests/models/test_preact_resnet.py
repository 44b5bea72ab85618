import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from freeadv_jax.models.preact_resnet import PreActResNet, PreActResNet18


def test_preact_resnet_18_has_its_number_of_parameters():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    network = PreActResNet18(num_classes=10)
    variables = jax.eval_shape(
        lambda x: network.init(jax.random.key(0), x, train=False), images
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count == 11_172_170


def convolution(images, kernel, stride=1):
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def activated(images, scale):
    mean, var = images.mean((0, 1, 2)), images.var((0, 1, 2))
    normal = (images - mean) / jnp.sqrt(var + 1e-5)
    return jnp.maximum(normal * scale["scale"] + scale["bias"], 0)


def unit(images, params):
    """Return a unit's output; a projection takes the activated input and has stride 2."""
    stride = 2 if images.shape[-1] != params["Conv_0"]["kernel"].shape[-1] else 1
    active = activated(images, params["BatchNorm_0"])
    shortcut = images
    if "projection" in params:
        shortcut = convolution(active, params["projection"]["kernel"], stride)
    hidden = convolution(active, params["Conv_0"]["kernel"], stride)
    hidden = activated(hidden, params["BatchNorm_1"])
    return convolution(hidden, params["Conv_1"]["kernel"]) + shortcut


def plain_network(params, images):
    hidden = convolution(images, params["Conv_0"]["kernel"])
    for index in range(4):
        hidden = unit(hidden, params[f"PreActUnit_{index}"])
    pooled = activated(hidden, params["BatchNorm_0"]).mean((1, 2))
    return pooled @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


def test_the_network_agrees_with_a_plain_version_of_it(randomized):
    network = PreActResNet(4, (4, 8), units=(2, 2), num_classes=5)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), "float32")
    variables = randomized(network, images)
    params = variables["params"]
    logits, _ = jax.jit(
        lambda v, x: network.apply(v, x, train=True, mutable=["batch_stats"])
    )(variables, images)
    assert [name for name in params if "projection" in params[name]] == ["PreActUnit_2"]
    expected = jax.jit(plain_network)(params, images)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_the_dense_layer_starts_uniform_within_one_over_root_fan_in():
    network = PreActResNet(16, (256,), units=(1,), num_classes=10)

    @jax.jit
    def initial(images):
        variables = network.init(jax.random.key(0), images, train=False)
        return variables["params"]["Dense_0"]["kernel"]

    kernel = initial(jnp.ones((1, 4, 4, 3)))
    assert np.abs(kernel).max() == pytest.approx(1 / 16, rel=0.02)
