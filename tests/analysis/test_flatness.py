"""The measured loss around images agrees with direct evaluation and with known models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.analysis.flatness import flatness, loss_grid, random_direction
from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.threat import Linf
from freeadv_jax.runs.load import load

IMAGES = np.random.default_rng(0).uniform(0.3, 0.7, (4, 4, 4, 2)).astype(np.float32)
WEIGHTS = np.random.default_rng(1).normal(size=(32, 3)).astype(np.float32)
# Class 2 is far ahead: the loss of class 0 is z_2 - z_0, which is linear in the image.
LINEAR = jax.tree_util.Partial(
    lambda weights, images: (
        images.reshape(len(images), -1) @ weights + jnp.array([0.0, 0.0, 60.0])
    ),
    WEIGHTS,
)


def flatness_of(logits_fn, norm, epsilon, label=0):
    keys = jax.random.split(jax.random.key(0), len(IMAGES))
    labels = np.full(len(IMAGES), label, np.int32)
    return flatness(logits_fn, IMAGES, labels, keys, norm=norm, epsilon=epsilon)


def test_the_grid_holds_the_loss_at_each_of_its_points(trained_pair):
    model = load(trained_pair[0])
    image = np.random.default_rng(2).uniform(size=(8, 8, 1)).astype(np.float32)
    directions = np.stack(
        [
            random_direction(seed, image.shape, norm="linf", epsilon=0.2)
            for seed in (0, 1)
        ]
    )
    coordinates = np.linspace(-1.5, 1.5, 13, dtype=np.float32)
    label = np.int32(3)
    grid = loss_grid(model.logits_fn, image, label, directions, coordinates)
    assert grid.shape == (13, 13)
    for row in (0, 6, 12):
        for column in (0, 5, 12):
            a, b = coordinates[row], coordinates[column]
            point = image + a * directions[0] + b * directions[1]
            direct = cross_entropy(
                model(jnp.asarray(point[None])), jnp.asarray(label[None])
            )[0]
            np.testing.assert_allclose(grid[row, column], direct, rtol=1e-5, atol=1e-6)


def test_the_grid_of_a_linear_loss_is_a_plane():
    directions = np.stack(
        [random_direction(seed, (4, 4, 2), norm="l2", epsilon=0.5) for seed in (0, 1)]
    )
    np.testing.assert_allclose(np.linalg.norm(directions[0]), 0.5, rtol=1e-6)
    coordinates = np.linspace(-1, 1, 5, dtype=np.float32)
    grid = loss_grid(LINEAR, IMAGES[0], np.int32(0), directions, coordinates)
    slope = WEIGHTS[:, 2] - WEIGHTS[:, 0]
    here = IMAGES[0].ravel() @ slope + 60
    a, b = np.meshgrid(coordinates, coordinates, indexing="ij")
    along = [direction.ravel() @ slope for direction in directions]
    np.testing.assert_allclose(grid, here + a * along[0] + b * along[1], rtol=1e-5)


@pytest.mark.parametrize(("norm", "order"), [("linf", 1), ("l2", 2)])
def test_a_linear_loss_has_no_error_and_rises_by_the_dual_norm(norm, order):
    found = flatness_of(LINEAR, norm, 0.1)
    slope = WEIGHTS[:, 2] - WEIGHTS[:, 0]
    assert np.abs(found["error"]).max() < 1e-4
    expected = 0.1 * np.linalg.norm(slope, order)
    np.testing.assert_allclose(found["rise"], expected, rtol=1e-3)


def test_the_error_of_a_quadratic_loss_is_half_its_curvature_times_the_squared_radius():
    """The loss is 60 + c |x - 1/2|^2 / 2, whose nonlinear part in d is c |d|^2 / 2."""

    def quadratic(images):
        distance = jnp.sum((images - 0.5) ** 2, axis=(1, 2, 3))
        ahead = 60 + 3 * distance / 2
        return jnp.stack([jnp.zeros_like(ahead), ahead], axis=1)

    found = flatness_of(jax.tree_util.Partial(quadratic), "l2", 0.25)
    np.testing.assert_allclose(found["error"], 3 * 0.25**2 / 2, rtol=1e-3)


def test_the_worst_point_is_inside_ball_and_box_and_its_rise_is_the_reported_one(
    trained_pair,
):
    model = load(trained_pair[0])
    pixels = np.random.default_rng(3).integers(0, 256, (6, 8, 8, 1))
    images = jnp.asarray(pixels / 255, jnp.float32)
    labels = jnp.arange(6)
    keys = jax.random.split(jax.random.key(1), 6)
    found = flatness(model.logits_fn, images, labels, keys, norm="linf", epsilon=0.2)
    points = images + found["worst"]
    inside = Linf(0.2).inside(images, points)
    np.testing.assert_allclose(points, inside, atol=1e-6)
    risen = cross_entropy(model(points), labels) - cross_entropy(model(images), labels)
    assert (found["rise"] >= risen - 1e-4).all()
    assert (risen > 0).all()
