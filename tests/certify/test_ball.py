"""The minimum of a plane over ball and pixel box, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import minimum_of, pixel_box

from freeadv_jax.certify.ball import BALLS, Interval

DRAW = np.random.default_rng(0)
IMAGES = DRAW.choice([0.0, 0.02, 0.5, 0.97, 1.0], (5, 4, 4, 2)).astype(np.float32)
ROWS = DRAW.normal(size=(7, 4, 4, 2)).astype(np.float32) * 3
ROWS[0] = 0


@jax.jit
def minima(image, epsilon):
    return {
        norm: (
            ball(image, epsilon).minimum(jnp.asarray(ROWS)),
            *ball(image, epsilon).box(),
        )
        for norm, ball in BALLS.items()
    }


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("epsilon", [0.0, 0.01, 0.3, 1.0, 4.0])
def test_the_minimum_is_that_of_float64_from_below(norm, epsilon):
    for image in IMAGES:
        least, low, high = minima(image, jnp.float32(epsilon))[norm]
        flat = image.reshape(-1).astype(np.float64)
        exact = minimum_of(norm, flat, epsilon)(ROWS.reshape(7, -1).astype(np.float64))
        assert (least <= exact).all()
        np.testing.assert_allclose(least, exact, atol=3e-3, rtol=1e-4)
        box = np.asarray(pixel_box(image.astype(np.float64), epsilon))
        assert (low <= box[0]).all() and (high >= box[1]).all()
        np.testing.assert_allclose([low, high], box, atol=1e-6)


def test_the_minimum_over_a_box_is_below_that_of_its_corners():
    low = jnp.array([-1.0, 0.5])
    box = Interval(low, jnp.array([2.0, 0.5]))
    found = box.minimum(jnp.array([[1.0, 1.0], [-1.0, 2.0]]))
    np.testing.assert_allclose(found, [-0.5, -1.0], atol=1e-5)
    assert (found <= np.array([-0.5, -1.0])).all()
    np.testing.assert_array_equal(box.size, [2, 0.5])
