"""The balls of each norm: projections, directions, random starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.threat import L2, Linf, make_threat
from freeadv_jax.errors import InputError

KEYS = jax.random.split(jax.random.key(0), 4)


def norms(delta, norm):
    order = {"linf": np.inf, "l2": 2}[norm]
    return np.linalg.norm(np.array(delta).reshape(len(delta), -1), order, axis=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_shortens_points_outside_and_keeps_points_inside(norm):
    threat = make_threat(norm, 0.5)
    outside = 3 * jax.random.normal(jax.random.key(1), (4, 5, 6, 3))
    np.testing.assert_allclose(norms(threat.project(outside), norm), 0.5, rtol=1e-6)
    inside = outside * 0.001
    np.testing.assert_array_equal(threat.project(inside), inside)


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


@pytest.mark.parametrize("norm", ["linf", "l2"])
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
    with pytest.raises(InputError, match=r"'l1' is unknown; allowed: .*linf.*l2"):
        make_threat("l1", 0.1)
