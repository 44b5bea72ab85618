"""Measurements of gradients, against exact figures for linear models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.gradients import narrow_floats

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(0.2, 0.8, (19, 4, 3, 2)).astype(np.float32)
WEIGHTS = RNG.normal(size=(24, 2)).astype(np.float32)


def linear(images):
    return images.reshape(len(images), -1) @ WEIGHTS


def measured(logits_fn=linear, norm="linf", samples=None, precision=1.2e-7, **options):
    labels = np.asarray(linear(IMAGES)).argmax(axis=-1).astype(np.int32)
    threat = {"norm": norm, "epsilon": 0.1, "step_size": 0.04, "precision": precision}
    campaign = Campaign(batch_size=8)
    found = campaign.gradients(
        logits_fn, IMAGES, labels, **threat, samples=samples, **options
    )
    return found, labels


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_figures_of_a_linear_model_are_exact(norm, dual):
    """The log odds of two classes are the difference of their logits."""
    found, labels = measured(norm=norm)
    sign = np.where(labels == 0, 1.0, -1.0)
    towards = sign[:, None] * (WEIGHTS[:, 1] - WEIGHTS[:, 0])
    size = np.linalg.norm(towards, dual, axis=1)
    wanted = np.outer(size, [0.04, 0.1])
    np.testing.assert_allclose(found.promised, wanted, rtol=1e-4)
    np.testing.assert_allclose(found.rise, wanted, rtol=1e-4)
    np.testing.assert_allclose(found.most, 0.1 * size, rtol=1e-5)
    assert (found.swing > 0.001 * found.most).all()
    assert (found.swing <= found.most * (1 + 1e-4)).all()
    assert (found.surge <= found.swing).all()
    # One or another of eight random points raises the loss.
    assert (found.surge > 0).mean() > 0.9
    logits = np.asarray(linear(IMAGES), np.float64)
    lead = np.abs(logits[:, 0] - logits[:, 1])
    np.testing.assert_allclose(found.lead, lead, rtol=1e-4, atol=1e-5)
    largest = np.abs(logits).max(axis=1)
    np.testing.assert_allclose(found.rounding, 16 * 1.2e-7 * largest, rtol=1e-4)
    assert not found.zeros.any()
    np.testing.assert_array_equal(found.agreement, np.ones(19))


def test_zero_and_wrong_gradients_are_measured():
    rounded, _ = measured(lambda x: linear(jnp.round(x * 12) / 12))
    assert (rounded.zeros == 1).all()
    assert not rounded.most.any()
    assert not rounded.rise.any()
    assert (rounded.swing > rounded.rounding).all()

    def turned(images):
        return 2 * jax.lax.stop_gradient(linear(images)) - linear(images)

    wrong, _ = measured(turned)
    plain, _ = measured()
    np.testing.assert_allclose(wrong.promised, plain.promised, rtol=1e-4)
    np.testing.assert_allclose(wrong.rise, -plain.rise, rtol=1e-3)


def test_draws_are_averaged_and_their_gradients_compared():
    def dropped(images, keys):
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (4, 3, 2)))(keys)
        return linear(2 * images * keep.astype(images.dtype))

    few, _ = measured(dropped, samples=2)
    many, _ = measured(dropped, samples=200)
    # The cosine between means of n masks, each 0 or 2 in equal parts: n / (n + 1).
    np.testing.assert_allclose(few.agreement.mean(), 2 / 3, atol=0.07)
    np.testing.assert_allclose(many.agreement.mean(), 200 / 201, atol=0.005)
    plain, _ = measured()
    np.testing.assert_allclose(many.most, plain.most, rtol=0.1)


def test_float_types_of_a_model_are_found_wherever_it_computes_in_them():
    def half_inside(images):
        short = jax.jit(lambda x: x.astype(jnp.float16).astype(jnp.float32))
        return jax.lax.fori_loop(0, 2, lambda _, z: short(z), linear(images))

    weights = jnp.bfloat16(WEIGHTS)

    def stored(images):
        return images.reshape(len(images), -1) @ weights.astype(jnp.float32)

    assert narrow_floats(linear, IMAGES, randomized=False) == []
    half = WEIGHTS.astype(np.float16)
    assert narrow_floats(
        lambda x: x.astype(jnp.float16).reshape(len(x), -1) @ half,
        IMAGES,
        randomized=False,
    ) == ["float16"]
    assert narrow_floats(half_inside, IMAGES, randomized=False) == ["float16"]
    assert narrow_floats(stored, IMAGES, randomized=False) == []
    keyed = lambda x, keys: linear(x.astype(jnp.bfloat16).astype(jnp.float32))
    assert narrow_floats(keyed, IMAGES, randomized=True) == ["bfloat16"]
