"""Labelled images, and the checks that all data sets share."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from freeadv_jax.data.encoded import EncodedImages
from freeadv_jax.errors import InputError
from freeadv_jax.files import AnyPath, as_path


@dataclass(frozen=True)
class Split:
    """Hold images, uint8 or float32 in [0, 1], and their class numbers; may be empty."""

    images: (
        UInt8[np.ndarray, "n h w c"]
        | Float32[np.ndarray, "n h w c"]
        | UInt8[EncodedImages, "n h w c"]
    )
    labels: Int32[np.ndarray, " n"]

    def take(self, indices: np.ndarray) -> "Split":
        """Return the images numbered `indices`, in that order."""
        return Split(self.images[indices], self.labels[indices])

    def shuffled(self) -> "Split":
        """Return the same images in a fixed order that depends on their number alone.

        The first N images then are a sample of all classes, also where files list one
        class after another. Every test split whose source may be sorted goes through
        this: folders, ImageNet and the sets of tensorflow-datasets.
        """
        return self.take(np.random.default_rng(0).permutation(len(self.labels)))


def labelled(
    images: UInt8[np.ndarray, "n h w c"] | Float32[np.ndarray, "n h w c"],
    labels: np.ndarray,
    *,
    num_classes: int,
    source: str,
) -> Split:
    """Return a Split of `images` and `labels`, which may be of any integer type.

    Raise InputError, naming `source`, if their numbers differ, if there are none, or if
    a label is outside 0..num_classes-1.
    """
    if len(images) != len(labels):
        raise InputError(
            f"{source}: {len(images):,} images and {len(labels):,} labels: must be "
            "equally many"
        )
    if not len(labels):
        raise InputError(f"{source} holds no images: must hold at least 1")
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        index = int(outside.argmax())
        raise InputError(
            f"{source}: label {labels[index]} of image {index:,} is out of range: must be "
            f"0 to {num_classes - 1}"
        )
    return Split(images, labels.astype(np.int32))


def check_held_out(validation_examples: int, *, examples: int, name: str) -> None:
    """Raise InputError unless `examples` images leave some to train on.

    `name` is the data set in the message.
    """
    if not 0 <= validation_examples < examples:
        raise InputError(
            f"validation_examples is {validation_examples}: must be 0 to "
            f"{examples - 1:,}: {name} has {examples:,} training images"
        )


def held_out(
    validation_examples: int, *, examples: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted indices of the images to train on, and those of the held-out ones.

    The choice depends only on the two numbers, never on a run's seed. A smaller held-out
    set is the start of a larger one. Raise InputError if no image is left to train on.
    """
    check_held_out(validation_examples, examples=examples, name=name)
    order = np.random.default_rng(0).permutation(examples)
    return np.sort(order[validation_examples:]), order[:validation_examples]


def existing_directory(
    directory: str | AnyPath, *, name: str, contents: str
) -> AnyPath:
    """Return `directory` as a path with `~` expanded.

    Raise InputError, naming the `contents` that data set `name` keeps there, if the
    directory is '', missing or a file.
    """
    if not str(directory):
        raise InputError(
            f"the data directory of {name!r} is '': must be a folder that holds "
            f"{contents}"
        )
    path = as_path(directory)
    if not path.is_dir():
        state = "is not a directory" if path.exists() else "does not exist"
        raise InputError(
            f"the data directory '{path}' of {name!r} {state}: must be a folder that "
            f"holds {contents}"
        )
    return path
