"""The order of a set: passes without repetition, a function of (seed, step) alone."""

import numpy as np
import pytest

from freeadv_jax.data.order import Order
from freeadv_jax.errors import InputError


def test_a_pass_draws_no_image_twice_and_the_next_has_another_order():
    order = Order(examples=26, batch_size=8, seed=3)
    assert order.steps == 3
    passes = [np.concatenate([order.batch(s) for s in range(p, p + 3)]) for p in (0, 3)]
    for drawn in passes:
        assert len(set(drawn.tolist())) == 24
    assert (passes[0] != passes[1]).any()


def test_any_step_is_found_without_the_ones_before():
    drawn = [Order(26, 8, 3).batch(step) for step in range(12)]
    for step in (11, 0, 5):
        np.testing.assert_array_equal(Order(26, 8, 3).batch(step), drawn[step])
    assert (Order(26, 8, 4).batch(0) != drawn[0]).any()
    # Pinned, because a run that goes on has to draw the same images.
    assert drawn[0].tolist() == [22, 5, 14, 2, 3, 4, 13, 19]


def test_draws_are_numbered_through_the_run():
    assert Order(26, 8, 3).draws(2).tolist() == list(range(16, 24))


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(InputError, match="batch size is 27 for 26 training images"):
        Order(26, 27, 0)
