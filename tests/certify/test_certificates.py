"""Certificates of any model, and no attack that breaks one."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from dense import drawn, logits_function
from enclosure import points
from flax import nnx
from jax import lax

from freeadv_jax.attacks import pgd
from freeadv_jax.certify import Certificates, alpha_crown, crown, interval
from freeadv_jax.errors import InputError

DRAW = np.random.default_rng(0)
SHAPE = (4, 4, 1)
IMAGES = DRAW.random((3, *SHAPE), np.float32)
LABELS = np.array([0, 1, 2])
MATRIX = DRAW.normal(size=(16, 3)).astype(np.float32)
FUNCTIONS = (interval, crown, alpha_crown)


def linear(images):
    return images.reshape(len(images), -1) @ MATRIX


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_margins_of_a_linear_model_are_exact(function, norm, dual):
    grey = 0.4 + 0.2 * IMAGES  # The pixel box is out of reach.
    found = function(linear, grey, LABELS, norm=norm, epsilon=0.1)
    assert isinstance(found, Certificates)
    assert found.margins.shape == (3, 3) and found.certified.shape == (3,)
    for row, (image, label) in enumerate(zip(grey, LABELS)):
        for other in set(range(3)) - {label}:
            plane = MATRIX[:, label] - MATRIX[:, other]
            exact = plane @ image.ravel() - 0.1 * np.linalg.norm(plane, dual)
            assert found.margins[row, other] == pytest.approx(exact, abs=1e-4)
            assert found.margins[row, other] <= exact + 1e-6
        assert found.margins[row, label] == np.inf
    expected = found.margins.min(axis=1) > 0
    np.testing.assert_array_equal(found.certified, expected)


def test_pixels_stay_in_the_box_even_where_the_ball_does_not():
    black = np.zeros((1, *SHAPE), np.float32)

    def darker(images):
        total = images.sum((1, 2, 3))
        return jnp.stack([total, -total - 1e-3], axis=-1)

    for function in FUNCTIONS:
        for norm in ("linf", "l2"):
            found = function(darker, black, [0], norm=norm, epsilon=0.3)
            assert found.certified.all(), (function, norm)


@pytest.mark.slow
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_at_radius_0_the_margins_are_those_of_the_model(function):
    logits_fn = logits_function("residual", drawn("residual", seed=0))
    images = DRAW.random((5, 6, 6, 2), np.float32)
    logits = np.asarray(logits_fn(jnp.asarray(images)))
    labels = logits.argmax(axis=1)
    found = function(logits_fn, images, labels, epsilon=0, batch_size=2)
    others = labels[:, None] != np.arange(3)
    exact = (np.max(logits, axis=1, keepdims=True) - logits)[others]
    np.testing.assert_allclose(found.margins[others], exact, atol=5e-3)
    assert found.certified.all()


class Linen(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Conv(2, (3, 3))(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(3)(x.reshape(len(x), -1))


class NNX(nnx.Module):
    def __init__(self):
        self.dense = nnx.Linear(16, 3, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, images):
        return self.dense(self.dropout(nnx.leaky_relu(images.reshape(len(images), -1))))


def linen():
    variables = Linen().init(jax.random.key(0), IMAGES)
    return functools.partial(Linen().apply, variables)


def evaluated_nnx():
    module = NNX()
    module.eval()
    return module


MODELS = {
    "a function": lambda: lambda x: linear(jnp.tanh(x)),
    "a partial": lambda: jax.tree_util.Partial(lambda w, x: linear(x) * w, 2.0),
    "Linen": linen,
    "bound Linen": lambda: Linen().bind(linen().args[0]),
    "NNX": evaluated_nnx,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_models_of_every_kind_are_certified_where_no_attack_can_succeed(kind):
    model = MODELS[kind]()
    labels = np.asarray(model(IMAGES)).argmax(axis=1)
    epsilon = 0.002
    found = crown(model, IMAGES, labels, epsilon=epsilon)
    assert np.isfinite(found.margins.min(axis=1)).all()
    assert found.certified.any()
    clean = np.sort(np.asarray(model(IMAGES)))
    assert (found.margins.min(axis=1) <= clean[:, -1] - clean[:, -2] + 1e-5).all()


def test_uint8_images_and_lists_of_labels_are_taken():
    bytes_ = (IMAGES * 255).astype(np.uint8)
    found = crown(linear, bytes_, LABELS.tolist(), epsilon=2 / 255)
    floats = crown(linear, bytes_.astype(np.float32) / 255, LABELS, epsilon=2 / 255)
    np.testing.assert_allclose(found.margins, floats.margins, atol=1e-5)


@pytest.mark.slow
def test_neither_the_batch_size_nor_the_rows_change_the_margins():
    logits_fn = logits_function("cnn", drawn("cnn", seed=0))
    images = DRAW.random((5, 6, 6, 2), np.float32)
    labels = np.arange(5) % 3
    found = crown(logits_fn, images, labels, epsilon=0.02)
    for options in ({"batch_size": 2}, {"rows": 5}, {"rows": 1000, "batch_size": 5}):
        other = crown(logits_fn, images, labels, epsilon=0.02, **options)
        np.testing.assert_allclose(other.margins, found.margins, atol=1e-5)


def test_what_is_not_a_number_certifies_nothing():
    def model(images):
        # The denominator may be 0.
        return linear(images) + 1e-6 / (images.sum((1, 2, 3))[:, None] - 3)

    for function in FUNCTIONS:
        found = function(model, 0 * IMAGES + 0.2, LABELS, epsilon=0.1)
        assert not found.certified.any()
        others = LABELS[:, None] != np.arange(3)
        assert (found.margins[others] == -np.inf).all()


REFUSED = {
    "norm": ({"norm": "l1"}, "norm 'l1' is unknown"),
    "epsilon": ({"epsilon": -0.1}, "epsilon = -0.1: must be 0 or more"),
    "batch": ({"batch_size": 0}, "batch_size = 0: must be 1 or more"),
    "labels": ({"labels": LABELS + 1}, "labels range from 1 to 3"),
    "images": ({"images": IMAGES * 255}, "must be in [0, 1]"),
    "model": ({"logits_fn": lambda x: linear(x)[:, 0]}, "one output an image"),
    "rule": ({"logits_fn": lambda x: jnp.sin(linear(x))}, "there is no rule for sin"),
}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", REFUSED)
def test_unusable_input_is_refused_in_one_line(function, case):
    changed, message = REFUSED[case]
    call = {"logits_fn": linear, "images": IMAGES, "labels": LABELS, "epsilon": 0.1}
    with pytest.raises(InputError) as refused:
        function(**call | changed)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (crown, {"intermediate": "alpha"}, "intermediate 'alpha' is unknown"),
        (crown, {"rows": 0}, "rows = 0: must be 1 or more"),
        (alpha_crown, {"steps": 0}, "steps = 0: must be 1 or more"),
        (alpha_crown, {"step_size": 0.0}, "step_size = 0.0: must be above 0"),
    ],
)
def test_unusable_settings_are_refused_in_one_line(function, options, message):
    with pytest.raises(InputError, match=message):
        function(linear, IMAGES, LABELS, epsilon=0.1, **options)


# Networks of random weights, drawn for every architecture: functions of weights and images.
def convolved(images, kernel, strides=(1, 1)):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        images, kernel, strides, "SAME", dimension_numbers=numbers
    )


def dense(w, x):
    return jax.nn.relu(x.reshape(len(x), -1) @ w["a"] + 0.1) @ w["b"]


def deep(w, x):
    x = jax.nn.relu(x.reshape(len(x), -1) @ w["a"])
    return jax.nn.leaky_relu(x @ w["c"], 0.2) @ w["b"]


def convolutional(w, x):
    x = jax.nn.relu(convolved(x, w["k"], (2, 2)))
    return jax.nn.relu(x.reshape(len(x), -1) @ w["d"]) @ w["b"]


def residual(w, x):
    x = convolved(x, w["k"])
    x = x + convolved(jax.nn.relu(0.7 * x - 0.1), w["l"])
    return jax.nn.relu(x).mean((1, 2)) @ w["e"]


def pooled(w, x):
    x = jnp.maximum(convolved(x, w["k"]), 0)
    x = nn.max_pool(x, (2, 2), (2, 2))
    return jax.nn.relu(x.reshape(len(x), -1) @ w["d"]) @ w["b"]


def smooth(w, x):
    x = jnp.tanh(x.reshape(len(x), -1) @ w["a"])
    return jax.nn.sigmoid(x @ w["c"]) @ w["b"]


def gated(w, x):
    return jax.nn.silu(x.reshape(len(x), -1) @ w["a"]) @ w["b"]


def standardised(w, x):
    x = x - x.mean((1, 2, 3), keepdims=True)
    x = x * lax.rsqrt(jnp.maximum(jnp.square(x).mean((1, 2, 3), keepdims=True), 0.05))
    return dense(w, x)


ARCHITECTURES = {
    f.__name__: f
    for f in (dense, deep, convolutional, residual, pooled, smooth, gated, standardised)
}
SIZES = {"a": (16, 6), "b": (6, 3), "c": (6, 6), "d": (12, 6), "e": (3, 3)}
SIZES |= {"k": (3, 3, 1, 3), "l": (3, 3, 3, 3)}
DRAWS = 25


def random_weights(seed):
    draw = np.random.default_rng(seed)

    def normal(shape):
        fan_in = np.prod(shape[:-1])
        return (draw.normal(size=shape) * 2 / fan_in**0.5).astype(np.float32)

    return {name: normal(shape) for name, shape in SIZES.items()}


BOUNDS = {
    "interval": interval,
    "crown": crown,
    "crown-ibp": functools.partial(crown, intermediate="ibp"),
}


@functools.cache
def model_of(architecture):
    """Return one function object, so that a program serves all weights."""
    return ARCHITECTURES[architecture]


def refuted(architecture, seed, bounds, *, norm, epsilon):
    """Return how many margins of points in the ball are below their bounds, and the bounds.

    Points are drawn, and found by an attack on every class.
    """
    draw = np.random.default_rng(seed)
    model = jax.tree_util.Partial(model_of(architecture), random_weights(seed))
    images = draw.random((2, *SHAPE), np.float32)
    labels = np.asarray(model(images)).argmax(axis=1)
    call = {"norm": norm, "epsilon": epsilon}
    attacked = pgd(
        model, images, labels, **call, steps=10, restarts=2, seed=seed
    ).images
    found = bounds(model, images, labels, **call)
    below = 0
    for row, image in enumerate(images):
        drawn_points = points(image, epsilon, norm=norm, count=100, seed=seed)
        logits = np.asarray(
            model(np.concatenate([drawn_points, attacked[row : row + 1]]))
        )
        here = logits[:, labels[row], None] - logits
        here[:, labels[row]] = np.inf
        below += (here < found.margins[row]).sum()
    return below, found


@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(
            name,
            marks=pytest.mark.slow
            if name in ("dense", "convolutional", "residual")
            else pytest.mark.thorough,
        )
        for name in ARCHITECTURES
    ],
)
def test_no_point_of_200_random_networks_refutes_a_bound(architecture):
    certified = 0
    for seed in range(DRAWS):
        name, norm, epsilon = (("crown", "linf", 0.02), ("interval", "l2", 0.1))[
            seed % 2
        ]
        below, found = refuted(
            architecture, seed, BOUNDS[name], norm=norm, epsilon=epsilon
        )
        assert below == 0, (seed, name, norm)
        certified += found.certified.sum()
    assert certified > 0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["deep"])
def test_optimised_slopes_refute_nothing_and_are_never_below_crown(architecture):
    better = 0
    for seed in range(5):
        call = {"norm": "linf", "epsilon": 0.05}
        below, found = refuted(architecture, seed, alpha_crown, **call)
        assert below == 0
        _, plain = refuted(architecture, seed, crown, **call)
        assert (found.margins >= plain.margins - 1e-6).all()
        better += (found.margins > plain.margins + 1e-3).sum()
    assert better > 0


def test_a_plain_function_never_uses_numbers_of_an_earlier_call():
    weights = {"sign": np.float32(1)}

    def logits_fn(images):
        mean = images.mean(axis=(1, 2, 3))
        return weights["sign"] * jnp.stack([mean, -mean], axis=-1)

    image, label = np.full((1, 2, 2, 1), 0.5, np.float32), [0]
    for sign in (1, -1):
        weights["sign"] = np.float32(sign)
        found = crown(logits_fn, image, label, norm="linf", epsilon=0.1)
        assert found.certified[0] == (sign == 1)
