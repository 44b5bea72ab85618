import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.apgd import apgd
from freeadv_jax.attacks.autoattack import autoattack
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
    "epsilon NaN": (IMAGES, LABELS, {"epsilon": np.nan}, "must be above 0"),
    "norm": (IMAGES, LABELS, {"norm": "l1"}, "norm 'l1' is unknown; allowed"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("case", BAD)
def test_images_labels_and_balls_that_cannot_be_are_refused(case, attack):
    images, labels, fields, message = BAD[case]
    with pytest.raises(InputError, match=message) as refused:
        ATTACKS[attack](linear, images, labels, **{"epsilon": 0.1} | fields)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda x: linear(x) * jnp.nan, "logits for image 0 are not finite"),
        (lambda x: jax.nn.softmax(linear(x)), "returns probabilities"),
        (lambda x: linear(x)[:, :1], "two classes or more"),
        (
            lambda x: linear(x).sum(-1),
            r"gives \(1,\) for 1 images: must be \(1, classes",
        ),
    ],
)
def test_models_that_give_no_logits_are_refused(model, message):
    with pytest.raises(InputError, match=message):
        autoattack(model, IMAGES, LABELS, epsilon=0.1)


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_says_what_is_wrong_with_the_shape_of_logits(attack):
    with pytest.raises(InputError, match="classes"):
        ATTACKS[attack](lambda x: linear(x)[0], IMAGES, LABELS, epsilon=0.1)


def test_unknown_version_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'standard'"):
        autoattack(linear, IMAGES, LABELS, epsilon=0.1, version="standart")
