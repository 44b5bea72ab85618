"""Levels are exact, and sums are accurate to a few units in the last place."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.levels import accurate_sum, lowest_level


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_level_is_the_exact_float_from_which_on_it_holds(scale):
    rows = np.float32(scale * np.random.default_rng(0).exponential(size=(7, 50)))
    found = jax.jit(
        lambda rows: lowest_level(
            lambda level: jnp.sum(rows > level, axis=1, keepdims=True) <= 9,
            rows[:, :1],
        )
    )(rows)
    np.testing.assert_array_equal(found[:, 0], np.sort(rows, axis=1)[:, -10])


def test_level_is_zero_where_it_always_holds_and_infinite_where_it_never_does():
    like = jnp.zeros((2, 1))
    for value, level in ((True, 0), (False, np.inf)):
        found = lowest_level(lambda levels, v=value: jnp.full(levels.shape, v), like)
        np.testing.assert_array_equal(found, level)


def test_level_of_float64_is_found_in_float64():
    with jax.enable_x64(True):
        limit = np.float64(1) / 3
        found = lowest_level(lambda level: level >= limit, jnp.zeros((1, 1)))
        assert found.dtype == np.float64
        assert found[0, 0] == limit


@pytest.mark.parametrize("terms", [1, 2, 3, 1000, 3072])
def test_sums_of_many_terms_are_accurate(terms):
    rows = np.random.default_rng(1).uniform(size=(3, terms)).astype(np.float32)
    wanted = [math.fsum(row) for row in rows.tolist()]
    found = np.float64(jax.jit(accurate_sum)(rows)[:, 0])
    np.testing.assert_allclose(found, wanted, rtol=4e-7)
