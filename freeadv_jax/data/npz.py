"""Images and labels of a user's .npz file."""

import zipfile
import zlib

import numpy as np

from freeadv_jax.data.split import Split, labelled
from freeadv_jax.errors import InputError, one_line, shortened
from freeadv_jax.files import AnyPath, as_path, local_copy
from freeadv_jax.pixels import channels_first

NPZ = "npz:"
# The names under which people keep (images, labels), the usual ones first.
TRAIN = (
    ("x_train", "y_train"),
    ("train_images", "train_labels"),
    ("images", "labels"),
    ("image", "label"),
)
TEST = (("x_test", "y_test"), ("test_images", "test_labels"))
CLASSES = "class_names"


def read_npz(
    name: str, directory: str | AnyPath = "", *, test_examples: int = 0
) -> tuple[Split, Split, tuple[str, ...]]:
    """Return (training images, test images, class names) of the file of 'npz:FILE'.

    The arrays of the file are named as in TRAIN and TEST; others are ignored. Images are
    [n, h, w, c], or [n, h, w] for one channel: uint8 is kept, and so is float32 in
    [0, 1]; other floats in [0, 1] become float32. Labels are whole numbers from 0, [n] or
    [n, 1]. The strings `class_names` name the classes, which otherwise are numbered up to
    the largest label. Test images go through `Split.shuffled`.

    A file with training images alone is divided: `test_examples` of them, chosen by their
    number alone, are the test images. FILE is looked up in `directory` where that is
    given, also by its last part.

    Raise InputError where the file cannot be read, lacks arrays or holds Python objects,
    and where images, labels and class names do not fit together.
    """
    path = _path(name, directory)
    arrays = _read(path)
    train = _pair(path, arrays, TRAIN)
    test = _pair(path, arrays, TEST)
    if train is None:
        raise InputError(
            f"{path} holds {shortened(sorted(arrays)) or 'no arrays'}: must hold images "
            f"and labels, {_names(TRAIN)}"
        )
    classes = _class_names(path, arrays, [pair for pair in (train, test) if pair])
    splits = [
        labelled(
            images, labels, num_classes=len(classes), source=f"{path}, array {source}"
        )
        for images, labels, source in (pair for pair in (train, test) if pair)
    ]
    if test is None:
        return *_divided(path, splits[0], test_examples), classes
    if test_examples:
        raise InputError(
            f"data.test_examples = {test_examples}: must be 0, because {path} has test "
            "images"
        )
    if train[0].shape[1:] != test[0].shape[1:]:
        raise InputError(
            f"{path}: training images {list(train[0].shape)} and test images "
            f"{list(test[0].shape)} must be of one shape"
        )
    return splits[0], splits[1].shuffled(), classes


def read_extra(name: str, directory: str | AnyPath, like: Split, classes: int) -> Split:
    """Return the images and labels of the file of 'npz:FILE' that join the split `like`.

    The arrays are named as in TRAIN; the published sets of generated images have `image`
    and `label`. Raise InputError where the file cannot be read, has no labels, or holds
    images of another shape or type than `like`, or labels outside its classes.
    """
    path = _path(name, directory)
    arrays = _read(path)
    pair = _pair(path, arrays, TRAIN)
    if pair is None:
        raise InputError(
            f"{path} holds {shortened(sorted(arrays)) or 'no arrays'}: must hold images "
            f"and labels, {_names(TRAIN)}"
        )
    images, labels, source = pair
    split = labelled(
        images, labels, num_classes=classes, source=f"{path}, array {source}"
    )
    found, wanted = images.shape[1:], like.images.shape[1:]
    if found != wanted:
        raise InputError(
            f"{path}: extra images are {list(found)} and the training images "
            f"{list(wanted)}: must be of one shape"
        )
    if images.dtype != like.images.dtype:
        raise InputError(
            f"{path}: extra images are {images.dtype} and the training images "
            f"{like.images.dtype}: must be of one type"
        )
    return split


def _path(name, directory):
    file = as_path(name.removeprefix(NPZ))
    if not directory:
        return file
    folder = as_path(directory)
    inside = file if file.is_absolute() else folder / file
    return inside if inside.exists() else folder / file.name


def _read(path):
    try:
        with local_copy(path) as copy, np.load(copy, allow_pickle=False) as file:
            arrays = {}
            for name in file.files:
                if name in {*(n for pair in (*TRAIN, *TEST) for n in pair), CLASSES}:
                    arrays[name] = _plain(path, file, name)
                else:
                    arrays[name] = None
            return arrays
    except FileNotFoundError as fault:
        raise InputError(f"{path} does not exist") from fault
    except InputError:
        raise
    # A file that is no archive makes NumPy give an array, without `files`.
    except (
        AttributeError,
        EOFError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as fault:
        raise InputError(f"{path} must be an .npz file: {one_line(fault)}") from fault


def _plain(path, file, name):
    try:
        return file[name]
    except ValueError as fault:
        if "allow_pickle" not in str(fault):
            raise
        raise InputError(
            f"{path}: {name} holds Python objects, must be a plain array of numbers or "
            "strings"
        ) from fault


def _pair(path, arrays, names):
    """(images, labels, name) of the first pair of names that the file has; or None."""
    for images, labels in names:
        if images in arrays and labels in arrays:
            return (
                _images(path, images, arrays[images]),
                _labels(path, labels, arrays[labels]),
                images,
            )
        if images in arrays or labels in arrays:
            present, absent = sorted((images, labels), key=lambda n: n not in arrays)
            raise InputError(f"{path} holds {present} but lacks {absent}")
    return None


def _images(path, name, images):
    if images.ndim == 3:
        images = images[..., None]
    shape = list(images.shape)
    if images.ndim != 4 or 0 in shape[1:]:
        raise InputError(
            f"{path}: {name} is {shape}, must be [n, h, w, c] or [n, h, w]"
        )
    if channels_first(images.shape):
        raise InputError(
            f"{path}: {name} is {shape}, with the channels first: must be [n, h, w, c]; "
            f"np.moveaxis({name}, 1, -1) moves them"
        )
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise InputError(
            f"{path}: {name} is of type {images.dtype}, must be uint8, or floats in [0, 1]"
        )
    low, high = images.min(initial=0), images.max(initial=0)
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"{path}: {name} has pixels from {low:.4g} to {high:.4g}: floats must be in "
            "[0, 1]; divide levels of 0 to 255 by 255, or store them as uint8"
        )
    return images.astype(np.float32)


def _labels(path, name, labels):
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{path}: {name} is {labels.dtype}{list(labels.shape)}, must be whole numbers "
            "[n], from 0"
        )
    return labels


def _class_names(path, arrays, pairs):
    names = arrays.get(CLASSES)
    largest = max((int(labels.max(initial=0)) for _, labels, _ in pairs))
    if names is None:
        return tuple(map(str, range(largest + 1)))
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise InputError(
            f"{path}: {CLASSES} is {names.dtype}{list(names.shape)}, must be strings [k]"
        )
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8")
    return tuple(map(str, names))


def _divided(path, split, test_examples):
    examples = len(split.labels)
    if not 0 < test_examples < examples:
        raise InputError(
            f"data.test_examples = {test_examples}: must be 1 to {examples - 1:,}, the "
            f"test images to take from the {examples:,} of {path}, which has no "
            f"{_names(TEST)}"
        )
    order = np.random.default_rng(0).permutation(examples)
    return (
        split.take(np.sort(order[test_examples:])),
        split.take(order[:test_examples]),
    )


def _names(pairs):
    return " or ".join(f"{images} and {labels}" for images, labels in pairs)
