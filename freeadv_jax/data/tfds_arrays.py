"""Read any set of tensorflow-datasets that fits in memory."""

import numpy as np

from freeadv_jax.data.split import Split, labelled
from freeadv_jax.data.tf_import import check_bucket, import_tensorflow
from freeadv_jax.errors import InputError, one_line

_SPLITS = ("train", "test")
_READ_AT_ONCE = 1000


def read_tfds(name: str, directory: str) -> tuple[Split, Split, tuple[str, ...]]:
    """Return the training part, the test part and the class names of tfds set `name`.

    `directory` is the data_dir of tensorflow-datasets; '' is its own default. A set that
    is not there yet is downloaded into it. The test images come in a fixed random order,
    because a set may be stored sorted by class.

    Raise InputError without TensorFlow, for a bucket that it cannot read, if the set cannot
    be read or downloaded, or if it does not hold uint8 images of one size with one label
    each, in splits train and test.
    """
    check_bucket(directory, f"tfds:{name}")
    _, tfds = import_tensorflow(f"tfds:{name}", extra="tfds")
    where = {"data_dir": directory} if directory else {}
    try:
        builder = tfds.builder(name, **where)
    except Exception as error:  # Nearly anything, depending on the file system.
        raise _unusable(name, error, "a set of tensorflow-datasets") from error
    features = builder.info.features
    image, label = (_feature(features, field, name) for field in ("image", "label"))
    if image.shape is None or len(image.shape) != 3 or None in image.shape:
        raise InputError(
            f"'tfds:{name}' has images of shape {image.shape}: must have one height, "
            "width and number of channels for all"
        )
    if np.dtype(image.np_dtype) != np.uint8:
        raise InputError(
            f"'tfds:{name}' has pixels of type {np.dtype(image.np_dtype)}: must be "
            "uint8"
        )
    if not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        raise InputError(
            f"'tfds:{name}' has no class label: its feature 'label' must be one"
        )
    try:
        builder.download_and_prepare()
        parts = {split: _read_whole(tfds, builder, split) for split in _SPLITS}
    except Exception as error:  # As above.
        raise _unusable(name, error, "a set with splits 'train' and 'test'") from error
    train, test = (
        labelled(
            *parts[split],
            num_classes=label.num_classes,
            source=f"'tfds:{name}', split '{split}'",
        )
        for split in _SPLITS
    )
    return train, test.shuffled(), tuple(label.names)


def _read_whole(tfds, builder, split: str) -> tuple[np.ndarray, np.ndarray]:
    # Not batch_size=-1: for a set of unknown size it ends the process, with
    # std::length_error in TensorFlow 2.21.
    dataset = builder.as_dataset(split=split, batch_size=_READ_AT_ONCE)
    batches = list(tfds.as_numpy(dataset))
    images = np.concatenate([batch["image"] for batch in batches])
    return images, np.concatenate([batch["label"] for batch in batches])


def _feature(features, field: str, name: str):
    try:
        return features[field]
    except (KeyError, TypeError) as error:
        raise InputError(
            f"'tfds:{name}' has no feature {field!r}: must have 'image' and 'label'"
        ) from error


def _unusable(name: str, error: Exception, needed: str) -> InputError:
    reason = f"{type(error).__name__}: {one_line(error)}"
    return InputError(
        f"'tfds:{name}' cannot be read ({reason}): must be {needed}, and needs the "
        "network unless it was downloaded before"
    )
