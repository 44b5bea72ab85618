"""Losses, detectors, purifiers and random networks of the gallery, against plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from freeadv_jax.gallery.defences.distillation import scaled
from freeadv_jax.gallery.defences.fgsm import fgsm_loss, one_step
from freeadv_jax.gallery.defences.generator import fit_generator, project
from freeadv_jax.gallery.defences.input_gradients import gradient_penalty_loss
from freeadv_jax.gallery.defences.lid import local_intrinsic_dimension
from freeadv_jax.gallery.defences.pruning import prune, stochastic_pruning
from freeadv_jax.gallery.defences.purifier import fit_pixels, purify
from freeadv_jax.gallery.defences.stability import stability_loss
from freeadv_jax.models.small_cnn import SmallCNN

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(0, 1, (4, 4, 4, 1)).astype(np.float32)
GIVEN = jnp.asarray(IMAGES)
LABELS = np.array([0, 1, 2, 0], np.int32)
WEIGHTS = RANDOM.normal(size=(16, 3)).astype(np.float32)
KEY = jax.random.key(0)


def linear(images):
    return jnp.reshape(images, (len(images), -1)) @ WEIGHTS


def cross_entropy(images):
    logits = np.asarray(images, float).reshape(4, -1) @ WEIGHTS.astype(float)
    return -log_softmax(logits, axis=-1)[np.arange(4), LABELS]


def test_the_gradient_penalty_is_that_of_a_linear_model():
    losses, logits = gradient_penalty_loss(linear, GIVEN, jnp.asarray(LABELS), KEY)
    np.testing.assert_allclose(logits, linear(GIVEN), rtol=1e-5)
    logits = np.asarray(logits, float)
    wrong = np.exp(log_softmax(logits, axis=-1)) - np.eye(3)[LABELS]
    squares = ((wrong @ WEIGHTS.T.astype(float)) ** 2).sum(axis=-1)
    np.testing.assert_allclose(losses, cross_entropy(IMAGES) + 0.1 * squares, rtol=1e-5)


def test_stability_adds_a_hundredth_of_the_divergence_to_a_noisy_copy():
    losses, _ = stability_loss(linear, GIVEN, jnp.asarray(LABELS), KEY)
    noise = 0.04 * np.asarray(jax.random.normal(KEY, IMAGES.shape))
    one, other = (
        log_softmax(np.asarray(linear(x), float), axis=-1)
        for x in (GIVEN, GIVEN + noise)
    )
    apart = (np.exp(one) * (one - other)).sum(axis=-1)
    np.testing.assert_allclose(losses, cross_entropy(IMAGES) + 0.01 * apart, rtol=1e-5)


def test_one_step_goes_along_the_sign_no_further_than_epsilon():
    epsilon = 0.1
    inner = jnp.asarray(0.2 + 0.6 * IMAGES)
    step = np.asarray(one_step(linear, inner, epsilon, KEY)) - inner
    predicted = np.asarray(linear(inner)).argmax(axis=-1)
    chances = np.exp(log_softmax(np.asarray(linear(inner), float), axis=-1))
    gradient = (chances - np.eye(3)[predicted]) @ WEIGHTS.T
    sizes = abs(step).reshape(4, -1)
    assert sizes.max() <= epsilon + 1e-6
    assert np.ptp(sizes, axis=1).max() < 1e-6
    assert len(np.unique(sizes[:, 0].round(6))) == 4
    np.testing.assert_array_equal(np.sign(step).reshape(4, -1), np.sign(gradient))
    losses, _ = fgsm_loss(epsilon)(linear, inner, jnp.asarray(LABELS), KEY)
    both = cross_entropy(inner) + 0.3 * cross_entropy(inner + step)
    np.testing.assert_allclose(losses, both / 1.3, rtol=1e-4)


def test_local_intrinsic_dimension_is_that_of_the_space():
    """Uniform points of a cube, seen from its middle; the estimate has an error of 1 / sqrt(k)."""
    found = []
    for dimension in (1, 2, 4):
        references = RANDOM.uniform(-1, 1, (4000, dimension)).astype(np.float32)
        point = np.zeros((1, dimension), np.float32)
        found.append(
            float(
                local_intrinsic_dimension(*map(jnp.asarray, (point, references)), 100)[
                    0
                ]
            )
        )
    np.testing.assert_allclose(found, [1, 2, 4], rtol=0.3)


def test_local_intrinsic_dimension_is_its_definition_in_float64():
    points, references = (
        RANDOM.normal(size=(n, 6)).astype(np.float32) for n in (5, 40)
    )
    distances = np.linalg.norm(points[:, None].astype(float) - references, axis=-1)
    nearest = np.sort(distances, axis=-1)[:, :10]
    expected = -1 / np.log(nearest / nearest[:, -1:]).mean(axis=-1)
    given = map(jnp.asarray, (points, references))
    found = local_intrinsic_dimension(*given, 10)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_pruned_units_have_their_own_mean():
    units = np.abs(RANDOM.normal(size=(1, 50))).astype(np.float32)
    units[0, ::5] *= -1
    many = np.repeat(units, 20_000, axis=0)
    pruned = np.asarray(prune(jnp.asarray(many), jax.random.split(KEY, len(many))))
    positive = units[0] > 0
    np.testing.assert_array_equal(pruned[:, ~positive], many[:, ~positive])
    share = np.maximum(units[0], 0) / np.maximum(units[0], 0).sum()
    kept = (pruned[:, positive] != 0).mean(axis=0)
    np.testing.assert_allclose(kept, 1 - np.exp(-50 * share[positive]), atol=0.02)
    spread = pruned[:, positive].std(axis=0) / len(many) ** 0.5
    off = abs(pruned[:, positive].mean(axis=0) - units[0, positive])
    assert np.all(off < 5 * spread + 1e-6)


def test_all_layers_but_the_last_are_pruned():
    model = SmallCNN(num_classes=3, batch_norm=False, features=(4,), hidden=8)
    variables = model.init(KEY, GIVEN, train=False)
    network = stochastic_pruning(model, variables)
    keys = jax.random.split(KEY, 4)
    alike = jnp.repeat(GIVEN[:1], 4, axis=0)
    logits = np.asarray(network(alike, keys))
    assert len(np.unique(logits, axis=0)) == 4
    assert logits.shape == (4, 3)
    # The first and the hidden layer without a unit that is above 0 prune nothing.
    silent = jax.tree.map(lambda array: -abs(array), variables)
    same = np.asarray(stochastic_pruning(model, silent)(alike, keys))
    np.testing.assert_array_equal(same, model.apply(silent, alike, train=False))


def test_scaled_logits_keep_their_order():
    logits = np.asarray(scaled(linear, 100.0)(GIVEN))
    np.testing.assert_allclose(logits, 100 * np.asarray(linear(GIVEN)), rtol=1e-6)


@pytest.fixture(scope="module")
def stripes():
    """Return images whose rows are equal: each pixel is the one above it."""
    rows = RANDOM.integers(0, 2, (200, 1, 8, 1)) * np.ones((1, 8, 1, 1))
    return rows.astype(np.float32)


def test_the_purifier_moves_pixels_to_likely_levels_within_reach(stripes):
    weights = fit_pixels(stripes)
    noise = RANDOM.uniform(-0.15, 0.15, stripes[:20].shape).astype(np.float32)
    noisy = np.clip(stripes[:20] + noise, 0, 1)
    pure = np.asarray(jax.jit(purify)(weights, noisy))
    np.testing.assert_allclose(pure * 16, np.round(pure * 16), atol=1e-4)
    assert abs(pure - noisy).max() <= 0.2 + 1e-6
    below = (slice(None), slice(2, None))
    assert abs(pure - stripes[:20])[below].mean() < 0.3 * abs(noise)[below].mean()
    gradient = jax.grad(lambda images: purify(weights, images).sum())(
        jnp.asarray(noisy)
    )
    assert not np.any(gradient)


def test_the_generator_makes_images_of_its_training_set_and_no_others(stripes):
    weights = fit_generator(stripes)
    keys = jax.random.split(KEY, 20)
    known = np.asarray(jax.jit(project)(weights, stripes[:20], keys))
    others = RANDOM.integers(0, 2, (20, 8, 8, 1)).astype(np.float32)
    far = np.asarray(jax.jit(project)(weights, others, keys))
    errors = np.mean((known - stripes[:20]) ** 2), np.mean((far - others) ** 2)
    # A gray image has the error 0.25 everywhere.
    assert errors[0] < 0.17
    assert errors[1] > 1.5 * errors[0]
