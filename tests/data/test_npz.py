"""A user's own .npz file as a data set."""

import numpy as np
import pytest

from freeadv_jax.data.dataset import load_dataset
from freeadv_jax.data.npz import TEST, TRAIN, read_npz
from freeadv_jax.errors import InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 8, 6, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4
FIELDS = {
    "dir": "",
    "manual_dir": "",
    "validation_examples": 0,
    "pad": 0,
    "flip": False,
    "image_size": 8,
    "prefetch": 2,
    "max_corrupt": 0.0,
}


def written(folder, **arrays):
    path = folder / "own.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


def both(**changes):
    """Return the arrays of a complete file, with some replaced or, by None, left out."""
    arrays = {
        "x_train": IMAGES,
        "y_train": LABELS,
        "x_test": IMAGES[:8],
        "y_test": LABELS[:8],
    }
    return {name: a for name, a in (arrays | changes).items() if a is not None}


@pytest.mark.parametrize("train", TRAIN, ids=str)
@pytest.mark.parametrize("test", TEST, ids=str)
def test_arrays_are_found_under_the_usual_names(train, test, tmp_path):
    arrays = dict(zip((*train, *test), both().values(), strict=True))
    train, test, classes = read_npz(written(tmp_path, **arrays, other=np.ones(3)))
    np.testing.assert_array_equal(train.images, IMAGES)
    np.testing.assert_array_equal(train.labels, LABELS)
    assert classes == ("0", "1", "2", "3")
    order = [
        int((test.images == image).all((1, 2, 3)).argmax()) for image in IMAGES[:8]
    ]
    np.testing.assert_array_equal(test.labels[order], LABELS[:8])
    assert train.images.dtype == test.images.dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_kept(dtype, tmp_path):
    images = RNG.uniform(size=(20, 8, 8, 1)).astype(dtype)
    train, _, _ = read_npz(written(tmp_path, **both(x_train=images, x_test=images[:8])))
    assert train.images.dtype == np.float32
    np.testing.assert_array_equal(train.images, images.astype(np.float32))


def test_gray_images_and_labels_in_a_column_are_taken(tmp_path):
    train, test, _ = read_npz(
        written(
            tmp_path,
            **both(
                x_train=IMAGES[..., 0],
                x_test=IMAGES[:8, ..., 0],
                y_train=LABELS[:, None],
            ),
        )
    )
    assert train.images.shape == (20, 8, 6, 1)
    assert test.images.shape == (8, 8, 6, 1)
    np.testing.assert_array_equal(train.labels, LABELS)


@pytest.mark.parametrize("names", [["a", "b", "c", "d", "e"], [b"a", b"b", b"c", b"d"]])
def test_classes_may_be_named(names, tmp_path):
    *_, classes = read_npz(written(tmp_path, **both(class_names=np.array(names))))
    assert classes == tuple("abcde"[: len(names)])


def test_a_file_of_training_images_is_divided_by_their_number_alone(tmp_path):
    name = written(tmp_path, images=IMAGES, labels=LABELS)
    train, test, _ = read_npz(name, test_examples=5)
    again, _, _ = read_npz(name, test_examples=5)
    assert (len(train.labels), len(test.labels)) == (15, 5)
    np.testing.assert_array_equal(train.images, again.images)
    whole = np.concatenate([train.images, test.images]).reshape(20, -1)
    assert len(np.unique(whole, axis=0)) == 20


