"""IBP and CROWN equal an implementation in float64 that was written from the papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from dense import MODULES, SHAPE, drawn, layers, logits_function

from freeadv_jax.certify.ball import LinfBall
from freeadv_jax.certify.bounds import Bounds
from freeadv_jax.certify.certificates import MarginBounds, Method
from freeadv_jax.certify.graph import trace
from freeadv_jax.certify.nodes import Elementwise

LABELS = np.array([0, 2, 1], np.int32)
IMAGES = np.random.default_rng(3).random((3, *SHAPE), np.float32).astype(np.float64)
METHODS = {
    "interval": Method("interval"),
    "crown": Method("crown", intermediate="crown", rows=30),
    "crown-ibp": Method("crown", intermediate="ibp"),
}
EPSILON = {"linf": 0.03, "l2": 0.2}


@functools.cache
def expected(kind, method, norm):
    """Return the margins of the oracle."""
    network = layers(kind, drawn(kind, seed=1))
    epsilon, found = EPSILON[norm], []
    for image, label in zip(IMAGES.reshape(3, -1), LABELS):
        box = oracle.pixel_box(image, epsilon)
        rows = np.eye(3)[[label]] - np.eye(3)
        if method == "interval":
            found.append(oracle.ibp(network, box, rows))
            continue
        minimum = oracle.minimum_of(norm, image, epsilon)
        intermediate = "ibp" if method == "crown-ibp" else "crown"
        found.append(
            oracle.crown(network, box, rows, minimum, intermediate=intermediate)
        )
    found = np.array(found)
    found[range(3), LABELS] = np.inf
    return found


@pytest.mark.parametrize("kind", MODULES)
def test_the_dense_layers_are_the_network(kind):
    variables = drawn(kind, seed=1)
    logits = logits_function(kind, variables)(jnp.asarray(IMAGES, jnp.float32))
    point = IMAGES.reshape(3, -1).astype(np.float32).astype(np.float64)
    for row, image in zip(logits, point):
        low, high = oracle.forward(layers(kind, variables), (image, image))[-1]
        np.testing.assert_allclose(row, low, atol=1e-5)
        np.testing.assert_allclose(low, high, atol=1e-12)


# Compilation takes seconds for each; the others run in CI.
CASES = [("cnn", "linf", "interval"), ("cnn", "linf", "crown")]
CASES += [
    pytest.param(*case, marks=pytest.mark.slow)
    for case in (
        ("cnn", "linf", "crown-ibp"),
        ("residual", "linf", "interval"),
        ("residual", "linf", "crown"),
        ("pooled", "linf", "interval"),
        ("pooled", "linf", "crown"),
        ("pooled", "l2", "crown"),
    )
]


@pytest.mark.parametrize(("kind", "norm", "method"), CASES)
def test_bounds_equal_the_oracle_and_are_below_it(kind, norm, method):
    variables = drawn(kind, seed=1)
    images = IMAGES.astype(np.float32)
    logits_fn = logits_function(kind, variables)
    bound = MarginBounds(METHODS[method], logits_fn, norm, EPSILON[norm], 3)
    found = bound(images, LABELS)
    exact = expected(kind, method, norm)
    others = np.isfinite(exact)
    assert (found == np.inf)[~others].all()
    np.testing.assert_allclose(found, exact, atol=1e-4, rtol=1e-4)
    # The allowance for rounding is larger than the rounding.
    assert (found <= exact)[others].all()


# The residual network computes in float32 alone.
@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["cnn"])
def test_bounds_in_float64_equal_the_oracle_to_nine_digits(kind):
    variables = drawn(kind, seed=1)
    exact = {method: expected(kind, method, "linf") for method in ("interval", "crown")}
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda array: jnp.asarray(array, jnp.float64), variables)
        logits_fn = logits_function(kind, wide)
        for method, lower in exact.items():
            bound = MarginBounds(METHODS[method], logits_fn, "linf", EPSILON["linf"], 3)
            found = bound(IMAGES, LABELS)
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, lower, atol=1e-9)


def test_memory_grows_by_about_four_arrays_of_eight_bytes_a_row_and_unit():
    units = 256
    shapes = (64, units), (units, units), (units, 3)
    weights = [np.zeros(shape, np.float32) for shape in shapes]

    def logits_fn(images):
        first, second, last = weights
        x = jax.nn.relu(images.reshape(len(images), -1) @ first)
        return jax.nn.relu(x @ second) @ last

    def temporary(rows):
        def lower(image):
            ball = LinfBall(image, jnp.float32(0.1))
            graph = trace(logits_fn, image)
            bounds = Bounds(graph, ball, backward=True, rows=rows)
            return bounds.lower(jnp.eye(3), forward=False)

        compiled = jax.jit(lower).lower(jnp.zeros((8, 8, 1))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    grown = temporary(256) - temporary(64)
    assert 0 < grown < 4.2 * 8 * (256 - 64) * units


def forward_bounds_decide(weight):
    """Return which entries of the second layer are traced backward, for a dense network."""
    images = np.full((1, 2, 2, 1), 0.5, np.float32)

    def logits_fn(images):
        x = jax.nn.relu(images.reshape(len(images), -1) @ jnp.eye(4))
        return jax.nn.relu(x @ weight) @ jnp.ones((4, 2))

    graph = trace(logits_fn, jnp.asarray(images[0]))
    ball = LinfBall(jnp.asarray(images[0]), jnp.float32(0.1))
    bounds = Bounds(graph, ball, backward=True, rows=3)
    last = [node for node in graph.nodes if isinstance(node, Elementwise)][-1]
    return np.asarray(bounds._undecided(last.inputs[0]))[0]


def test_only_entries_that_forward_bounds_leave_open_are_traced_backward():
    # The columns give sums of fixed sign, and one that may be of either sign.
    weight = jnp.array([[1, -1, 1, 0], [1, -1, -1, 0], [1, 0, 0, 1], [0, 0, 0, -1.0]])
    undecided = forward_bounds_decide(weight)
    np.testing.assert_array_equal(undecided, [False, False, True, True])
