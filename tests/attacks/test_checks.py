"""Every attack refuses unusable input with one clear line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.apgd import apgd
from freeadv_jax.attacks.checks import check_finite, largest_difference
from freeadv_jax.attacks.ensemble import autoattack
from freeadv_jax.attacks.fab import fab
from freeadv_jax.attacks.pgd import fgsm, pgd
from freeadv_jax.attacks.square import square
from freeadv_jax.errors import InputError

IMAGES = np.random.default_rng(0).random((6, 4, 4, 1), np.float32)
LABELS = np.zeros(6, np.int32)
MATRIX = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)


def linear(images):
    return images.reshape(len(images), -1) @ MATRIX


ATTACKS = {
    "fgsm": fgsm,
    "pgd": lambda *a, **k: pgd(*a, steps=2, step_size=0.1, **k),
    "apgd": apgd,
    "fab": fab,
    "square": square,
    "autoattack": autoattack,
}
BAD = {
    "label too high": (IMAGES, LABELS + 3, {}, "labels range from 3 to 3.*0 to 2"),
    "label negative": (IMAGES, LABELS - 1, {}, "labels range from -1"),
    "labels not whole": (IMAGES, LABELS / 2, {}, "must be whole numbers"),
    "too few labels": (IMAGES, LABELS[:5], {}, "one label an image"),
    "above 1": (IMAGES * 255, LABELS, {}, r"must be in \[0, 1\]"),
    "below 0": (IMAGES - 0.5, LABELS, {}, r"must be in \[0, 1\]"),
    "NaN pixel": (IMAGES * np.nan, LABELS, {}, r"must be in \[0, 1\]"),
    "uint8": (np.zeros((6, 4, 4, 1), np.uint8), LABELS, {}, "divide by 255"),
    "one image": (IMAGES[0], LABELS[:1], {}, r"\[n, height, width, channels\]"),
    "empty": (IMAGES[:0], LABELS[:0], {}, "give at least one"),
    "epsilon 8": (IMAGES, LABELS, {"epsilon": 8.0}, "eight of 255 levels are 8 / 255"),
    "epsilon 0": (IMAGES, LABELS, {"epsilon": 0.0}, "must be above 0"),
    "epsilon below 0": (IMAGES, LABELS, {"epsilon": -0.1}, "must be above 0"),
    "epsilon infinite": (IMAGES, LABELS, {"epsilon": np.inf}, "must be above 0"),
    "epsilon infinite in L2": (
        IMAGES,
        LABELS,
        {"epsilon": np.inf, "norm": "l2"},
        "must be above 0.* finite",
    ),
    "epsilon NaN": (IMAGES, LABELS, {"epsilon": np.nan}, "must be above 0"),
    "norm": (IMAGES, LABELS, {"norm": "l3"}, "norm 'l3' is unknown; allowed"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("case", BAD)
def test_unusable_images_labels_and_radii_are_refused(case, attack):
    images, labels, fields, message = BAD[case]
    with pytest.raises(InputError, match=message) as refused:
        ATTACKS[attack](linear, images, labels, **{"epsilon": 0.1} | fields)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("attack", "fields", "message"),
    [
        ("pgd", {"restarts": 0}, "restarts = 0: must be 1 or more"),
        ("pgd", {"targets": 0, "goal": "multi-target"}, "targets = 0"),
        ("apgd", {"samples": 0}, "samples = 0"),
        ("square", {"restarts": -1}, "restarts = -1"),
        ("fab", {"targets": 0}, "targets = 0"),
        ("pgd", {"loss": "dlr", "goal": "multi-target"}, "needs 4 classes"),
    ],
)
def test_settings_that_cannot_break_an_image_are_refused(attack, fields, message):
    randomised = "samples" in fields
    model = (lambda images, keys: linear(images)) if randomised else linear
    with pytest.raises(InputError, match=message):
        ATTACKS[attack](model, IMAGES, LABELS, epsilon=0.1, **fields)


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_model_that_returns_more_than_logits_is_refused(attack):
    with pytest.raises(InputError, match="gives a tuple of arrays: must be the logits"):
        ATTACKS[attack](lambda x: (linear(x), x), IMAGES, LABELS, epsilon=0.1)


@pytest.mark.parametrize("attack", ["pgd", "apgd", "square"])
def test_epsilon_may_be_of_numpy_or_jax_and_images_of_any_float_type(attack):
    expected = ATTACKS[attack](linear, IMAGES, LABELS, epsilon=0.1)
    for kind in (np.float64, np.float32, jnp.float32):
        found = ATTACKS[attack](linear, IMAGES, LABELS, epsilon=kind(0.1))
        np.testing.assert_array_equal(found.images, expected.images)
    traced = jax.jit(
        lambda epsilon: ATTACKS[attack](linear, IMAGES, LABELS, epsilon=epsilon)
    )(0.1)
    np.testing.assert_allclose(traced.images, expected.images, atol=1e-6)
    for kind in (np.float16, jnp.bfloat16):
        short = jnp.asarray(IMAGES, kind)
        found = ATTACKS[attack](linear, short, LABELS, epsilon=0.1)
        assert found.images.dtype == jnp.float32
        assert jnp.abs(found.images - short.astype(jnp.float32)).max() <= 0.1 + 1e-6


@pytest.mark.parametrize("size", [-0.1, np.inf, np.nan])
def test_an_impossible_step_size_is_refused(size):
    with pytest.raises(InputError, match=f"step size {size}: must be above 0, finite"):
        pgd(linear, IMAGES, LABELS, epsilon=0.1, steps=2, step_size=size)


@pytest.mark.parametrize("attack", ["pgd", "apgd", "square"])
def test_logits_of_nan_inside_the_ball_count_as_broken(attack):
    """The label makes no difference, although the argmax of NaN is class 0."""

    def model(images):
        away = jnp.abs(images - 0.5).max((1, 2, 3)) > 0.05
        return jnp.where(away[:, None], jnp.nan, jnp.array([[2.0, 0.0, 0.0]]))

    grey = np.full_like(IMAGES, 0.5)
    assert ATTACKS[attack](model, grey, LABELS, epsilon=0.1).success.all()


def test_a_gradient_of_nan_moves_nothing():
    def model(images):
        sums = images.sum((1, 2, 3))
        # The value of this function at 0 is 0, its derivative 0 / 0.
        bent = jnp.sqrt(jnp.square(sums - jax.lax.stop_gradient(sums)))
        return jnp.stack([2 + bent, bent, bent], axis=-1)

    found = ATTACKS["pgd"](model, IMAGES, LABELS, epsilon=0.1)
    assert not found.success.any()
    assert jnp.isfinite(found.images).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: linear(x) * jnp.nan, "logits for image 0 are not finite"),
        (lambda x: jax.nn.softmax(linear(x)), "returns probabilities"),
        (lambda x: linear(x)[:, :1], r"output an image, \(1, 1\): must be a logit"),
        (lambda x: linear(x)[:, :0], r"gives \(1, 0\) for 1 images: .*two classes"),
    ],
)
def test_models_that_return_no_logits_are_refused(model, message):
    with pytest.raises(InputError, match=message):
        autoattack(model, IMAGES, LABELS, epsilon=0.1)


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_refuses_logits_of_another_shape(attack):
    with pytest.raises(InputError, match="classes"):
        ATTACKS[attack](lambda x: linear(x)[0], IMAGES, LABELS, epsilon=0.1)


def test_unknown_version_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'standard'"):
        autoattack(linear, IMAGES, LABELS, epsilon=0.1, version="standart")


def test_classes_may_be_masked_but_not_all_of_an_image():
    logits = np.array([[1, -np.inf], [-np.inf, 2]], np.float32)
    check_finite(logits)
    for unusable in (np.nan, np.inf, -np.inf):
        broken = logits.copy()
        broken[1, 1] = unusable
        with pytest.raises(InputError, match="logits for image 1 are not finite"):
            check_finite(broken)


def test_masked_classes_make_no_difference_of_logits():
    one = np.array([[1, -np.inf], [3, 2]], np.float32)
    assert largest_difference(one, one) == 0
    assert largest_difference(one, one - np.float32([[0], [0.5]])) == 0.5
    assert largest_difference(one, one[:, ::-1]) == np.inf
