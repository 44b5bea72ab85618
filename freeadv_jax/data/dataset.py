"""What a data set offers to training and evaluation, and every data set by name."""

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from jaxtyping import Array

from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.data.folder import FOLDER, load_folder
from freeadv_jax.data.imagenet import load_imagenet
from freeadv_jax.data.split import Split

Batch = dict[str, Array]


@runtime_checkable
class Dataset(Protocol):
    """A training part that is drawn in batches, and splits to measure accuracy on."""

    name: str
    class_names: tuple[str, ...]
    # Height, width and channels of an image in a batch.
    image_shape: tuple[int, int, int]
    # Held out of the training images; may be empty.
    validation: Split
    test: Split

    def steps_per_pass(self, batch_size: int) -> int:
        """Whole batches in a pass over the training images; InputError if none."""

    def batches(
        self, batch_size: int, *, seed: int
    ) -> Callable[[int], Iterator[Batch]]:
        """`batches(first_step)`: the endless training batches from that step on.

        A batch is {'image': u8[b, h, w, c], 'label': i32[b]}, split over the devices
        of all processes, and a function of (seed, step), steps counted from 0. A pass
        draws each image at most once, in an order of its own.
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
) -> Dataset:
    """The data set of the fields of `config.data`, explained in config.py.

    InputError names the value or file that is unusable.
    """
    encoded = {
        "validation_examples": validation_examples,
        "image_size": image_size,
        "flip": flip,
        "prefetch": prefetch,
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
    )
