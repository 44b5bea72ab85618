import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.errors import InputError
from freeadv_jax.models.wide_resnet import MadryWideResNet, WideResNet


def parameter_count(network):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda x: network.init(jax.random.key(0), x, train=False), images
    )
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("num_classes, count", [(10, 45_901_914), (100, 45_959_604)])
def test_the_network_of_the_paper_has_the_right_number_of_parameters(
    num_classes, count
):
    assert parameter_count(MadryWideResNet(num_classes)) == count


@pytest.mark.parametrize(
    "depth, widen_factor, count",
    [(16, 4, 2_748_890), (28, 10, 36_479_194), (34, 10, 46_160_474)],
)
def test_wide_resnets_have_the_published_numbers_of_parameters(
    depth, widen_factor, count
):
    network = WideResNet(depth=depth, widen_factor=widen_factor, num_classes=10)
    assert parameter_count(network) == count


@pytest.mark.parametrize("depth", [4, 5, 32])
def test_a_depth_that_is_not_6n_plus_4_is_refused(depth):
    with pytest.raises(InputError, match=rf"wrn-{depth}-2: the depth must be 6n \+ 4"):
        WideResNet(depth=depth, widen_factor=2, num_classes=10)


def numpy_convolution(images, kernel, stride):
    """Convolve as TensorFlow's SAME: an odd pixel of padding goes below and right."""
    size, side = kernel.shape[0], images.shape[1]
    outputs = -(-side // stride)
    total = max((outputs - 1) * stride + size - side, 0)
    pads = (total // 2, total - total // 2)
    padded = np.pad(images, ((0, 0), pads, pads, (0, 0)))
    result = np.zeros((len(images), outputs, outputs, kernel.shape[3]))
    for row in range(outputs):
        for column in range(outputs):
            top, left = row * stride, column * stride
            window = padded[:, top : top + size, left : left + size]
            result[:, row, column] = np.einsum("bhwi,hwio->bo", window, kernel)
    return result


def madry_in_numpy(variables, images, units, train):
    """Return the float64 logits of w32-10, written from its description."""

    def activated(x, path):
        scale, stats = variables["params"], variables["batch_stats"]
        for name in path:
            scale, stats = scale[name], stats[name]
        mean, var = stats["mean"], stats["var"]
        if train:
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        x = (x - mean) / np.sqrt(var + 1e-3) * scale["scale"] + scale["bias"]
        return np.where(x < 0, 0.1 * x, x)

    params = variables["params"]
    x = numpy_convolution(images, params["Conv_0"]["kernel"], 1)
    for index in range(3 * units):
        name = f"MadryUnit_{index}"
        features = params[name]["Conv_0"]["kernel"].shape[3]
        stride = 2 if index in (units, 2 * units) else 1
        shortcut = x
        y = activated(x, (name, "BatchNorm_0"))
        if index == 0:
            shortcut = y
        y = numpy_convolution(y, params[name]["Conv_0"]["kernel"], stride)
        y = activated(y, (name, "BatchNorm_1"))
        y = numpy_convolution(y, params[name]["Conv_1"]["kernel"], 1)
        half = (features - x.shape[3]) // 2
        if half and stride == 2:
            shortcut = sum(shortcut[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
        x = y + np.pad(shortcut, ((0, 0), (0, 0), (0, 0), (half, half)))
    x = activated(x, ("BatchNorm_0",)).mean((1, 2))
    return x @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("widen_factor", [1, 2])
def test_the_network_of_the_paper_agrees_with_numpy(widen_factor, train, randomized):
    network = MadryWideResNet(7, units=2, widen_factor=widen_factor)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), "float32")
    variables = randomized(network, images)
    logits = jax.jit(
        lambda v, x: network.apply(v, x, train=train, mutable=["batch_stats"])[0]
    )(variables, images)
    expected = madry_in_numpy(
        jax.tree.map(np.float64, variables), np.float64(images), 2, train
    )
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits / scale, expected / scale, atol=2e-5)


def test_the_network_of_the_paper_starts_from_the_published_distribution():
    network = MadryWideResNet(10, units=1, widen_factor=4)

    @jax.jit
    def initial(images):
        params = network.init(jax.random.key(0), images, train=False)["params"]
        return params["Dense_0"], params["MadryUnit_2"]["Conv_1"]["kernel"]

    dense, kernel = initial(jnp.ones((1, 8, 8, 3)))
    bound = (3 / 256) ** 0.5
    assert 0.98 * bound < np.abs(dense["kernel"]).max() <= bound
    assert not dense["bias"].any()
    assert np.std(kernel) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)


def test_running_averages_move_a_tenth_of_the_way_and_only_in_training(randomized):
    network = MadryWideResNet(10, units=1, widen_factor=1)
    images = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 8, 8, 3)), "float32")
    variables = randomized(network, images)

    def averages_after(train):
        _, updates = jax.jit(
            lambda x: network.apply(variables, x, train=train, mutable=["batch_stats"])
        )(images)
        return updates["batch_stats"]

    kernel = variables["params"]["Conv_0"]["kernel"]
    stem = numpy_convolution(np.float64(images), np.float64(kernel), 1)
    before = variables["batch_stats"]
    first = before["MadryUnit_0"]["BatchNorm_0"]
    after = averages_after(train=True)["MadryUnit_0"]["BatchNorm_0"]
    for name, statistic in [("mean", stem.mean), ("var", stem.var)]:
        expected = 0.9 * np.float64(first[name]) + 0.1 * statistic((0, 1, 2))
        np.testing.assert_allclose(after[name], expected, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, averages_after(train=False), before)
