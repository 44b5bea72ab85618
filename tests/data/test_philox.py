"""The numbers of TensorFlow's stateless_uniform come out without TensorFlow."""

import numpy as np
import pytest

from freeadv_jax.data.philox import stateless_uniform


def test_the_numbers_are_those_that_tensorflow_2_21_returns():
    # tf.random.stateless_uniform([6], [5, 7], alg="philox")
    expected = np.array(
        [
            0.12039494514465332,
            0.12778854370117188,
            0.6554501056671143,
            0.6188631057739258,
            0.26809239387512207,
            0.5160765647888184,
        ],
        np.float32,
    )
    np.testing.assert_array_equal(stateless_uniform((5, 7), 6), expected)
    np.testing.assert_array_equal(stateless_uniform((5, 7), 3), expected[:3])


@pytest.mark.tensorflow
@pytest.mark.parametrize("seed", [(0, 0), (5, 7), (123_456_789, 2**40 + 3), (2**31, 9)])
def test_every_seed_and_length_gives_tensorflows_numbers(seed):
    tf = pytest.importorskip("tensorflow")
    for count in (1, 4, 41, 1000):
        expected = tf.random.stateless_uniform(
            [count], tf.constant(seed, tf.int64), alg="philox"
        )
        np.testing.assert_array_equal(stateless_uniform(seed, count), expected)
