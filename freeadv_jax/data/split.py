"""Labelled images, and the checks every source of them shares."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from freeadv_jax.data.encoded import EncodedImages
from freeadv_jax.errors import InputError


@dataclass(frozen=True)
class Split:
    """Images, uint8 or float32 in [0, 1], and their class numbers; may hold 0 images."""

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
    """A Split of `images` and `labels`, int32 from any integer type.

    InputError, naming `source`, if their numbers differ, if there are none, or if a
    label is outside 0..num_classes-1.
    """
    if len(images) != len(labels):
        raise InputError(
            f"{source}: {len(images):,} images but {len(labels):,} labels, "
            "expected as many of one as of the other"
        )
    if not len(labels):
        raise InputError(f"{source}: holds no images, expected at least 1")
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        place = int(outside.argmax())
        raise InputError(
            f"{source}: label {labels[place]} of image {place:,} is out of range, "
            f"expected 0 to {num_classes - 1}"
        )
    return Split(images, labels.astype(np.int32))


def check_held_out(validation_examples: int, *, examples: int, name: str) -> None:
    """InputError unless so many images of `name` can be held out of its training."""
    if not 0 <= validation_examples < examples:
        raise InputError(
            f"validation_examples is {validation_examples}, expected 0 to "
            f"{examples - 1:,}: {name} has {examples:,} training images"
        )


def held_out(
    validation_examples: int, *, examples: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """The indices of the images to train on, in order, and of those held out.

    The choice depends only on the numbers, never on a run's seed, and fewer are a part
    of more. InputError if none is left to train on.
    """
    check_held_out(validation_examples, examples=examples, name=name)
    order = np.random.default_rng(0).permutation(examples)
    return np.sort(order[validation_examples:]), order[:validation_examples]


def existing_directory(directory: str | Path, *, name: str, contents: str) -> Path:
    """`directory` as a path, `~` expanded; `contents` says what `name` keeps there.

    InputError if it is empty, missing or not a directory.
    """
    if not str(directory):
        raise InputError(
            f"data set {name!r} needs a data directory, got ''; "
            f"expected one that holds {contents}"
        )
    path = Path(directory).expanduser()
    if not path.is_dir():
        state = "is not a directory" if path.exists() else "does not exist"
        raise InputError(
            f"data directory '{path}' of {name!r} {state}; "
            f"expected one that holds {contents}"
        )
    return path
