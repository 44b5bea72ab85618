"""Read ImageNet (ILSVRC 2012) from the TFRecord files of tensorflow-datasets."""

import functools
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from freeadv_jax.data.encoded import TF_DATA, EncodedImages
from freeadv_jax.data.grain_stream import import_grain
from freeadv_jax.data.imagenet_records import ImageNetRecords
from freeadv_jax.data.sampling import TrainingBatch, steps_per_pass
from freeadv_jax.data.split import Split, check_held_out
from freeadv_jax.data.stream import (
    decoded_batches,
    deterministic_options,
    device_batches,
)
from freeadv_jax.data.tf_import import check_bucket, import_tensorflow
from freeadv_jax.devices import parallel
from freeadv_jax.errors import InputError, one_line

_LOGGER = logging.getLogger(__name__)

# The number of images in the whole set.
EXAMPLES = {"train": 1_281_167, "validation": 50_000}
_ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")

# The training images are divided into this many shards, and each shard contributes to
# every batch. A batch is then the same for any number of processes up to this one.
_SHARDS = 64
# For all shards together: encoded images that wait to be drawn (1.8 GB), and open files
# (a quarter of the usual limit of a process).
_SHUFFLED, _OPEN_FILES = 16_384, 256
_SHUFFLE = 2_765_881_163


