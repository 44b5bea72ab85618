"""Programs are shared by calls that compute the same, and by no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks import fgsm, pgd
from freeadv_jax.attacks.programs import forget_programs

IMAGES = np.full((8, 2, 2, 1), 0.5, np.float32)
LABELS = np.zeros(8, np.int32)


@pytest.fixture(autouse=True)
def no_programs_kept():
    """Forget the programs of earlier tests, so that each test counts its own compilations."""
    forget_programs()


def logits(images, lead):
    """Return logits of two classes; class 0 leads for a positive lead."""
    return jnp.stack([images.mean((1, 2, 3)) + lead, jnp.zeros(len(images))], axis=-1)


def first(weights, images):
    return logits(images, weights[0])


def second(weights, images):
    return logits(images, weights[1])


@pytest.mark.parametrize("attack", [fgsm, pgd])
def test_models_that_use_different_weights_share_no_program(attack):
    weights = [jnp.full(1, 100.0), jnp.full(1, -100.0)]
    counts = [
        attack(jax.tree_util.Partial(model, weights), IMAGES, LABELS, epsilon=0.1)
        for model in (first, second)
    ]
    assert [outcome.success.sum() for outcome in counts] == [0, 8]


def test_a_function_and_a_pytree_with_the_same_code_are_attacked_alike():
    weights = [jnp.ones(3), jnp.float32(-0.6)]
    captured = jax.tree_util.Partial(second, weights)
    call = {"epsilon": 0.2, "steps": 0, "restarts": 3}
    plain = pgd(lambda images: second(weights, images), IMAGES, LABELS, **call)
    handed_over = pgd(captured, IMAGES, LABELS, **call)
    np.testing.assert_array_equal(plain.success, handed_over.success)
    np.testing.assert_array_equal(plain.images, handed_over.images)
