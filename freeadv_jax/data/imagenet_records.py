"""Read ImageNet (ILSVRC 2012) from array_record files, by Grain and without TensorFlow."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from freeadv_jax.data.encoded import GRAIN, EncodedImages
from freeadv_jax.data.grain_stream import grain_batches
from freeadv_jax.data.order import Order
from freeadv_jax.data.sampling import TrainingBatch, steps_per_pass
from freeadv_jax.data.split import Split


@dataclasses.dataclass(frozen=True)
class ImageNetRecords:
    """A `Dataset` whose images stay in their files until a batch needs them.

    `test` holds the 50,000 validation images of ILSVRC 2012. Its first use reads their
    labels; the images are read when they are attacked, each process its own. `validation`
    is held out of the training images.
    """

    # The tfds.core.DatasetBuilder of a set prepared in the format array_record.
    builder: Any
    validation_examples: int
    image_size: int
    flip: bool
    prefetch: int
    name: str = "imagenet"

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the WordNet numbers of the classes, the archive's folder names."""
        return tuple(self.builder.info.features["label"].names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return the height, width and channels of an image."""
        return self.image_size, self.image_size, 3

    @functools.cached_property
    def validation(self) -> Split:
        """Return the held-out images: the first of the training files.

        tensorflow-datasets shuffled them when it wrote the files.
        """
        return self._split(self._records("train"), self.validation_examples)

    @functools.cached_property
    def test(self) -> Split:
        """Return the 50,000 validation images, in a fixed random order."""
        records = self._records("validation")
        return self._split(records, len(records)).shuffled()

    def steps_per_pass(self, batch_size: int) -> int:
        """Return the whole batches in a pass; raise InputError if there is none."""
        examples = len(self._records("train")) - self.validation_examples
        return steps_per_pass(examples, batch_size)

    def batches(
        self, batch_size: int, *, seed: int
    ) -> Callable[[int], Iterator[TrainingBatch]]:
        """Return `batches(first_step)`, as `Dataset` describes it.

        No image of the steps before `first_step` is read.
        """
        training = _Labelled(self._records("train"), self.validation_examples)
        return grain_batches(
            training,
            order=Order(len(training), batch_size, seed),
            name=self.name,
            size=self.image_size,
            flip=self.flip,
            ahead=self.prefetch,
        )

    def _records(self, split) -> Any:
        """Return a part of the set, with images still encoded."""
        import tensorflow_datasets as tfds

        decoders = {"image": tfds.decode.SkipDecoding()}
        return self.builder.as_data_source(split, decoders=decoders)

    def _split(self, records, count) -> Split:
        """Return the first `count` of the records; all labels are read."""
        labels = np.array([records[index]["label"] for index in range(count)], np.int32)
        source = f"'{self.name}' in {self.builder.data_dir}"
        images = EncodedImages.of(
            [Record(records, index, source) for index in range(count)],
            size=self.image_size,
            reader=GRAIN,
        )
        return Split(images, labels)


@dataclasses.dataclass(frozen=True)
class Record:
    """An image of a set of records, read when it is needed."""

    records: Any
    index: int
    source: str

    def __str__(self):
        return f"image {self.index} of {self.source}"

    def read_bytes(self) -> bytes:
        """Return the encoded image."""
        return self.records[self.index]["image"]


@dataclasses.dataclass(frozen=True)
class _Labelled:
    """The (encoded image, label) of the records from number `first` on."""

    records: Any
    first: int

    def __len__(self):
        return len(self.records) - self.first

    def __getitem__(self, index):
        record = self.records[self.first + int(index)]
        return record["image"], record["label"]