@dataclass(frozen=True)
class ImageNet:
    """A `Dataset` whose training images stay in their files until a batch needs them.

    `test` holds the 50,000 validation images of ILSVRC 2012. Its first use reads them
    into memory, still encoded: 7 GB. `validation` is held out of the training images.
    """

    # The tfds.core.DatasetBuilder of a prepared set.
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
        """Read the held-out images: the first of the training files.

        tensorflow-datasets shuffled them when it wrote the files.
        """
        if not self.validation_examples:  # tfds refuses to read an empty part.
            nothing = EncodedImages.of([], size=self.image_size)
            return Split(nothing, np.zeros(0, np.int32))
        return self._read(f"train[:{self.validation_examples}]")

    @functools.cached_property
    def test(self) -> Split:
        """Read the 50,000 validation images, in a fixed random order."""
        return self._read("validation").shuffled()

    def steps_per_pass(self, batch_size: int) -> int:
        """Return the whole batches in a pass; raise InputError if there is none."""
        examples = _examples(self.builder, "train") - self.validation_examples
        return steps_per_pass(examples, batch_size)

    def batches(
        self, batch_size: int, *, seed: int
    ) -> Callable[[int], Iterator[TrainingBatch]]:
        """Return `batches(first_step)`, as `Dataset` describes it.

        The images of the pass before `first_step` are read, but not decoded.
        """
        steps = self.steps_per_pass(batch_size)
        own = parallel.rows(batch_size)

        def host_batches(first_step):
            while True:
                examples = self._rest_of_pass(
                    first_step, batch_size=batch_size, steps=steps, own=own, seed=seed
                )
                yield from decoded_batches(
                    examples,
                    rows=own.stop - own.start,
                    seed=seed,
                    size=self.image_size,
                    flip=self.flip,
                )
                first_step += steps - first_step % steps

        return device_batches(host_batches, name=self.name, ahead=self.prefetch)

    def _rest_of_pass(self, first_step, *, batch_size, steps, own, seed):
        """Return the encoded examples from `first_step` to the end of its pass.

        They are those of the rows `own` of each batch, to which all shards contribute
        equally many rows.
        """
        import tensorflow as tf

        shards = math.gcd(batch_size, _SHARDS)
        each = batch_size // shards
        first, last = own.start // each, -(-own.stop // each)
        width = (last - first) * each
        pass_number, position = divmod(first_step, steps)
        chosen = tf.data.Dataset.choose_from_datasets(
            [
                self._shuffled_shard(shard, shards, seed=seed, pass_number=pass_number)
                .skip(position * each)
                .prefetch(each)
                for shard in range(first, last)
            ],
            tf.data.Dataset.range(width)
            .map(lambda index: index // each)
            .repeat(steps - position),
        )

        def numbered(index, example):
            step, row = first_step + index // width, first * each + index % width
            return {
                "image": example["image"],
                "label": tf.cast(example["label"], tf.int32),
                "draw": step * batch_size + row,
            }

        def is_own(example):
            row = example["draw"] % batch_size
            return (own.start <= row) & (row < own.stop)

        return chosen.enumerate().map(numbered).filter(is_own)

    def _shuffled_shard(self, shard, shards, *, seed, pass_number):
        """Return a shard of the training images, in the random order of this pass."""
        import tensorflow_datasets as tfds

        rng = np.random.default_rng([_SHUFFLE, seed, pass_number, shard])
        train = f"train[{self.validation_examples}:]"
        examples = self._encoded(
            tfds.even_splits(train, shards)[shard],
            experimental_interleave_sort_fn=lambda files: [
                files[index] for index in rng.permutation(len(files))
            ],
            interleave_cycle_length=_OPEN_FILES // shards,
            interleave_block_length=1,
        )
        return examples.shuffle(
            _SHUFFLED // shards,
            seed=int(rng.integers(2**31)),
            reshuffle_each_iteration=False,
        )

    def _read(self, split) -> Split:
        """Read a whole part of the set, in the order of the files."""
        import tensorflow as tf

        source = f"part {split!r} of 'imagenet' in {self.builder.data_dir}"
        examples = self._encoded(split, interleave_cycle_length=1)
        try:
            rows = list(examples.as_numpy_iterator())
        except tf.errors.OpError as error:
            raise InputError(f"{source} cannot be read ({one_line(error)})") from error
        labels = np.array([row["label"] for row in rows], np.int32)
        images = EncodedImages.of(
            [row["image"] for row in rows], size=self.image_size, source=source
        )
        return Split(images, labels)

    def _encoded(self, split, **reading):
        """Return the examples of a part of the set, with images still encoded."""
        import tensorflow_datasets as tfds

        return self.builder.as_dataset(
            split=split,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(
                options=deterministic_options(), try_autocache=False, **reading
            ),
        )


def load_imagenet(
    directory: str,
    *,
    manual_dir: str,
    validation_examples: int,
    image_size: int,
    flip: bool,
    prefetch: int,
    reader: str = TF_DATA,
) -> ImageNet | ImageNetRecords:
    """Return the set imagenet2012 of tensorflow-datasets in its data_dir `directory`.

    '' is tensorflow-datasets' own folder. A set that is not there yet is prepared from
    the two official archives in `manual_dir`. The `reader` 'grain' takes a set in the
    format array_record, and needs TensorFlow only to prepare it. Raise InputError naming
    missing files.
    """
    check_bucket(directory, "imagenet")
    if reader != TF_DATA and "://" in directory:
        raise InputError(
            f"data.dir = '{directory}' is in a bucket, from which data.reader = "
            f"'{TF_DATA}' reads 'imagenet': mount or copy it for '{reader}'"
        )
    prepares = reader == TF_DATA or bool(manual_dir)
    tfds = _import_datasets(needs_tensorflow=prepares)
    where = os.path.expanduser(directory) or None
    kind = {} if reader == TF_DATA else {"file_format": "array_record"}
    try:
        builder = tfds.builder("imagenet2012", data_dir=where, **kind)
        if not builder.is_prepared():
            _prepare(tfds, builder, os.path.expanduser(manual_dir))
    except InputError:
        raise
    except Exception as error:  # Nearly anything, depending on the file system.
        raise InputError(
            f"'imagenet' cannot be read in '{directory}' "
            f"({type(error).__name__}: {one_line(error)}): must be the data_dir of "
            "tensorflow-datasets, a folder or a bucket that this machine may read"
        ) from error
    for split, whole in EXAMPLES.items():
        if (found := _examples(builder, split)) < whole:
            _LOGGER.warning(
                "%s holds %s images in its part %s; the whole of ImageNet has %s",
                builder.data_dir,
                f"{found:,}",
                split,
                f"{whole:,}",
            )
    check_held_out(
        validation_examples, examples=_examples(builder, "train"), name="imagenet"
    )
    form = ImageNet if reader == TF_DATA else ImageNetRecords
    return form(
        builder=builder,
        validation_examples=validation_examples,
        image_size=image_size,
        flip=flip,
        prefetch=prefetch,
    )


def _import_datasets(*, needs_tensorflow):
    if needs_tensorflow:
        return import_tensorflow("imagenet", extra="imagenet")[1]
    import_grain("imagenet")
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(
            f"'imagenet' needs tensorflow-datasets ({one_line(error)}); "
            "pip install 'freeadv_jax[grain]'"
        ) from error
    return tfds


def _prepare(tfds, builder, manual_dir: str) -> None:
    """Write the files of the set from the archives in `manual_dir`."""
    steps = (
        f"register at https://image-net.org/download-images, download "
        f"{' and '.join(_ARCHIVES)} (145 GB) into one folder, and give that folder "
        "once, to a single process, as --config.data.manual_dir=FOLDER"
    )
    if not manual_dir:
        raise InputError(f"'imagenet' is not prepared in {builder.data_dir}: {steps}")
    import tensorflow as tf

    missing = [
        archive
        for archive in _ARCHIVES
        if not tf.io.gfile.exists(os.path.join(manual_dir, archive))
    ]
    if missing:
        raise InputError(
            f"data.manual_dir = '{manual_dir}' lacks {' and '.join(missing)}: {steps}"
        )
    if jax.process_count() > 1:
        raise InputError(
            f"'imagenet' is not prepared in {builder.data_dir}, and "
            f"{jax.process_count()} processes cannot do it at the same time: prepare "
            f"it first, in a single process with data.manual_dir = '{manual_dir}'"
        )
    _LOGGER.info("preparing imagenet2012 in %s, once", builder.data_dir)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=manual_dir, try_download_gcs=False
        )
    )


def _examples(builder, split: str) -> int:
    """Return the number of images in a part; raise InputError if it was not prepared."""
    splits = builder.info.splits
    if not splits:  # tfds.testing.mock_data knows no sizes.
        return EXAMPLES[split]
    if split not in splits:
        raise InputError(
            f"'imagenet' in {builder.data_dir} has no part {split!r}: delete that "
            f"folder, and prepare it again from {' and '.join(_ARCHIVES)}"
        )
    return splits[split].num_examples
