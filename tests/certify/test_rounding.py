"""Sums are exact within the allowance that is stated for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.certify.rounding import (
    gamma,
    relative,
    stored,
    terms_of_total,
    total,
    uncounted,
    unit_roundoff,
)


def test_the_unit_of_float32_is_half_the_distance_of_1_and_its_neighbour():
    assert unit_roundoff(np.float32) == 2**-24
    assert gamma(10, np.float32) == pytest.approx(10 * 2**-24, rel=1e-5)
    assert gamma(0, np.float32) == 0


def test_rounding_counts_again_after_a_part_without_it():
    sizes = jnp.array([1.0, jnp.inf])
    with pytest.raises(ZeroDivisionError), uncounted():
        assert unit_roundoff(np.float32) == gamma(10, np.float32) == 0
        # An infinite size has no rounding either.
        np.testing.assert_array_equal(relative(gamma(10, np.float32), sizes), [0, 0])
        _ = 1 / 0
    assert relative(gamma(10, np.float32), sizes)[0] == np.float32(
        gamma(10, np.float32)
    )


@pytest.mark.parametrize(("size", "terms"), [(1, 16), (16, 16), (17, 32), (4096, 48)])
def test_the_terms_of_a_total_grow_with_the_logarithm_of_its_size(size, terms):
    assert terms_of_total(size) == terms


@pytest.mark.parametrize("size", [1, 15, 16, 17, 300, 70_000])
def test_a_total_is_exact_within_its_allowance(size):
    draw = np.random.default_rng(size)
    rows = draw.normal(size=(3, size)).astype(np.float32) * 10 ** draw.uniform(-3, 3)
    exact, sizes = (np.sum(r, axis=1, dtype=np.float64) for r in (rows, np.abs(rows)))
    found = np.asarray(total(jnp.asarray(rows)), np.float64)
    assert (
        np.abs(found - exact) <= gamma(terms_of_total(size), np.float32) * sizes
    ).all()


def choices(x, y, z):
    """Choose three times by one comparison, in programs that XLA does not fuse into one."""
    low, high = stored(x * y + z, x * y - z)
    positive = low > 0
    total = jnp.sum(jnp.where(positive, x, 0))
    return total, jnp.where(positive, y, high), jnp.flip(jnp.where(positive, z, x))


@pytest.mark.parametrize("batched", [False, True])
def test_a_stored_number_is_computed_once_for_all_its_comparisons(batched):
    function = jax.vmap(choices) if batched else choices
    arguments = [jnp.ones((3, 1000) if batched else 1000)] * 3
    program = jax.jit(function).lower(*arguments).compile().as_text()
    # Without `stored` the CPU's program has a product for each of four uses.
    assert program.count(" multiply(") == 1


def test_stored_numbers_and_their_gradients_are_the_numbers_themselves():
    numbers = jnp.array([[-0.0, 1e-30, jnp.inf], [-3.0, jnp.nan, 2.0]])
    low, high = stored(numbers, 2 * numbers)
    np.testing.assert_array_equal(low, numbers)
    np.testing.assert_array_equal(high, 2 * numbers)
    gradient = jax.grad(lambda x: jnp.sum(stored(x, 3 * x)[1]))(jnp.ones(4))
    np.testing.assert_array_equal(gradient, 3)
