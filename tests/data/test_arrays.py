import sys

import numpy as np
import pytest

from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.data.split import labelled
from freeadv_jax.errors import InputError


def as_rows(split):
    return {
        (image.tobytes(), int(label))
        for image, label in zip(split.images, split.labels)
    }


def test_digits_are_1347_training_and_450_test_images_of_8x8x1():
    digits = load_arrays("digits", "", validation_examples=0)
    assert digits.train.images.shape == (1347, 8, 8, 1)
    assert digits.test.images.shape == (450, 8, 8, 1)
    assert len(digits.validation.labels) == 0
    assert digits.image_shape == (8, 8, 1)
    assert len(digits.class_names) == 10
    assert digits.class_names == tuple("0123456789")
    assert digits.train.labels.dtype == np.int32
    assert len(as_rows(digits.train) | as_rows(digits.test)) == 1797


def test_the_pixels_of_digits_are_sixteenths_scaled_to_255_and_rounded():
    from sklearn.datasets import load_digits

    raw = load_digits().images
    digits = load_arrays("digits", "", validation_examples=0)
    chosen = np.random.default_rng(0).permutation(len(raw))
    expected = np.rint(raw[chosen[450]] * 15.9375)
    np.testing.assert_array_equal(digits.train.images[0, :, :, 0], expected)
    assert digits.train.images.max() == 255


def test_validation_is_disjoint_from_training_and_together_they_are_the_whole():
    whole = load_arrays("digits", "", validation_examples=0)
    parts = load_arrays("digits", "", validation_examples=200)
    assert len(parts.validation.labels) == 200
    assert len(parts.train.labels) == 1147
    assert not as_rows(parts.train) & as_rows(parts.validation)
    assert as_rows(parts.train) | as_rows(parts.validation) == as_rows(whole.train)
    np.testing.assert_array_equal(parts.test.images, whole.test.images)


def test_a_smaller_held_out_set_is_the_start_of_a_larger_one():
    few, more, again = (
        load_arrays("digits", "", validation_examples=number).validation.images
        for number in (20, 200, 200)
    )
    np.testing.assert_array_equal(few, more[:20])
    np.testing.assert_array_equal(again, more)


@pytest.mark.parametrize("number", [-1, 1347])
def test_held_out_images_must_leave_some_to_train_on(number):
    message = (
        rf"^validation_examples is {number}: must be 0 to 1,346: "
        "digits has 1,347 training images$"
    )
    with pytest.raises(InputError, match=message):
        load_arrays("digits", "", validation_examples=number)


def test_an_unknown_name_is_answered_with_the_nearest_and_all_allowed_names():
    allowed = (
        "allowed: digits, mnist, fashion_mnist, cifar10, cifar100, npz:<file>, "
        "tfds:<name>, imagenet, folder:<path>$"
    )
    for name, hint in (
        ("cifar_10", r"did you mean 'cifar10'\? "),
        ("tfds:", ""),
        ("image_net", r"did you mean 'imagenet'\? "),
        ("imagenet2012", r"did you mean 'imagenet'\? "),
    ):
        message = f"^data set '{name}' is unknown; {hint}{allowed}"
        with pytest.raises(InputError, match=message):
            load_arrays(name, "", validation_examples=0)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_missing_directory_is_answered_with_what_it_must_hold(name, tmp_path):
    with pytest.raises(
        InputError,
        match=f"^the data directory of '{name}' is '': must be a folder that holds ",
    ):
        load_arrays(name, "", validation_examples=0)
    with pytest.raises(
        InputError,
        match=f"/none' of '{name}' does not exist: must be a folder that holds",
    ):
        load_arrays(name, tmp_path / "none", validation_examples=0)
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=f"/file' of '{name}' is not a directory: must be "
    ):
        load_arrays(name, tmp_path / "file", validation_examples=0)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match="'digits' needs .*; pip install scikit-learn"):
        load_arrays("digits", "", validation_examples=0)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], "^x: 2 images and 3 labels: must be equally many$"),
        ([0, 5], "^x: label 5 of image 1 is out of range: must be 0 to 4$"),
        ([-1, 0], "^x: label -1 of image 0 is out of range: must be 0 to 4$"),
    ],
)
def test_labels_must_be_as_many_as_images_and_within_the_classes(labels, message):
    images = np.zeros((2, 4, 4, 1), np.uint8)
    with pytest.raises(InputError, match=message):
        labelled(images, np.array(labels), num_classes=5, source="x")


def test_a_set_without_images_is_refused():
    with pytest.raises(InputError, match="^x holds no images: must hold at least 1$"):
        labelled(
            np.zeros((0, 4, 4, 1), np.uint8),
            np.zeros(0, np.int64),
            num_classes=5,
            source="x",
        )
