"""A folder of images, train/<class>/* and val/<class>/*, or Tiny ImageNet's folder."""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import logging
import os
from collections.abc import Callable, Iterator

import numpy as np

from freeadv_jax.data.encoded import CODECS, GRAIN, TF_DATA, EncodedImages
from freeadv_jax.data.grain_stream import grain_batches, import_grain
from freeadv_jax.data.order import Order
from freeadv_jax.data.sampling import TrainingBatch, steps_per_pass
from freeadv_jax.data.split import Split, existing_directory, held_out
from freeadv_jax.data.stream import decoded_batches, device_batches
from freeadv_jax.data.tf_import import import_tensorflow
from freeadv_jax.devices import parallel
from freeadv_jax.errors import InputError, shortened
from freeadv_jax.files import AnyPath, BucketPath, files_below, listed_once
from freeadv_jax.progress import Progress

_LOGGER = logging.getLogger(__name__)

FOLDER = "folder:"
# The endings of the files that are read, in lower case. Pillow or TensorFlow decodes a
# file by its contents, whichever of these endings it has.
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp")
_LAYOUT = "train/<class>/ and val/<class>/ with images"
# Tiny ImageNet keeps a class's images in a folder of its own, beside a list of boxes, and
# the classes of all its validation images in one file.
_INNER = "images"
_BOXES = "_boxes.txt"
_ANNOTATIONS = "val_annotations.txt"


@dataclasses.dataclass(frozen=True)
class FolderDataset:
    """A `Dataset` whose images stay in their files until a batch needs them."""

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    flip: bool
    prefetch: int
    reader: str = TF_DATA

    def steps_per_pass(self, batch_size: int) -> int:
        """Return the whole batches in a pass; raise InputError if there is none."""
        return steps_per_pass(len(self.train.labels), batch_size)

    def batches(
        self, batch_size: int, *, seed: int
    ) -> Callable[[int], Iterator[TrainingBatch]]:
        """Return `batches(first_step)`, as `Dataset` describes it.

        The files of the steps before `first_step` are not read.
        """
        order = Order(len(self.train.labels), batch_size, seed)
        if self.reader == GRAIN:
            return grain_batches(
                list(zip(self.train.images.items, self.train.labels, strict=True)),
                order=order,
                name=self.name,
                size=self.image_shape[0],
                flip=self.flip,
                ahead=self.prefetch,
            )
        import tensorflow as tf

        own = parallel.rows(batch_size)
        paths = self.train.images.items
        if any(isinstance(path, BucketPath) for path in paths):
            # TensorFlow reads no s3://, and gs:// with credentials of its own.
            def content(index):
                encoded = tf.numpy_function(
                    lambda number: paths[number].read_bytes(), [index], tf.string
                )
                encoded.set_shape([])
                return encoded

        else:
            files = tf.constant([os.fsencode(path) for path in paths])

            def content(index):
                return tf.io.read_file(files[index])

        labels = tf.constant(self.train.labels)

        def draws(first_step):
            """Yield this process's images of each step, and the numbers of the draws."""
            for step in itertools.count(first_step):
                yield order.batch(step)[own], order.draws(step)[own]

        def read(index, draw):
            return {
                "image": content(index),
                "label": labels[index],
                "draw": draw,
            }

        def host_batches(first_step):
            rows = own.stop - own.start
            numbers = tf.TensorSpec([rows], tf.int64)
            drawn = tf.data.Dataset.from_generator(
                lambda: draws(first_step), output_signature=(numbers, numbers)
            )
            return decoded_batches(
                drawn.unbatch().map(read, num_parallel_calls=tf.data.AUTOTUNE),
                rows=rows,
                seed=seed,
                size=self.image_shape[0],
                flip=self.flip,
            )

        return device_batches(host_batches, name=self.name, ahead=self.prefetch)


