"""The losses of attacks agree with NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.attack import target_class
from freeadv_jax.attacks.losses import (
    TARGETED,
    UNTARGETED,
    cross_entropy,
    dlr,
    margin,
    stable_cross_entropy,
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


def test_label_smoothing_spreads_part_of_the_label_evenly():
    z = np.array(LOGITS, np.float64)
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    target = 0.9 * np.eye(3)[[2, 0]] + 0.1 / 3
    np.testing.assert_allclose(
        cross_entropy(LOGITS, jnp.array([2, 0]), smoothing=0.1),
        -(target * log_p).sum(1),
        atol=1e-6,
    )


def test_margin_is_the_best_other_logit_minus_the_true_one():
    np.testing.assert_allclose(margin(LOGITS, jnp.array([1, 1])), [-1.0, 6.0])


def test_margin_works_with_two_classes():
    logits = jnp.array([[0.5, -0.25]])
    np.testing.assert_allclose(margin(logits, jnp.array([0])), [-0.75])


def test_dlr_divides_the_margin_by_the_first_minus_the_third_logit():
    """Correct: -(7 - 4) / (7 - 2). Misclassified: -(1 - 8) / (8 - 1)."""
    found = dlr(FIVE, jnp.array([1, 4]))
    np.testing.assert_allclose(found, [-3 / 5, 1.0], rtol=1e-6)


def test_targeted_dlr_divides_by_the_first_minus_the_mean_of_third_and_fourth():
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


def direction_in_float64(logits, labels):
    """Return the gradient of the cross-entropy, divided by 1 - p."""
    others = np.array(logits, np.float64)
    others[np.arange(len(labels)), labels] = -np.inf
    others = np.exp(others - others.max(axis=1, keepdims=True))
    others /= others.sum(axis=1, keepdims=True)
    others[np.arange(len(labels)), labels] = -1
    return others


@pytest.mark.parametrize("shift", [0.0, 1e6])
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1e4])
def test_gradient_of_the_attacked_cross_entropy_is_right_for_any_confidence(
    scale, shift
):
    """The label leads by 4 to 40,000, so 1 - p becomes as small as exp(-40,000)."""
    labels = jnp.array([1, 2])
    logits = np.float32(np.round(scale * np.array(FIVE)) + shift)
    loss = UNTARGETED["cross-entropy"]
    gradient = jax.grad(lambda z: loss(z, labels).sum())(jnp.asarray(logits))
    wanted = direction_in_float64(logits, labels)
    np.testing.assert_allclose(gradient, wanted, atol=1e-5)
    # Float32 can represent the cross-entropy's own gradient up to a lead of 80.
    if scale <= 10:
        own = jax.grad(lambda z: stable_cross_entropy(z, labels).sum())(
            jnp.asarray(logits)
        )
        sure = 1 / (1 + np.exp(-np.float64(loss(jnp.asarray(logits), labels))))
        np.testing.assert_allclose(own, wanted * sure[:, None], rtol=1e-4, atol=1e-40)


@pytest.mark.parametrize("label", range(3))
def test_attacked_cross_entropy_is_the_log_odds(label):
    labels = jnp.array([label, label])
    p = jax.nn.softmax(np.array(LOGITS, np.float64))[:, label]
    attacked = UNTARGETED["cross-entropy"](LOGITS, labels)
    np.testing.assert_allclose(attacked, np.log((1 - p) / p), atol=1e-5)
    np.testing.assert_allclose(
        stable_cross_entropy(LOGITS, labels), cross_entropy(LOGITS, labels), atol=1e-6
    )


@pytest.mark.parametrize("loss", UNTARGETED)
@pytest.mark.parametrize("scale", [1e-12, 1e4])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_no_loss_has_a_zero_or_infinite_gradient_at_extreme_logits(loss, scale, shift):
    labels = jnp.array([1, 2])
    logits = jnp.float32(scale * np.array(FIVE) + shift)
    gradient = jax.grad(lambda z: UNTARGETED[loss](z, labels).sum())(logits)
    assert np.isfinite(gradient).all()
    assert (jnp.abs(gradient[np.arange(2), labels]) > 0).all()


def test_equal_logits_give_finite_losses_and_gradients():
    labels, equal = jnp.array([1, 2]), jnp.ones((2, 5))
    for loss in UNTARGETED.values():
        gradient = jax.grad(lambda z, loss=loss: loss(z, labels).sum())(equal)
        assert np.isfinite(gradient).all()
    for loss in TARGETED.values():
        gradient = jax.grad(lambda z, loss=loss: loss(z, labels, labels).sum())(equal)
        assert np.isfinite(gradient).all()


def with_masked_classes(logits):
    """Return logits of seven classes: these five, and 1 and 4, which are masked."""
    masked = jnp.full(logits.shape[:1], -jnp.inf)
    columns = list(logits.T)
    return jnp.stack([*columns[:1], masked, *columns[1:3], masked, *columns[3:]], -1)


# The classes of with_masked_classes that are not masked.
LEFT = np.array([0, 2, 3, 5, 6])


@pytest.mark.parametrize("name", TARGETED)
def test_losses_and_gradients_are_those_of_a_model_without_the_masked_classes(name):
    labels, targets = np.array([1, 2]), np.array([3, 0])
    for loss, classes in (
        (UNTARGETED[name], [labels]),
        (TARGETED[name], [labels, targets]),
        *([(stable_cross_entropy, [labels])] if name == "cross-entropy" else []),
    ):
        masked = [jnp.asarray(LEFT[chosen]) for chosen in classes]
        few = [jnp.asarray(chosen) for chosen in classes]

        def both(logits, chosen, loss=loss):
            return loss(logits, *chosen), jax.grad(lambda z: loss(z, *chosen).sum())(
                logits
            )

        for wanted, found in zip(
            both(FIVE, few), both(with_masked_classes(FIVE), masked), strict=True
        ):
            found = found if found.ndim == 1 else found[:, LEFT]
            np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_dlr_is_the_margin_where_too_few_classes_are_left():
    logits = jnp.array([[4.0, 1.0, -jnp.inf, -jnp.inf], [-jnp.inf, 2.0, 7.0, 3.0]])
    labels, targets = jnp.array([0, 2]), jnp.array([1, 3])
    np.testing.assert_allclose(dlr(logits, labels), [-3, -4 / 5])
    np.testing.assert_allclose(targeted_dlr(logits, labels, targets), [-3, -4])


def test_targets_are_the_other_classes_that_are_not_masked():
    logits, labels = with_masked_classes(FIVE), jnp.asarray(LEFT[[1, 2]])

    def targets(rank):
        return target_class(logits, labels, jnp.full(2, rank, jnp.int32)).tolist()

    falling = [targets(rank) for rank in range(4)]
    assert falling == [[5, 5], [0, 6], [3, 0], [6, 2]]
    assert [targets(rank) for rank in range(4, 8)] == falling
    assert targets(-1) == falling[-1]
