"""Attack with random points inside the ball, without gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.losses import margin
from freeadv_jax.attacks.noise import Noise
from freeadv_jax.attacks.one_batch import run_attack

IMAGES = jax.random.uniform(jax.random.key(0), (24, 4, 4, 2))
BRIGHT = (IMAGES.mean((1, 2, 3)) > 0.5).astype(jnp.int32)
WEIGHTS = jax.random.normal(jax.random.key(1), (4, 4, 2))


def brightness(images):
    excess = images.mean((1, 2, 3)) - 0.5
    return jnp.stack([-excess, excess], axis=-1)


def linear(images):
    excess = (WEIGHTS * (images - 0.5)).sum((1, 2, 3))
    return jnp.stack([-excess, excess], axis=-1)


@jax.custom_jvp
def without_gradient(images):
    return brightness(images)


@without_gradient.defjvp
def _(*_):
    raise AssertionError("the gradient was asked for")


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.1), ("l2", 0.5)])
def test_points_lie_in_ball_and_box_and_use_most_of_it(norm, epsilon):
    found = run_attack(Noise(norm, epsilon, steps=9), linear, IMAGES, BRIGHT)
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    delta = np.array(found.images, np.float64) - np.array(IMAGES)
    order = {"linf": np.inf, "l2": 2}[norm]
    sizes = np.linalg.norm(delta.reshape(24, -1), order, axis=1)
    assert sizes.max() <= epsilon + np.spacing(np.float32(1))
    assert sizes.max() > 0.8 * epsilon


def test_the_gradient_is_never_used():
    found = run_attack(Noise("linf", 0.3, steps=9), without_gradient, IMAGES, BRIGHT)
    assert found.success.any()


def test_darkest_and_brightest_corners_are_among_the_points():
    """With cells as large as the image, all pixels of a channel move together."""
    colours = jnp.tile(jnp.linspace(0.31, 0.69, 20)[:, None, None, None], (1, 4, 4, 1))
    labels = (jnp.linspace(0.31, 0.69, 20) > 0.5).astype(jnp.int32)
    found = run_attack(Noise("linf", 0.1, steps=60), brightness, colours, labels)
    near = np.abs(np.linspace(0.31, 0.69, 20) - 0.5) < 0.1
    np.testing.assert_array_equal(found.success, near)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_points_are_never_weaker_and_the_worst_is_kept(norm):
    labels = jnp.argmax(linear(IMAGES), axis=-1)
    few, many = (
        run_attack(Noise(norm, 0.3, steps=steps), linear, IMAGES, labels)
        for steps in (2, 40)
    )
    worse = margin(linear(many.images), labels) >= margin(linear(few.images), labels)
    assert worse[~few.success].all()
    assert not (few.success & ~many.success).any()
    assert 0 < many.success.sum() < 24
    wrong = jnp.argmax(linear(many.images), axis=-1) != labels
    np.testing.assert_array_equal(many.success, wrong)


def test_each_image_draws_its_own_points():
    same = jnp.broadcast_to(IMAGES[:1], IMAGES.shape)
    labels = jnp.argmax(linear(same), axis=-1)
    found = run_attack(Noise("linf", 0.01, steps=1), linear, same, labels)
    assert len(np.unique(np.array(found.images), axis=0)) > 12
