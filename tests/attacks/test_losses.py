import jax.numpy as jnp
import numpy as np

from freeadv_jax.attacks.losses import cross_entropy, margin

LOGITS = jnp.array([[1.0, 3.0, 2.0], [5.0, -1.0, 0.5]])


def test_cross_entropy_is_minus_the_log_probability_of_the_label():
    z = np.array(LOGITS, np.float64)
    expected = np.log(np.exp(z).sum(1)) - z[[0, 1], [2, 0]]
    np.testing.assert_allclose(
        cross_entropy(LOGITS, jnp.array([2, 0])), expected, atol=1e-6
    )


def test_margin_is_the_best_other_logit_less_the_true_one():
    np.testing.assert_allclose(margin(LOGITS, jnp.array([1, 1])), [-1.0, 6.0])


def test_margin_serves_two_classes():
    logits = jnp.array([[0.5, -0.25]])
    np.testing.assert_allclose(margin(logits, jnp.array([0])), [-0.75])
