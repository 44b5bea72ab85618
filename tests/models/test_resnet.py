import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from freeadv_jax.models.resnet import (
    ResNet,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    WideResNet50x2,
)


@pytest.mark.parametrize(
    "constructor, count",
    [
        (ResNet18, 11_689_512),
        (ResNet34, 21_797_672),
        (ResNet50, 25_557_032),
        (ResNet101, 44_549_160),
        (ResNet152, 60_192_808),
        (WideResNet50x2, 68_883_240),
    ],
)
def test_resnets_have_as_many_parameters_as_those_of_torchvision(constructor, count):
    network = constructor(num_classes=1000)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda x: network.init(jax.random.key(0), x, train=False), images
    )
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves) == count


def convolution(images, kernel, stride=1):
    pad = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        ((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def normal(images, layer):
    mean, var = images.mean((0, 1, 2)), images.var((0, 1, 2))
    return (images - mean) / jnp.sqrt(var + 1e-5) * layer["scale"] + layer["bias"]


def resnet_with_one_unit_a_stage(params, images):
    def relu(x):
        return jnp.maximum(x, 0)

    x = convolution(images, params["Conv_0"]["kernel"], 2)
    x = relu(normal(x, params["BatchNorm_0"]))
    x = lax.reduce_window(
        x,
        -jnp.inf,
        lax.max,
        (1, 3, 3, 1),
        (1, 2, 2, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
    )
    for stage in range(4):
        layers = params[f"Bottleneck_{stage}"]
        stride = 2 if stage else 1
        y = convolution(x, layers["Conv_0"]["kernel"])
        y = relu(normal(y, layers["BatchNorm_0"]))
        y = convolution(y, layers["Conv_1"]["kernel"], stride)
        y = relu(normal(y, layers["BatchNorm_1"]))
        y = normal(convolution(y, layers["Conv_2"]["kernel"]), layers["BatchNorm_2"])
        x = convolution(x, layers["projection"]["kernel"], stride)
        x = relu(y + normal(x, layers["BatchNorm_3"]))
    dense = params["Dense_0"]
    return x.mean((1, 2)) @ dense["kernel"] + dense["bias"]


def test_the_network_agrees_with_a_plain_version_with_the_stride_on_the_3x3(randomized):
    network = ResNet(units=(1, 1, 1, 1), num_classes=5)
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3))
    images = jnp.asarray(images, "float32")
    variables = randomized(network, images)
    logits, _ = jax.jit(
        lambda v, x: network.apply(v, x, train=True, mutable=["batch_stats"])
    )(variables, images)
    expected = jax.jit(resnet_with_one_unit_a_stage)(variables["params"], images)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
