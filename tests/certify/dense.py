"""The networks of the tests as models in JAX and as dense layers for the oracle."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from oracle import Affine, ReLU, convolution_matrix, pooling_matrix

from freeadv_jax.models.preact_resnet import PreActResNet

ONE = ((1, 1), (1, 1))
# Flax's avg_pool divides by an integer, which strict dtypes refuse.
WINDOW = (1, 2, 2, 1)


class CNN(nn.Module):
    """Two convolutions and two dense layers."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3), (2, 2), padding=ONE)(x))
        x = nn.relu(nn.Conv(4, (3, 3), padding=ONE)(x))
        x = nn.relu(nn.Dense(8)(x.reshape(len(x), -1)))
        return nn.Dense(3)(x)


class Pooled(nn.Module):
    """Convolutions with average pooling between them, and a mean in the end."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3), padding=ONE)(x))
        x = lax.reduce_window(x, 0.0, lax.add, WINDOW, WINDOW, "VALID") / 4
        x = nn.relu(nn.Conv(4, (3, 3), padding=ONE)(x))
        return nn.Dense(3)(x.mean((1, 2)))


RESIDUAL = PreActResNet(stem_features=3, features=(3, 4), units=(1, 1), num_classes=3)
MODULES = {"cnn": CNN(), "pooled": Pooled(), "residual": RESIDUAL}
SHAPE = (6, 6, 2)


def drawn(kind, seed):
    """Return the variables of a network with random statistics of normalisation."""
    options = {"train": False} if kind == "residual" else {}
    images = jnp.zeros((1, *SHAPE))
    variables = MODULES[kind].init(jax.random.key(seed), images, **options)
    draw = np.random.default_rng(seed)

    def random(path, array):
        name = path[-1].key
        if name in ("bias", "mean"):
            return jnp.asarray(0.1 * draw.normal(size=array.shape), array.dtype)
        if name in ("scale", "var"):
            return jnp.asarray(draw.uniform(0.5, 1.5, array.shape), array.dtype)
        return array

    return jax.tree_util.tree_map_with_path(random, variables)


def logits_function(kind, variables):
    """Return the network as a pytree of its variables."""
    return jax.tree_util.Partial(APPLY[kind], variables)


APPLY = {
    "cnn": lambda variables, x: MODULES["cnn"].apply(variables, x),
    "pooled": lambda variables, x: MODULES["pooled"].apply(variables, x),
    "residual": lambda variables, x: RESIDUAL.apply(variables, x, train=False),
}


def layers(kind, variables):
    """Return the layers of a network for the oracle."""
    variables = jax.tree.map(lambda array: np.asarray(array, np.float64), variables)
    return {"cnn": _cnn, "pooled": _pooled, "residual": _residual}[kind](variables)


def _convolution(weights, shape, stride=1, padding=ONE):
    matrix, after = convolution_matrix(
        weights["kernel"], shape, stride=stride, padding=padding
    )
    bias = np.tile(
        weights.get("bias", np.zeros(after[-1])), matrix.shape[0] // after[-1]
    )
    return matrix, bias, after


def _cnn(variables):
    weights = variables["params"]
    first, bias1, shape = _convolution(weights["Conv_0"], SHAPE, 2)
    second, bias2, _ = _convolution(weights["Conv_1"], shape)
    third, fourth = weights["Dense_0"], weights["Dense_1"]
    return [
        Affine({0: first}, bias1),
        ReLU(1),
        Affine({2: second}, bias2),
        ReLU(3),
        Affine({4: third["kernel"].T}, third["bias"]),
        ReLU(5),
        Affine({6: fourth["kernel"].T}, fourth["bias"]),
    ]


def _pooled(variables):
    weights = variables["params"]
    first, bias1, shape = _convolution(weights["Conv_0"], SHAPE)
    pool, pooled = pooling_matrix(shape, 2)
    second, bias2, after = _convolution(weights["Conv_1"], pooled)
    dense = weights["Dense_0"]
    return [
        Affine({0: first}, bias1),
        ReLU(1),
        Affine({2: pool}, np.zeros(len(pool))),
        Affine({3: second}, bias2),
        ReLU(4),
        Affine({5: _mean(after)}, np.zeros(after[-1])),
        Affine({6: dense["kernel"].T}, dense["bias"]),
    ]


def _mean(shape):
    pixels = shape[0] * shape[1]
    return np.tile(np.eye(shape[-1]), (1, pixels)) / pixels


def _residual(variables):
    weights, statistics = variables["params"], variables["batch_stats"]

    def normalised(source, scope, name, size):
        own = weights[scope][name] if scope else weights[name]
        seen = statistics[scope][name] if scope else statistics[name]
        scale = own["scale"] / np.sqrt(seen["var"] + 1e-5)
        bias = own["bias"] - seen["mean"] * scale
        copies = size // len(scale)
        return Affine({source: np.diag(np.tile(scale, copies))}, np.tile(bias, copies))

    stem, _, shape = _convolution(weights["Conv_0"], SHAPE)
    found = [Affine({0: stem}, np.zeros(len(stem)))]
    for index, stride in enumerate((1, 2)):
        scope = f"PreActUnit_{index}"
        unit = weights[scope]
        before, size = len(found), np.prod(shape)
        found += [normalised(before, scope, "BatchNorm_0", size), ReLU(before + 1)]
        active = before + 2
        first, bias, after = _convolution(unit["Conv_0"], shape, stride)
        found += [Affine({active: first}, bias)]
        found += [normalised(before + 3, scope, "BatchNorm_1", len(bias))]
        found += [ReLU(before + 4)]
        second, bias, after = _convolution(unit["Conv_1"], after)
        shortcut = {before: np.eye(len(bias))}
        if "projection" in unit:
            zero = ((0, 0), (0, 0))
            projection = _convolution(unit["projection"], shape, stride, zero)[0]
            # A branch of its own, as the network adds it.
            found += [Affine({active: projection}, np.zeros(len(bias)))]
            shortcut = {before + 6: np.eye(len(bias))}
        found += [Affine({before + 5: second}, bias)]
        found += [
            Affine(shortcut | {len(found): np.eye(len(bias))}, np.zeros(len(bias)))
        ]
        shape = after
    last, size = len(found), np.prod(shape)
    found += [normalised(last, "", "BatchNorm_0", size), ReLU(last + 1)]
    dense = weights["Dense_0"]
    found += [Affine({last + 2: _mean(shape)}, np.zeros(shape[-1]))]
    found += [Affine({last + 3: dense["kernel"].T}, dense["bias"])]
    return found