def test_the_file_is_looked_up_in_the_given_folder(tmp_path):
    written(tmp_path, **both())
    for name in ("npz:own.npz", "npz:/moved/away/own.npz"):
        train, _, _ = read_npz(name, tmp_path)
        assert len(train.labels) == 20


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_batches_have_the_pixels_of_the_file(dtype, tmp_path):
    images = IMAGES if dtype == np.uint8 else IMAGES.astype(np.float32) / 255
    name = written(tmp_path, **both(x_train=images, x_test=images[:8]))
    dataset = load_dataset(name=name, **FIELDS | {"validation_examples": 4, "pad": 1})
    assert dataset.image_shape == (8, 6, 3)
    assert len(dataset.validation.labels) == 4
    batch = next(dataset.batches(16, seed=0)(0))
    assert batch["image"].dtype == dtype
    assert set(np.unique(batch["image"])) <= {0, *np.unique(images)}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (both(x_train=None), "holds y_train but lacks x_train"),
        (both(y_test=None), "holds x_test but lacks y_test"),
        (
            {"pictures": IMAGES},
            "holds pictures: must hold images and labels, x_train and",
        ),
        ({}, "holds no arrays"),
        (
            {"images": IMAGES, "labels": LABELS},
            "data.test_examples = 0: must be 1 to 19",
        ),
        (both(x_train=np.array([{}] * 20)), "x_train holds Python objects"),
        (both(class_names=np.array(["a", None, {}, 3])), "class_names holds Python"),
        (
            both(x_train=np.moveaxis(IMAGES, -1, 1)),
            "[20, 3, 8, 6], with the channels first",
        ),
        (both(x_train=IMAGES[0]), "20 labels: must be equally many"),
        (both(x_train=IMAGES[None]), "must be [n, h, w, c]"),
        (both(x_train=IMAGES.astype(int)), "int64, must be uint8, or floats in [0, 1]"),
        (both(x_train=IMAGES.astype(float)), "pixels from 0 to 255: floats must be in"),
        (both(x_train=np.full((20, 8, 6, 3), np.nan)), "floats must be in [0, 1]"),
        (both(y_train=LABELS.astype(float)), "float64[20], must be whole numbers [n]"),
        (both(y_train=np.eye(4, dtype=int)[LABELS]), "int64[20, 4], must be whole"),
        (both(y_train=LABELS - 1), "label -1 of image 0 is out of range"),
        (both(y_train=LABELS[:5]), "20 images and 5 labels"),
        (both(class_names=np.array(["a", "b"])), "label 2 of image 2 is out of range"),
        (
            both(class_names=np.ones(4)),
            "class_names is float64[4], must be strings [k]",
        ),
        (both(x_test=IMAGES[:8, :4]), "must be of one shape"),
        (both(x_train=IMAGES[:0], y_train=LABELS[:0]), "holds no images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(arrays, reason, tmp_path):
    with pytest.raises(InputError) as raised:
        read_npz(written(tmp_path, **arrays))
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_test_examples_do_not_go_with_a_file_that_has_test_images(tmp_path):
    with pytest.raises(
        InputError, match=r"data\.test_examples = 3: must be 0, because"
    ):
        read_npz(written(tmp_path, **both()), test_examples=3)


@pytest.mark.parametrize("content", [None, b"", b"PK no zip", b"\x93NUMPY"])
def test_a_file_that_is_no_archive_is_refused_in_one_line(content, tmp_path):
    path = tmp_path / "own.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        InputError, match="does not exist|must be an .npz file"
    ) as raised:
        read_npz(f"npz:{path}")
    assert "\n" not in str(raised.value)


def test_a_single_array_is_no_archive(tmp_path):
    np.save(tmp_path / "own.npy", IMAGES)
    with pytest.raises(InputError, match="must be an .npz file"):
        read_npz(f"npz:{tmp_path / 'own.npy'}")


def extra_of(folder, **changes):
    """Write a file of extra images, and load it beside the digits."""
    arrays = {"image": np.zeros((90, 8, 8, 1), np.uint8), "label": np.arange(90) % 10}
    path = folder / "extra.npz"
    np.savez(path, **{k: a for k, a in (arrays | changes).items() if a is not None})
    fields = FIELDS | {"name": "digits", "extra": f"npz:{path}", "extra_fraction": 0.7}
    return load_dataset(**fields)


def test_extra_images_join_the_training_set(tmp_path):
    dataset = extra_of(tmp_path)
    assert len(dataset.train.labels) == 1347
    assert dataset.steps_per_pass(1) == 1347
    # 24 of 80 images of a batch are from the training set.
    assert dataset.steps_per_pass(80) == 56
    batch = next(dataset.batches(80, seed=0)(0))
    blank = np.asarray(batch["image"]).reshape(80, -1).max(axis=1) == 0
    assert blank.sum() == 56


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"label": None}, "holds image but lacks label"),
        ({"label": np.full(90, 10)}, "label 10 of image 0 is out of range"),
        (
            {"image": np.zeros((90, 9, 8, 1), np.uint8)},
            r"extra images are \[9, 8, 1\] and the training images \[8, 8, 1\]",
        ),
        (
            {"image": np.zeros((90, 8, 8, 1), np.float32)},
            "extra images are float32 and the training images uint8",
        ),
        ({"image": None, "label": None}, "holds no arrays: must hold images"),
    ],
)
def test_extra_images_that_do_not_fit_are_refused(changes, says, tmp_path):
    with pytest.raises(InputError, match=says):
        extra_of(tmp_path, **changes)
