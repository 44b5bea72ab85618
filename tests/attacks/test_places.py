"""Patches and few pixels: their masks, their attacks, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import freeadv_jax as fa
from freeadv_jax.attacks import apgd, autoattack, fab, fmn, pgd, red_flags, square
from freeadv_jax.attacks.named import attack_by_name
from freeadv_jax.attacks.threat import L0, Patch
from freeadv_jax.errors import InputError

SHAPE = (6, 5, 2)
MATRIX = np.random.default_rng(1).normal(size=(60, 4)).astype(np.float32)
# Noise, and more and more of the image that class i % 4 likes best.
IMAGES = np.stack(
    [
        np.random.default_rng(i).uniform(size=60) + 0.04 * i * np.sign(MATRIX[:, i % 4])
        for i in range(16)
    ]
)
IMAGES = np.float32(np.clip(IMAGES, 0, 1)).reshape(16, *SHAPE)


def linear(images):
    return (images - 0.5).reshape(len(images), -1) @ MATRIX


LABELS = np.argmax(linear(IMAGES), axis=-1).astype(np.int32)


def gains(images):
    """Return what each place can add to each other class's lead, [n, class, h, w].

    A linear model's best perturbation takes each value to the end of the box.
    """
    across = MATRIX.T[None] - MATRIX[:, LABELS].T[:, None]
    across = across.reshape(len(images), 4, *SHAPE).astype(np.float64)
    images = np.float64(images)[:, None]
    return np.where(across > 0, across * (1 - images), -across * images).sum(-1)


def leads(images):
    z = np.float64(linear(images))
    return z[np.arange(len(z)), LABELS][:, None] - z


def best_patches(side):
    """Return whether any square of this side breaks each image: all are tried."""
    gain, found = gains(IMAGES), np.zeros((len(IMAGES), 4), bool)
    for top in range(SHAPE[0] - side + 1):
        for left in range(SHAPE[1] - side + 1):
            here = gain[:, :, top : top + side, left : left + side].sum((2, 3))
            found |= here > leads(IMAGES)
    found[np.arange(len(IMAGES)), LABELS] = False
    return found.any(axis=1)


def best_pixels(count):
    gain = np.sort(gains(IMAGES).reshape(len(IMAGES), 4, -1), axis=-1)
    found = gain[:, :, -count:].sum(-1) > leads(IMAGES)
    found[np.arange(len(IMAGES)), LABELS] = False
    return found.any(axis=1)


def changed(points):
    return np.any(np.asarray(points) != IMAGES, axis=-1)


def spans(places):
    """Return the side of the smallest square around the true places of each image."""
    sides = [0] * len(places)
    for i, image in enumerate(places):
        for line in (image.any(0), image.any(1)):
            if line.any():
                sides[i] = max(sides[i], np.ptp(np.flatnonzero(line)) + 1)
    return np.array(sides)


@pytest.mark.parametrize(("norm", "epsilon"), [("patch", 2), ("l0", 3)])
def test_a_linear_model_is_broken_where_any_choice_of_places_breaks_it(norm, epsilon):
    best = best_patches(epsilon) if norm == "patch" else best_pixels(epsilon)
    call = {"norm": norm, "epsilon": epsilon, "steps": 40, "loss": "margin"}
    found = pgd(linear, IMAGES, LABELS, **call, restarts=20)
    assert 3 < best.sum() < 14
    assert not found.success[~best].any()
    assert found.success[best].mean() > 0.85
    wrong = np.argmax(linear(found.images), axis=-1) != LABELS
    np.testing.assert_array_equal(found.success, wrong)
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    places = changed(found.images)
    size = spans(places) if norm == "patch" else places.sum((1, 2))
    assert size.max() == epsilon
    kind = {"patch": Patch, "l0": L0}[norm]
    np.testing.assert_array_equal(kind.size(jnp.asarray(found.images - IMAGES)), size)


def test_the_heaviest_square_is_found_by_trying_all():
    weights = np.random.default_rng(2).exponential(size=(9, 7, 6)).astype(np.float32)
    masks = jax.jit(lambda weights: Patch(3.0).mask(weights))(jnp.asarray(weights))
    for weight, mask in zip(weights, np.asarray(masks)[..., 0], strict=True):
        sums = {
            (top, left): weight[top : top + 3, left : left + 3].sum()
            for top in range(5)
            for left in range(4)
        }
        top, left = max(sums, key=sums.get)
        wanted = np.zeros((7, 6), bool)
        wanted[top : top + 3, left : left + 3] = True
        np.testing.assert_array_equal(mask, wanted)


def test_the_heaviest_pixels_are_chosen_and_never_too_many():
    weights = np.random.default_rng(3).normal(size=(5, 7, 6)).astype(np.float32)
    mask = np.asarray(jax.jit(L0(4.0).mask)(weights))[..., 0]
    for weight, chosen in zip(weights, mask, strict=True):
        assert set(weight[chosen]) == set(np.sort(weight.ravel())[-4:])
    assert not L0(4.0).mask(jnp.ones((1, 7, 6))).any()
    assert L0(42.0).mask(jnp.ones((1, 7, 6))).all()


@pytest.mark.parametrize(
    ("threat", "count"),
    [(Patch(3), 3), (Patch(0.25), 4), (Patch(0.01), 0), (L0(5), 5), (L0(0.05), 3)],
)
def test_epsilon_is_a_number_or_a_share_of_the_image(threat, count):
    assert int(threat.count((8, 8, 1))) == count


@pytest.mark.parametrize("threat", [Patch(2.0), L0(3.0)])
def test_random_starts_and_projections_are_inside_and_differ_between_keys(threat):
    keys = jax.random.split(jax.random.key(0), 16)
    start = np.asarray(jax.jit(lambda keys: threat.random_start(keys, SHAPE))(keys))
    assert (np.asarray(threat.size(jnp.asarray(start))) == threat.epsilon).all()
    assert len({(image != 0).tobytes() for image in start}) > 5
    points = jax.jit(threat.inside)(IMAGES, IMAGES + 3 * start + 0.01)
    assert (np.asarray(threat.size(points - IMAGES)) <= threat.epsilon).all()
    assert points.min() >= 0
    assert points.max() <= 1
    np.testing.assert_array_equal(threat.project(jnp.asarray(start)), start)


def test_training_stays_in_the_patch_where_it_began():
    threat = Patch(2.0)
    keys = jax.random.split(jax.random.key(1), 16)
    delta = threat.random_start(keys, SHAPE)
    places = np.any(np.asarray(delta) != 0, axis=-1)
    ascend = jax.jit(
        lambda delta, gradient: threat.ascend(
            delta, gradient, 0.1, images=jnp.asarray(IMAGES)
        )
    )
    for seed in range(3):
        delta = ascend(delta, jax.random.normal(jax.random.key(seed), IMAGES.shape))
        assert (np.any(np.asarray(delta) != 0, axis=-1) <= places).all()
        assert (IMAGES + delta).min() >= -1e-7
        assert (IMAGES + delta).max() <= 1 + 1e-7


@pytest.mark.parametrize("threat", [Patch(2.0), L0(4.0)])
def test_the_first_step_goes_where_the_box_leaves_room(threat):
    images = np.full((1, 5, 5, 1), 0.5, np.float32)
    gradient = np.zeros_like(images)
    # The heavier square is white already, and its gradient leads out of the box.
    images[0, :2, :2], gradient[0, :2, :2] = 1, 3
    gradient[0, 3:, 3:] = 1
    moved = threat.climb(*map(jnp.asarray, (images, images, gradient)), 0.1)
    wanted = images.copy()
    wanted[0, 3:, 3:] = 0.6
    np.testing.assert_allclose(moved, wanted, rtol=1e-6)


def test_a_patch_with_one_changed_pixel_covers_what_gains_most_around_it():
    images = np.full((1, 5, 5, 1), 0.5, np.float32)
    points, gradient = images.copy(), np.zeros_like(images)
    points[0, 2, 2] = 0.6
    # Four squares hold the pixel; the largest gradient of all is far away.
    gradient[0, 2:4, 2:4], gradient[0, 1, 1], gradient[0, 0, 4] = 1, -2, 9
    moved = Patch(2.0).climb(*map(jnp.asarray, (images, points, gradient)), 0.1)
    wanted = images.copy()
    wanted[0, 2:4, 2:4] = 0.6
    wanted[0, 2, 2] = 0.7
    np.testing.assert_allclose(moved, wanted, rtol=1e-6)


def test_tables_have_rows_for_patches_and_pixels():
    for norm, epsilon in (("patch", 2), ("l0", 0.1)):
        table = fa.robust_accuracy(
            linear,
            IMAGES,
            LABELS,
            norm=norm,
            epsilon=epsilon,
            attacks="natural,pgd-5,cw-5-x2",
        )
        assert table.rows["natural"]["accuracy"] == 1
        assert table.rows["cw-5-x2"]["accuracy"] < 1
        assert table.rows["pgd-5"]["attack"]["step_size"] == 0.1
        assert not table.red_flags


@pytest.mark.parametrize(
    ("norm", "epsilon", "says"),
    [
        ("patch", 7, "7 by 7 pixels does not go with images of 6 by 5: .* 1 to 5"),
        ("patch", 0.01, "a patch of no pixel does not go"),
        (
            "patch",
            0,
            "must be the side of the patch in pixels, 1 or more, or the share",
        ),
        ("patch", 2.5, "must be the side of the patch in pixels"),
        ("l0", 0, "must be a number of pixels, 1 or more, or the share"),
        ("l0", 0.01, "a budget of 0 pixels does not go"),
        ("l0", 31, "a budget of 31 pixels .* allowed are 1 to 30"),
        ("l0", -3, "must be a number of pixels"),
        ("l0", float("nan"), "must be a number of pixels"),
        ("l0", float("inf"), "must be a number of pixels"),
        ("patch", float("inf"), "must be the side of the patch in pixels"),
    ],
)
def test_impossible_sizes_are_refused_in_one_line(norm, epsilon, says):
    for call in (
        lambda: pgd(linear, IMAGES, LABELS, norm=norm, epsilon=epsilon),
        lambda: fa.robust_accuracy(
            linear, IMAGES, LABELS, norm=norm, epsilon=epsilon, attacks="pgd-2"
        ),
    ):
        with pytest.raises(InputError, match=says) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("attack", [apgd, autoattack, fab, fmn, red_flags, square])
def test_other_attacks_refuse_patches_and_pixels(attack):
    for norm in ("patch", "l0"):
        with pytest.raises(InputError) as error:
            attack(linear, IMAGES, LABELS, norm=norm, epsilon=2)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["autoattack", "square", "fgsm", "fmn"])
def test_tables_refuse_attacks_without_the_norm(name):
    with pytest.raises(
        InputError, match=r"has no norm 'l0': allowed are natural, pgd-"
    ):
        attack_by_name(name, norm="l0", epsilon=3, step_size=0.1, num_classes=4)


def test_sparse_pgd_refuses_what_it_has_not():
    with pytest.raises(InputError, match="no other value than the default"):
        pgd(linear, IMAGES, LABELS, norm="l0", epsilon=3, goal="least-likely")
