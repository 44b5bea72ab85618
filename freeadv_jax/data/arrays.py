"""Data sets that fit in memory, by name, as NumPy arrays."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from freeadv_jax.data.cifar import read_cifar
from freeadv_jax.data.idx import read_idx_set
from freeadv_jax.data.npz import NPZ, read_extra, read_npz
from freeadv_jax.data.sampling import (
    Extra,
    TrainingBatch,
    array_batches,
    steps_per_pass,
)
from freeadv_jax.data.split import Split, held_out, labelled
from freeadv_jax.data.tfds_arrays import read_tfds
from freeadv_jax.errors import InputError, unknown_choice
from freeadv_jax.files import AnyPath

_DIGITS = tuple("0123456789")
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_CIFAR10 = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge
bus butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud
cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox
girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter
palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit
raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
spider squirrel streetcar sunflower sweet_pepper table tank telephone television
tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_CLASS_NAMES = {
    "digits": _DIGITS,
    "mnist": _DIGITS,
    "fashion_mnist": _FASHION,
    "cifar10": _CIFAR10,
    "cifar100": tuple(_CIFAR100.split()),
}
_TFDS = "tfds:"
# Data sets that do not fit in memory: dataset.py loads them.
ENCODED = ("imagenet", "folder:<path>")


@dataclass(frozen=True)
class ArrayDataset:
    """A `Dataset` in memory; its batches are shuffled and augmented on the devices."""

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    pad: int
    flip: bool
    # A function of the user's, (key, images) -> images; see `array_batches`.
    augment: Callable | None = None
    # Images beside the training set, and their share of a batch.
    extra: Extra | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return the height, width and channels of an image."""
        return self.train.images.shape[1:]

    @property
    def extra_images(self) -> int:
        """Return the number of images beside the training set."""
        return len(self.extra.split.labels) if self.extra else 0

    def steps_per_pass(self, batch_size: int) -> int:
        """Return the whole batches in a pass; raise InputError if there is none.

        The pass is over `train`; extra images have passes of their own.
        """
        # Batches of one count the images.
        extra_rows = self.extra.rows(batch_size) if self.extra and batch_size > 1 else 0
        return steps_per_pass(len(self.train.labels), batch_size - extra_rows)

    def batches(
        self, batch_size: int, *, seed: int
    ) -> Callable[[int], Iterator[TrainingBatch]]:
        """Return `batches(first_step)`, as `Dataset` describes it."""
        return array_batches(
            self.train,
            batch_size=batch_size,
            seed=seed,
            pad=self.pad,
            flip=self.flip,
            augment=self.augment,
            extra=self.extra,
        )


def load_arrays(
    name: str,
    directory: str | AnyPath,
    *,
    validation_examples: int,
    test_examples: int = 0,
    pad: int = 0,
    flip: bool = False,
    extra: str = "",
    extra_fraction: float = 0.5,
) -> ArrayDataset:
    """Return the data set `name`, with `validation_examples` training images held out.

    `name` is one of

    - digits, scikit-learn's, which ignores `directory`;
    - mnist, fashion_mnist, cifar10 or cifar100, whose files are in `directory`;
    - tfds:<name>, any set of tensorflow-datasets that fits in memory; `directory` may be
      '', which is that library's own folder;
    - npz:<file>, a file of the user's own (see `read_npz`, which takes `test_examples`).

    The choice of held-out images depends only on their number, never on a run's seed, and
    a smaller held-out set is the start of a larger one. The remaining training images
    keep the order of the files. `pad` and `flip` augment the batches, as in
    `array_batches`. `extra`, npz:<file>, names images that take `extra_fraction` of each
    training batch (see `read_extra`). Raise InputError naming an unusable value or file.
    """
    train, test, class_names = _load(name, directory, test_examples)
    kept, held = held_out(validation_examples, examples=len(train.labels), name=name)
    joining = extra and Extra(
        read_extra(extra, directory, train, len(class_names)), extra_fraction
    )
    return ArrayDataset(
        name=name,
        train=train.take(kept),
        validation=train.take(held),
        test=test,
        class_names=class_names,
        pad=pad,
        flip=flip,
        extra=joining or None,
    )


def _load(
    name: str, directory: str | AnyPath, test_examples: int
) -> tuple[Split, Split, tuple[str, ...]]:
    if name.startswith(NPZ) and name != NPZ:
        return read_npz(name, directory, test_examples=test_examples)
    if name.startswith(_TFDS) and name != _TFDS:
        return read_tfds(name.removeprefix(_TFDS), str(directory))
    if name not in _CLASS_NAMES:
        raise unknown_choice(
            "data set",
            name,
            (*_CLASS_NAMES, *ENCODED),
            shown=(*_CLASS_NAMES, f"{NPZ}<file>", f"{_TFDS}<name>", *ENCODED),
        )
    class_names = _CLASS_NAMES[name]
    if name == "digits":
        train, test = _digits()
    elif name in ("cifar10", "cifar100"):
        train, test = read_cifar(name, directory, num_classes=len(class_names))
    else:
        train, test = read_idx_set(name, directory)
    return train, test, class_names


def _digits() -> tuple[Split, Split]:
    """Return 1,347 training and 450 test images [8, 8, 1], the same on every call."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError(
            "data set 'digits' needs scikit-learn; pip install scikit-learn"
        ) from error
    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    digits = labelled(pixels, labels, num_classes=len(_DIGITS), source="digits")
    order = np.random.default_rng(0).permutation(len(labels))
    return digits.take(order[450:]), digits.take(order[:450])
