"""The balls of each norm: projections, directions, random starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from freeadv_jax.attacks.threat import L1, L2, NORMS, Linf, make_threat
from freeadv_jax.errors import InputError

KEYS = jax.random.split(jax.random.key(0), 4)


def norms(delta, norm):
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    return np.linalg.norm(np.array(delta).reshape(len(delta), -1), order, axis=1)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_shortens_points_outside_and_keeps_points_inside(norm):
    threat = make_threat(norm, 0.5)
    outside = 3 * jax.random.normal(jax.random.key(1), (4, 5, 6, 3))
    project = jax.jit(threat.project)
    # In L1 the level by which pixels are shortened is a float32.
    close = 1e-5 if norm == "l1" else 1e-6
    np.testing.assert_allclose(norms(project(outside), norm), 0.5, rtol=close)
    inside = outside * 0.001
    np.testing.assert_array_equal(project(inside), inside)


def test_an_linf_step_follows_the_sign_of_the_gradient():
    gradient = jnp.array([[3.0, -1e-20, 0.0]])
    delta = jnp.array([[0.1, 0.1, 0.1]])
    moved = Linf(0.25).ascend(delta, gradient, 0.2)
    np.testing.assert_allclose(moved, [[0.25, -0.1, 0.1]], atol=1e-7)


def test_l2_step_follows_the_gradient_of_any_length():
    gradient = jnp.array([[3.0, 4.0], [3e-6, 4e-6], [0.0, 0.0]])
    moved = L2(1.0).ascend(jnp.zeros((3, 2)), gradient, 0.5)
    np.testing.assert_allclose(moved, [[0.3, 0.4], [0.3, 0.4], [0, 0]], rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-33, 1e-20, 1e-13, 1.0, 1e20, 1e37])
def test_l2_direction_has_length_1_for_any_gradient_but_zero(scale):
    gradient = np.float32(scale) * np.random.default_rng(0).normal(size=(4, 5, 6, 3))
    found = L2.direction(jnp.float32(gradient))
    size = np.linalg.norm(gradient.astype(np.float64).reshape(4, -1), axis=1)
    wanted = gradient / size[:, None, None, None]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
    assert not L2.direction(jnp.zeros((4, 5, 6, 3))).any()


def test_l2_step_is_projected_radially():
    delta, gradient = jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 0.0]])
    moved = L2(1.0).ascend(delta, gradient, 1.0)
    np.testing.assert_allclose(moved, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)


def test_epsilon_zero_never_uses_the_gradient():
    delta = jnp.zeros((1, 2))
    assert Linf(0.0).ascend(delta, jnp.full((1, 2), jnp.nan), 1.0) is delta


@pytest.mark.parametrize("norm", NORMS)
def test_random_start_is_inside_fills_the_ball_and_depends_on_its_key_alone(norm):
    threat = make_threat(norm, 0.3)
    keys = jax.random.split(jax.random.key(2), 2000)
    start = threat.random_start(keys, (1, 2, 1))
    radii = norms(start, norm)
    assert radii.max() <= 0.3 * (1 + 1e-6)
    # In 2 dimensions, half of a uniform ball lies within sqrt(1/2) of its centre.
    np.testing.assert_allclose(np.mean(radii < 0.3 * 0.5**0.5), 0.5, atol=0.05)
    np.testing.assert_array_equal(threat.random_start(keys[7:9], (1, 2, 1)), start[7:9])


def test_unknown_norm_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'l3' is unknown; allowed: .*linf.*l2.*l1"):
        make_threat("l3", 0.1)


def images_and_moves(count=20, pixels=12):
    """Return images with many pixels at 0 or 1, and points that leave ball and box."""
    rng = np.random.default_rng(0)
    images = np.clip(rng.uniform(-0.5, 1.5, (count, pixels)), 0, 1)
    return np.float32(images), np.float32(images + rng.normal(size=images.shape))


def split_bounds(image):
    """Return the bounds of p and q in d = p - q, whose sum is then the L1 norm of d."""
    return [*zip(0 * image, 1 - image), *zip(0 * image, image)]


@pytest.mark.parametrize("epsilon", [0.3, 1.5])
def test_l1_projection_solves_the_quadratic_program_of_ball_and_box(epsilon):
    images, points = images_and_moves()
    found = jax.jit(L1(epsilon).inside)(images, points)
    for image, point, here in zip(images, points, np.asarray(found), strict=True):
        move = np.float64(point) - image

        def distance(parts, move=move):
            gap = parts[:12] - parts[12:] - move
            return gap @ gap, np.r_[2 * gap, -2 * gap]

        best = scipy.optimize.minimize(
            distance,
            np.zeros(24),
            jac=True,
            method="SLSQP",
            bounds=split_bounds(np.float64(image)),
            constraints={"type": "ineq", "fun": lambda parts: epsilon - parts.sum()},
            options={"ftol": 1e-13, "maxiter": 500},
        )
        assert best.success
        np.testing.assert_allclose(here - image, best.x[:12] - best.x[12:], atol=3e-5)


@pytest.mark.parametrize("length", [0.1, 0.7, 2.0, 50.0])
def test_l1_step_solves_the_linear_program_of_the_box(length):
    images, _ = images_and_moves()
    gradient = np.random.default_rng(1).normal(size=images.shape)
    gradient = np.float32(gradient * (np.abs(gradient) > 0.2))
    found = jax.jit(L1(1.0).advance)(images, gradient, length)
    step = np.float64(found) - images
    assert np.asarray(found).min() >= 0
    assert np.asarray(found).max() <= 1
    assert np.abs(step).sum(axis=1).max() <= length * (1 + 1e-6)
    for image, slope, moved in zip(images, np.float64(gradient), step, strict=True):
        best = scipy.optimize.linprog(
            np.r_[-slope, slope],
            A_ub=np.ones((1, 24)),
            b_ub=[length],
            bounds=split_bounds(np.float64(image)),
        )
        np.testing.assert_allclose(slope @ moved, -best.fun, rtol=1e-5)


def test_l1_points_stay_in_ball_and_box_where_all_pixels_are_rounded_alike():
    """Each of 3,072 equal pixels is rounded the same way, so the errors add up."""
    images = jnp.full((3, 32, 32, 3), jnp.array([0.5, 0.3, 0.9])[:, None, None, None])
    inside = jax.jit(lambda epsilon, points: L1(epsilon).inside(images, points))
    for epsilon in (12.0, 0.7):
        for sign in (1, -1):
            found = inside(epsilon, images + sign * 0.25)
            size = norms(np.float64(found) - np.float64(images), "l1")
            assert size.max() <= epsilon
            assert size.min() > 0.999 * epsilon
            assert found.min() >= 0
            assert found.max() <= 1


def test_l1_ascent_with_images_stays_inside_ball_and_box():
    images, points = images_and_moves()
    images, delta = jnp.asarray(images), jnp.asarray(points - images)
    gradient = jax.random.normal(jax.random.key(3), images.shape)
    ascend = jax.jit(lambda delta: L1(0.8).ascend(delta, gradient, 0.3, images=images))
    found = images + ascend(delta)
    assert norms(np.float64(found) - np.float64(images), "l1").max() <= 0.8 + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert L1(0.0).ascend(delta, gradient, 0.3, images=images) is delta


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_of_any_norm_has_its_length_and_gains_the_dual_norm(norm):
    gradient = jax.random.normal(jax.random.key(4), (5, 4, 3, 2))
    step = NORMS[norm].direction(gradient)
    np.testing.assert_allclose(norms(step, norm), 1, rtol=1e-5)
    gain = np.sum(np.asarray(step * gradient), axis=(1, 2, 3))
    np.testing.assert_allclose(gain, NORMS[norm].dual_size(gradient), rtol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_far_start_is_inside_the_box_and_near_the_surface_of_the_ball(norm):
    images = jax.random.uniform(jax.random.key(5), (6, 8, 8, 1))
    keys = jax.random.split(jax.random.key(6), 6)
    start = jax.jit(make_threat(norm, 0.3).far_start)(keys, images)
    size = norms(np.float64(start) - np.float64(images), norm)
    assert size.max() <= 0.3 + np.spacing(np.float32(1))
    assert size.min() > 0.2
    assert start.min() >= 0
    assert start.max() <= 1
