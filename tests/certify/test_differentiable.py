"""Bounds to train on are those that are certified, and have gradients in the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from freeadv_jax.certify import crown, interval
from freeadv_jax.certify.differentiable import margins
from freeadv_jax.errors import InputError

DRAW = np.random.default_rng(5)
IMAGES = DRAW.uniform(size=(4, 5, 5, 2)).astype(np.float32)
LABELS = DRAW.integers(0, 3, 4).astype(np.int32)
ARRAYS = jnp.asarray(IMAGES), jnp.asarray(LABELS)
WEIGHTS = {
    "kernel": jnp.asarray(DRAW.normal(size=(3, 3, 2, 3)).astype(np.float32)),
    "bias": jnp.asarray(DRAW.normal(size=3).astype(np.float32)),
    "output": jnp.asarray(DRAW.normal(size=(12, 3)).astype(np.float32)),
}


def model(weights):
    """Return a convolution, ReLU and a dense layer as a function of images."""

    def logits(weights, images):
        layout = ("NHWC", "HWIO", "NHWC")
        hidden = lax.conv_general_dilated(
            images, weights["kernel"], (2, 2), "VALID", dimension_numbers=layout
        )
        hidden = jnp.maximum(hidden + weights["bias"], 0.0)
        return hidden.reshape(len(images), -1) @ weights["output"]

    return jax.tree_util.Partial(logits, weights)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_bounds_equal_the_certified_ones_to_rounding(norm):
    logits_fn, how = model(WEIGHTS), {"norm": norm, "epsilon": 0.05}
    found = jax.jit(
        lambda epsilon: margins(
            logits_fn, *ARRAYS, norm=norm, epsilon=epsilon, crown=True
        )
    )(0.05)
    others = np.arange(3) != LABELS[:, None]
    for bound, certified in (
        (found.interval, interval(logits_fn, IMAGES, LABELS, **how)),
        (found.crown_ibp, crown(logits_fn, IMAGES, LABELS, intermediate="ibp", **how)),
    ):
        np.testing.assert_allclose(
            bound[others], certified.margins[others], rtol=0, atol=2e-3
        )
        # The certified bound allows for rounding.
        assert (bound[others] > certified.margins[others]).all()
        np.testing.assert_allclose(bound[~others], 0, atol=1e-6)


def test_gradients_in_the_weights_agree_with_differences():
    """In float64 the ends lie so near that no line of CROWN is chosen anew between them."""
    with jax.enable_x64(True):
        weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), WEIGHTS)
        direction = {
            name: np.random.default_rng(0).normal(size=array.shape)
            for name, array in weights.items()
        }
        images = jnp.asarray(IMAGES, jnp.float64)

        @jax.jit
        def total(by):
            moved = jax.tree.map(lambda x, d: x + by * d, weights, direction)
            found = margins(
                model(moved),
                images,
                ARRAYS[1],
                norm="linf",
                epsilon=0.05,
                crown=True,
            )
            return jnp.sum(found.interval) + 2 * jnp.sum(found.crown_ibp)

        slope = jax.grad(total)(0.0)
        difference = (total(1e-7) - total(-1e-7)) / 2e-7
        assert abs(slope) > 1
        np.testing.assert_allclose(difference, slope, rtol=1e-6)


def test_a_primitive_without_a_rule_is_named():
    def sorted_logits(images):
        return jnp.sort(images.reshape(len(images), -1))[:, :3]

    with pytest.raises(InputError, match="there is no rule for sort"):
        margins(sorted_logits, *ARRAYS, norm="linf", epsilon=0.1, crown=False)


def test_a_norm_without_a_ball_is_refused():
    with pytest.raises(InputError, match="norm 'l1' is unknown.*allowed: linf, l2"):
        margins(model(WEIGHTS), *ARRAYS, norm="l1", epsilon=0.1, crown=False)


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_gradients_are_finite_where_a_curve_is_flat_or_its_interval_a_point(epsilon):
    """Units of 0 have the largest slope of tanh, and saturated ones the slope 0."""

    def total(weights):
        def logits(images):
            hidden = jnp.tanh(images.reshape(len(images), -1) @ weights["hidden"])
            return hidden @ weights["output"]

        found = margins(logits, *ARRAYS, norm="linf", epsilon=epsilon, crown=True)
        return found.crown_ibp.sum()

    hidden = jnp.zeros((50, 12)).at[:, 1].set(100.0)
    gradient = jax.grad(total)({"hidden": hidden, "output": WEIGHTS["output"]})
    for leaf in jax.tree.leaves(gradient):
        assert jnp.isfinite(leaf).all()
    assert jnp.any(gradient["hidden"][:, 0])
