import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.losses import (
    TARGETED,
    UNTARGETED,
    cross_entropy,
    dlr,
    margin,
    targeted_cross_entropy,
    targeted_dlr,
    targeted_margin,
)

LOGITS = jnp.array([[1.0, 3.0, 2.0], [5.0, -1.0, 0.5]])
FIVE = jnp.array([[2.0, 7.0, 1.0, 4.0, -3.0], [0.5, 0.25, 8.0, 6.0, 1.0]])


def test_cross_entropy_is_minus_the_log_probability_of_the_label():
    z = np.array(LOGITS, np.float64)
    expected = np.log(np.exp(z).sum(1)) - z[[0, 1], [2, 0]]
    np.testing.assert_allclose(
        cross_entropy(LOGITS, jnp.array([2, 0])), expected, atol=1e-6
    )


def test_label_smoothing_spreads_a_part_of_the_label_evenly():
    z = np.array(LOGITS, np.float64)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    target = 0.9 * np.eye(3)[[2, 0]] + 0.1 / 3
    np.testing.assert_allclose(
        cross_entropy(LOGITS, jnp.array([2, 0]), smoothing=0.1),
        -(target * log_p).sum(1),
        atol=1e-6,
    )


def test_margin_is_the_best_other_logit_less_the_true_one():
    np.testing.assert_allclose(margin(LOGITS, jnp.array([1, 1])), [-1.0, 6.0])


def test_margin_serves_two_classes():
    logits = jnp.array([[0.5, -0.25]])
    np.testing.assert_allclose(margin(logits, jnp.array([0])), [-0.75])


def test_dlr_is_the_margin_over_the_first_less_the_third_logit():
    """Right: -(7 - 4) / (7 - 2). Wrong: -(1 - 8) / (8 - 1)."""
    found = dlr(FIVE, jnp.array([1, 4]))
    np.testing.assert_allclose(found, [-3 / 5, 1.0], rtol=1e-6)


def test_targeted_dlr_is_over_the_first_less_the_mean_of_third_and_fourth():
    """(4 - 7) / (7 - (2 + 1) / 2) and (0.25 - 8) / (8 - (1 + 0.5) / 2)."""
    found = targeted_dlr(FIVE, jnp.array([1, 2]), jnp.array([3, 1]))
    np.testing.assert_allclose(found, [-3 / 5.5, -7.75 / 7.25], rtol=1e-6)


def test_targeted_losses_rise_with_the_target():
    labels, targets = jnp.array([1, 2]), jnp.array([3, 1])
    np.testing.assert_allclose(targeted_margin(FIVE, labels, targets), [-3, -7.75])
    log_probability = jax.nn.log_softmax(FIVE)[jnp.arange(2), targets]
    np.testing.assert_allclose(
        targeted_cross_entropy(FIVE, labels, targets), log_probability, rtol=1e-6
    )


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_dlr_does_not_change_with_scale_or_shift_of_the_logits(scale):
    labels, targets = jnp.array([1, 4]), jnp.array([3, 0])
    np.testing.assert_allclose(
        dlr(scale * (FIVE + 2), labels), dlr(FIVE, labels), rtol=1e-4
    )
    np.testing.assert_allclose(
        targeted_dlr(scale * (FIVE + 2), labels, targets),
        targeted_dlr(FIVE, labels, targets),
        rtol=1e-4,
    )


def test_equal_logits_give_finite_losses_and_gradients():
    labels, equal = jnp.array([1, 2]), jnp.ones((2, 5))
    for loss in UNTARGETED.values():
        gradient = jax.grad(lambda z, loss=loss: loss(z, labels).sum())(equal)
        assert np.isfinite(gradient).all()
    for loss in TARGETED.values():
        gradient = jax.grad(lambda z, loss=loss: loss(z, labels, labels).sum())(equal)
        assert np.isfinite(gradient).all()