def load_folder(
    name: str,
    directory: str,
    *,
    validation_examples: int,
    image_size: int,
    flip: bool,
    prefetch: int,
    max_corrupt: float,
    reader: str = TF_DATA,
) -> FolderDataset:
    """Return the images of the data set `name`, 'folder:' and a path.

    `directory` replaces the path unless it is ''. The classes are the folders of train/,
    sorted by name. `test` holds the images of val/, in a fixed random order.

    Every image is decoded once here. Damaged images are named in a warning and left out,
    up to a share of `max_corrupt` of train/ and of val/. The `reader` is 'tf.data' or
    'grain', which needs no TensorFlow and draws the same crops of the same images. Files of other endings than
    SUFFIXES, and files in nested folders, are counted and named in a warning. The layout
    of Tiny ImageNet is read too: train/<class>/images/, and val/images/ with the classes
    in val/val_annotations.txt.

    Raise InputError for an unusable folder, too many damaged images, or more
    `validation_examples` than training images.
    """
    if reader == GRAIN:
        import_grain(name)
    else:
        import_tensorflow(name, extra="imagenet")
    path = directory or name.removeprefix(FOLDER)
    root = listed_once(
        existing_directory(path, name=FOLDER + "<path>", contents=_LAYOUT)
    )
    class_names = _classes(root / "train")
    if len(class_names) < 2:
        raise InputError(
            f"'{root / 'train'}' has {len(class_names)} folders of classes: must have 2 "
            f"or more; a data set is {_LAYOUT}"
        )
    parts = []
    for part in ("train", "val"):
        found = _find(root / part, class_names)
        found.warn_of_left_out()
        sound = _sound(
            found.files, name=str(root / part), max_corrupt=max_corrupt, reader=reader
        )
        images = EncodedImages.of(found.files, size=image_size, reader=reader)
        parts.append(Split(images, np.array(found.labels, np.int32)).take(sound))
    train, test = parts
    kept, held = held_out(validation_examples, examples=len(train.labels), name=name)
    return FolderDataset(
        name=name,
        train=train.take(kept),
        validation=train.take(held),
        test=test.shuffled(),
        class_names=class_names,
        image_shape=(image_size, image_size, 3),
        flip=flip,
        prefetch=prefetch,
        reader=reader,
    )


def _classes(folder: AnyPath) -> tuple[str, ...]:
    existing_directory(folder, name=FOLDER + "<path>", contents="a folder a class")
    return tuple(sorted(path.name for path in _visible(folder) if path.is_dir()))


@dataclasses.dataclass
class _Found:
    """The images of train/ or val/ with their labels, and the files left out."""

    folder: AnyPath
    files: list[AnyPath] = dataclasses.field(default_factory=list)
    labels: list[int] = dataclasses.field(default_factory=list)
    # The reason why a file is left out, and the file.
    left_out: list[tuple[str, AnyPath]] = dataclasses.field(default_factory=list)

    def add(self, files: list[AnyPath], label: int) -> None:
        self.files += files
        self.labels += [label] * len(files)

    def leave_out(self, files: list[AnyPath], where: str) -> None:
        """Note `files`: those that could be images for `where`, others for their end."""
        for file in files:
            end = file.suffix.lower()
            reason = where if end in SUFFIXES else f"ending in {end or 'nothing'}"
            self.left_out.append((reason, file))

    def summary(self) -> str:
        """Return "2 in nested folders and 1 ending in .tif: <the first names>"."""
        counts = collections.Counter(reason for reason, _ in self.left_out)
        reasons = " and ".join(f"{count} {reason}" for reason, count in counts.items())
        names = [str(file.relative_to(self.folder)) for _, file in self.left_out]
        return f"{reasons}: {shortened(names)}"

    def warn_of_left_out(self) -> None:
        if self.left_out:
            _LOGGER.warning(
                "%s: %d files are left out, %s; images must lie directly in the folder of "
                "their class and end in %s",
                self.folder,
                len(self.left_out),
                self.summary(),
                ", ".join(SUFFIXES),
            )


def _find(folder: AnyPath, class_names: tuple[str, ...]) -> _Found:
    """Return the images of train/ or val/, sorted by class and name.

    A class may be missing from val/. Raise InputError if a folder of a class holds no
    images, or if val/ has a class that train/ lacks.
    """
    existing_directory(folder, name=FOLDER + "<path>", contents="a folder a class")
    if (folder / _ANNOTATIONS).is_file():
        return _find_annotated(folder, class_names)
    if unknown := [name for name in _classes(folder) if name not in class_names]:
        raise InputError(
            f"'{folder}' has classes that train/ lacks: {shortened(unknown)}"
        )
    found = _Found(folder)
    found.leave_out([p for p in _visible(folder) if p.is_file()], "outside of a class")
    for label, class_name in enumerate(class_names):
        if (folder / class_name).is_dir():
            _find_class(folder / class_name, label, found)
    if not found.files:
        raise InputError(f"'{folder}' holds no images: must be {_LAYOUT}")
    return found


