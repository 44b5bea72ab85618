"""PGD attacks linear models, whose distances to the boundary are exactly known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.one_batch import run_attack
from freeadv_jax.attacks.pgd import PGD, fgsm, pgd, projected_ascent
from freeadv_jax.attacks.threat import Linf, make_threat
from freeadv_jax.errors import InputError

IMAGES = jax.random.uniform(jax.random.key(0), (4, 5, 3, 2))
WEIGHTS = jax.random.normal(jax.random.key(1), (5, 3, 2))


def objective(images):
    return (images * WEIGHTS).sum((1, 2, 3))


@pytest.mark.parametrize("start", [0.0, 0.05])
def test_a_linear_objective_reaches_its_maximum_in_ball_and_box(start):
    """For L-inf the maximum is at x + epsilon * sign(w), clipped to the pixel range."""
    adversarial = projected_ascent(
        objective,
        IMAGES,
        jnp.full_like(IMAGES, start),
        threat=Linf(0.1),
        steps=10,
        step_size=0.04,
    )
    best = np.clip(IMAGES + 0.1 * np.sign(WEIGHTS), 0, 1)
    np.testing.assert_allclose(adversarial, best, atol=1e-7)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.5), ("l1", 1.5)])
def test_result_is_within_ball_and_box_to_one_ulp(norm, epsilon):
    def wild(images):
        return jnp.sin(37 * images).sum((1, 2, 3))

    threat = make_threat(norm, epsilon)
    start = threat.random_start(jax.random.split(jax.random.key(2), 4), (5, 3, 2))
    adversarial = projected_ascent(
        wild, IMAGES, start, threat=threat, steps=9, step_size=epsilon
    )
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    delta = (np.array(adversarial, np.float64) - np.array(IMAGES)).reshape(4, -1)
    size = np.linalg.norm(delta, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    assert size.max() <= epsilon + np.spacing(np.float32(1))
    assert size.max() > 0.9 * epsilon


def test_without_steps_the_result_is_the_start_clipped_to_the_box():
    adversarial = projected_ascent(
        objective,
        IMAGES,
        jnp.full_like(IMAGES, 0.3),
        threat=Linf(0.3),
        steps=0,
        step_size=0.1,
    )
    np.testing.assert_allclose(adversarial, np.clip(IMAGES + 0.3, 0, 1), atol=1e-7)


# A linear classifier of four classes, so that the distance of each image to each other
# class is exactly known.
MATRIX = np.random.default_rng(3).normal(size=(30, 4)).astype(np.float32)
MIDDLE = np.random.default_rng(4).uniform(0.3, 0.7, (40, 5, 3, 2)).astype(np.float32)


def linear(images):
    return (images - 0.5).reshape(len(images), -1) @ MATRIX


LABELS = np.argmax(linear(MIDDLE), axis=-1).astype(np.int32)


def distances(norm):
    """Return the L-inf or L2 distance [n, classes] to the boundary with each other
    class.
    """
    z = linear(MIDDLE.astype(np.float64))
    own = z[np.arange(40), LABELS]
    across = MATRIX[:, LABELS].T[:, :, None] - MATRIX[None].astype(np.float64)
    order = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    sizes = np.linalg.norm(across, order, axis=1)
    sizes[np.arange(40), LABELS] = 1
    found = (own[:, None] - z) / sizes
    found[np.arange(40), LABELS] = np.inf
    return found


def attacked(norm="linf", epsilon=0.01, **fields):
    options = {"steps": 30, "step_size": epsilon / 4} | fields
    return pgd(
        linear, jnp.asarray(MIDDLE), LABELS, norm=norm, epsilon=epsilon, **options
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", ["cross-entropy", "margin", "dlr"])
def test_every_loss_breaks_exactly_the_images_nearer_than_epsilon(norm, loss):
    """With multiple targets, every loss finds the nearest class; one target may miss
    it.
    """
    # This epsilon lies between two images' distances: half of the images are nearer.
    epsilon = float(np.median(distances(norm).min(axis=1)))
    found = attacked(norm, epsilon, loss=loss, goal="multi-target", targets=3)
    distance = distances(norm).min(axis=1)
    near, clear = distance < epsilon, np.abs(distance / epsilon - 1) > 0.1
    np.testing.assert_array_equal(found.success[clear], near[clear])
    assert not found.success[~near].any()
    assert 10 < (near & clear).sum() < 25
    delta = (np.array(found.images, np.float64) - MIDDLE).reshape(40, -1)
    size = np.linalg.norm(delta, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    assert size.max() <= epsilon + np.spacing(np.float32(1))
    wrong = np.argmax(linear(found.images), axis=-1) != LABELS
    np.testing.assert_array_equal(wrong, found.success)


def test_given_target_succeeds_exactly_where_that_class_is_in_reach():
    targets = ((LABELS + 1) % 4).astype(np.int32)
    epsilon = float(np.median(distances("linf")[np.arange(40), targets]))
    found = pgd(
        linear,
        jnp.asarray(MIDDLE),
        targets,
        epsilon=epsilon,
        steps=60,
        step_size=epsilon / 8,
        goal="given-target",
        loss="margin",
    )
    reached = np.argmax(linear(found.images), axis=-1) == targets
    np.testing.assert_array_equal(found.success, reached)
    out_of_reach = distances("linf")[np.arange(40), targets] > epsilon
    assert not (found.success & out_of_reach).any()
    assert 5 < reached.sum() < 40


@pytest.mark.parametrize("goal", ["least-likely", "random-target"])
def test_chosen_targets_are_other_classes(goal):
    attack = PGD("linf", 0.3, steps=60, step_size=0.03, goal=goal)
    found = run_attack(attack, linear, jnp.asarray(MIDDLE), jnp.asarray(LABELS))
    assert found.success.all()
    chosen = np.asarray(linear(found.images)).argmax(axis=-1)
    if goal == "random-target":
        assert len(np.unique((chosen - LABELS) % 4)) == 3
    assert (chosen != LABELS).all()


def test_only_the_last_iterate_counts_with_last_iterate():
    """An image of brightness 0.58 is in the other class; the next step overshoots to
    0.66.
    """

    def island(images):
        level = images.mean((1, 2, 3))
        return jnp.stack([jnp.zeros_like(level), 1 - (level - 0.6) ** 2 / 1e-3], -1)

    images, labels = jnp.full((1, 2, 2, 1), 0.5), jnp.zeros(1, int)
    options = {"epsilon": 0.2, "step_size": 0.08, "random_start": False}
    any_of_two = pgd(island, images, labels, steps=2, **options)
    assert any_of_two.success.all()
    np.testing.assert_allclose(any_of_two.images, 0.58, atol=1e-6)
    last_of_one = pgd(island, images, labels, steps=1, last_iterate=True, **options)
    assert last_of_one.success.all()
    last_of_two = pgd(island, images, labels, steps=2, last_iterate=True, **options)
    assert not last_of_two.success.any()
    np.testing.assert_allclose(last_of_two.images, 0.66, atol=1e-6)


def test_fgsm_is_one_step_of_epsilon_from_the_image():
    found = fgsm(linear, jnp.asarray(MIDDLE), LABELS, epsilon=0.05)
    delta = np.abs(np.asarray(found.images) - MIDDLE)
    moved = ~np.isclose(delta, 0.05, atol=1e-6)
    assert not moved.any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"epsilon": 8.0}, "eight of 255 levels are 8 / 255"),
        ({"epsilon": 0.0}, "above 0"),
        ({"norm": "l3"}, "allowed"),
        ({"loss": "crossentropy"}, "did you mean 'cross-entropy'"),
        ({"goal": "targeted"}, "allowed: untargeted"),
    ],
)
def test_unusable_settings_are_refused(fields, message):
    with pytest.raises(InputError, match=message):
        attacked(**fields)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_infinite_gradient_leads_neither_out_of_the_ball_nor_to_success(norm):
    """The root has an infinite slope at black pixels."""

    def logits_fn(images):
        total = jnp.sqrt(images).sum(axis=(1, 2, 3))
        return jnp.stack([total + 100, jnp.zeros_like(total)], axis=-1)

    black = jnp.zeros((2, 3, 3, 1))
    outcome = pgd(logits_fn, black, [0, 0], norm=norm, epsilon=0.01, steps=3)
    assert not outcome.success.any()
    assert np.isfinite(outcome.images).all()


def test_an_attack_without_a_target_starts_once_however_many_targets_are_named():
    numbers = {"epsilon": 0.1, "step_size": 0.1, "steps": 2, "targets": 9}
    assert PGD(norm="linf", **numbers).attempts == 1
    assert PGD(norm="linf", **numbers, goal="multi-target").attempts == 9


@pytest.mark.parametrize(("norm", "epsilon"), [("patch", 2), ("l0", 3)])
def test_places_may_be_attacked_within_a_traced_function(norm, epsilon):
    images = jnp.full((2, 4, 4, 1), 0.5)

    def logits_fn(images):
        total = images.sum(axis=(1, 2, 3)) - 8.1
        return jnp.stack([total, -total], axis=-1)

    def attacked(images):
        labels = jnp.ones(2, int)
        return pgd(logits_fn, images, labels, norm=norm, epsilon=epsilon, steps=5)

    assert jax.jit(attacked)(images).success.all()
    size = jnp.float32(0.1)  # No tracer itself, though made before the trace.
    linf = jax.jit(lambda x: pgd(logits_fn, x, jnp.ones(2, int), epsilon=size).success)
    assert linf(images).all()
