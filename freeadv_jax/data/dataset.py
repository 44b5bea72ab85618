"""The interface of a data set, and every data set by name."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.data.encoded import TF_DATA
from freeadv_jax.data.folder import FOLDER, load_folder
from freeadv_jax.data.imagenet import load_imagenet
from freeadv_jax.data.sampling import TrainingBatch
from freeadv_jax.data.split import Split


@runtime_checkable
class Dataset(Protocol):
    """Training images that are drawn in batches, and splits to measure accuracy on."""

    name: str
    class_names: tuple[str, ...]
    # Height, width and channels of each image of a batch.
    image_shape: tuple[int, int, int]
    # Images held out of the training images; may be empty.
    validation: Split
    test: Split

    def steps_per_pass(self, batch_size: int) -> int:
        """Return the number of whole batches in a pass over the training images.

        Raise InputError if there is none.
        """

    def batches(
        self, batch_size: int, *, seed: int
    ) -> Callable[[int], Iterator[TrainingBatch]]:
        """Return `batches(first_step)`: the endless training batches from that step on.

        A batch is {'image': [b, h, w, c], u8 or f32 in [0, 1], 'label': i32[b]}, split
        over the devices of all processes. It is a function of (seed, step), with steps
        counted from 0. A pass draws each image at most once, in an order of its own.
        """


def load_dataset(
    *,
    name: str,
    dir: str,
    manual_dir: str,
    validation_examples: int,
    test_examples: int = 0,
    pad: int,
    flip: bool,
    image_size: int,
    prefetch: int,
    max_corrupt: float,
    extra: str = "",
    extra_fraction: float = 0.5,
    reader: str = TF_DATA,
) -> Dataset:
    """Return the data set that the fields of `config.data` describe (see config.py).

    Raise InputError naming an unusable value or file.
    """
    encoded = {
        "validation_examples": validation_examples,
        "image_size": image_size,
        "flip": flip,
        "prefetch": prefetch,
        "reader": reader,
    }
    if name == "imagenet":
        return load_imagenet(dir, manual_dir=manual_dir, **encoded)
    if name.startswith(FOLDER) and name != FOLDER:
        return load_folder(name, dir, max_corrupt=max_corrupt, **encoded)
    return load_arrays(
        name,
        dir,
        validation_examples=validation_examples,
        test_examples=test_examples,
        pad=pad,
        flip=flip,
        extra=extra,
        extra_fraction=extra_fraction,
    )