def _find_class(folder: AnyPath, label: int, found: _Found) -> None:
    """Add the images of a class to `found`; raise InputError if there are none."""
    images = _images_in(folder)
    if not images and (folder / _INNER).is_dir():
        images = _images_in(folder / _INNER)
    others = _Found(folder)
    others.leave_out(
        [
            file
            for file in sorted({*files_below(folder)} - {*images})
            if not file.name.endswith(_BOXES)
        ],
        "in nested folders",
    )
    found.left_out += others.left_out
    if not images:
        instead = f"; it has {others.summary()}" if others.left_out else ""
        raise InputError(
            f"'{folder}' holds no images: must hold files that end in "
            f"{', '.join(SUFFIXES)}{instead}"
        )
    found.add(images, label)


def _find_annotated(folder: AnyPath, class_names: tuple[str, ...]) -> _Found:
    """Return Tiny ImageNet's validation images, sorted by class and name.

    A line of val_annotations.txt holds a file of images/, its class and a box, separated
    by tabs. Raise InputError for other lines, unknown classes and missing files.
    """
    table = folder / _ANNOTATIONS
    files: dict[str, list[AnyPath]] = {name: [] for name in class_names}
    lines = table.read_text(errors="surrogateescape").splitlines()
    for number, line in enumerate(filter(None, lines), start=1):
        file, *rest = line.split("\t")
        if not file or not rest:
            raise InputError(
                f"line {number} of '{table}' is {line[:40]!r}: must be a file and its "
                "class, separated by a tab"
            )
        if rest[0] not in files:
            raise InputError(f"'{table}' has classes that train/ lacks: {rest[0]}")
        files[rest[0]].append(folder / _INNER / file)
    found = _Found(folder)
    for label, files_of_class in enumerate(files.values()):
        found.add(sorted(files_of_class), label)
    if not found.files:
        raise InputError(
            f"'{table}' names no images: must name a file and its class on each line"
        )
    if missing := [file.name for file in found.files if not file.is_file()]:
        raise InputError(
            f"'{table}' names {len(missing)} files that '{folder / _INNER}' lacks: "
            f"{shortened(missing)}"
        )
    others = {*files_below(folder)} - {*found.files, table}
    found.leave_out(sorted(others), f"without a line in {_ANNOTATIONS}")
    return found


def _visible(folder: AnyPath) -> list[AnyPath]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _images_in(folder: AnyPath) -> list[AnyPath]:
    return sorted(
        path
        for path in _visible(folder)
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )


def _sound(
    files: list[AnyPath], *, name: str, max_corrupt: float, reader: str
) -> np.ndarray:
    """Return the indices of the files that can be decoded; warn of the others.

    Raise InputError if they are more than a share of `max_corrupt`.
    """
    sound = np.zeros(len(files), bool)
    progress = Progress(f"checking {name}", total=len(files), unit="images")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        checked = threads.map(functools.partial(_decodes, codec=CODECS[reader]), files)
        for index, is_sound in enumerate(checked):
            sound[index] = is_sound
            progress.show(index + 1)
    damaged = [str(path) for path, is_sound in zip(files, sound) if not is_sound]
    found = f"{name}: {len(damaged)} of {len(files)} images are damaged"
    if len(damaged) > max_corrupt * len(files):
        raise InputError(
            f"{found}: must be at most a share of {max_corrupt:g}, which "
            f"--config.data.max_corrupt sets: {shortened(damaged)}"
        )
    if damaged:
        _LOGGER.warning("%s and left out: %s", found, shortened(damaged))
    return np.flatnonzero(sound)


def _decodes(path: AnyPath, codec) -> bool:
    try:
        codec.whole_decoder()(path.read_bytes())
    except codec.undecodable():
        return False
    except OSError:
        if isinstance(path, BucketPath):  # The store failed, not the image.
            raise
        return False
    return True
