"""A folder of images: train/<class>/* and val/<class>/*."""

import concurrent.futures
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Array

from freeadv_jax.data import jpeg
from freeadv_jax.data.encoded import EncodedImages
from freeadv_jax.data.sampling import steps_per_pass
from freeadv_jax.data.split import Split, existing_directory, held_out
from freeadv_jax.data.stream import decoded_batches, device_batches
from freeadv_jax.data.tf_import import import_tensorflow
from freeadv_jax.devices import parallel
from freeadv_jax.errors import InputError
from freeadv_jax.progress import Progress

_LOGGER = logging.getLogger(__name__)

FOLDER = "folder:"
# What else lies in the folders of the classes is left alone.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
_LAYOUT = "train/<class>/ and val/<class>/ with images"
_NAMED = 10
_SHUFFLE = 3_446_203_747


@dataclass(frozen=True)
class FolderDataset:
    """See `Dataset`; the images stay in their files."""

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    flip: bool
    prefetch: int

    def steps_per_pass(self, batch_size: int) -> int:
        """See `Dataset`."""
        return steps_per_pass(len(self.train.labels), batch_size)

    def batches(
        self, batch_size: int, *, seed: int
    ) -> Callable[[int], Iterator[dict[str, Array]]]:
        """See `Dataset`; nothing is read of what a resumed run skips."""
        import tensorflow as tf

        steps = self.steps_per_pass(batch_size)
        own = parallel.rows(batch_size)
        files = tf.constant([os.fsencode(path) for path in self.train.images.items])
        labels = tf.constant(self.train.labels)

        def draws(first_step):
            """The images of each step's rows, and the numbers of the draws."""
            for step in itertools.count(first_step):
                pass_number, position = divmod(step, steps)
                if position == 0 or step == first_step:
                    rng = np.random.default_rng([_SHUFFLE, seed, pass_number])
                    order = rng.permutation(len(self.train.labels))
                batch = order[position * batch_size :][:batch_size]
                numbers = np.arange(step * batch_size, (step + 1) * batch_size)
                yield batch[own], numbers[own]

        def read(index, draw):
            return {
                "image": tf.io.read_file(files[index]),
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
) -> FolderDataset:
    """The images of `name`, 'folder:' and a path; `test` are those of val/.

    They lie in `directory`, or at that path where it is ''. The classes are the folders
    of train/, sorted. Every image is decoded once here: the damaged ones are named in a
    warning and left out, if they are no more than `max_corrupt` of the images in train/
    or val/. InputError names what is unusable.
    """
    import_tensorflow(name, extra="imagenet")
    path = directory or name.removeprefix(FOLDER)
    if "://" in path:
        raise InputError(
            f"{path!r} is no folder of this machine: copy or mount it first; of the "
            "data sets only imagenet and tfds:<name> are read from a bucket"
        )
    root = existing_directory(path, name=FOLDER + "<path>", contents=_LAYOUT)
    class_names = _classes(root / "train")
    if len(class_names) < 2:
        raise InputError(
            f"'{root / 'train'}' holds {len(class_names)} folders of classes, "
            f"expected 2 or more; a data set is {_LAYOUT}"
        )
    if unknown := [c for c in _classes(root / "val") if c not in class_names]:
        raise InputError(
            f"'{root / 'val'}' has classes that train/ has not: {_first(unknown)}"
        )
    parts = []
    for part in ("train", "val"):
        files, labels = _list(root / part, class_names)
        sound = _sound(files, name=f"{root / part}", max_corrupt=max_corrupt)
        images = EncodedImages.of(files, size=image_size)
        parts.append(Split(images, np.array(labels, np.int32)).take(sound))
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
    )


def _classes(folder: Path) -> tuple[str, ...]:
    existing_directory(folder, name=FOLDER + "<path>", contents="a folder a class")
    return tuple(
        sorted(
            path.name
            for path in folder.iterdir()
            if path.is_dir() and not path.name.startswith(".")
        )
    )


def _list(folder: Path, class_names: tuple[str, ...]) -> tuple[list[Path], list[int]]:
    """The images of train/ or val/ by class and name, and their labels.

    InputError if a class has none; val/ need not have all the classes.
    """
    files, labels = [], []
    for label, class_name in enumerate(class_names):
        if not (folder / class_name).is_dir():
            continue
        found = sorted(
            path
            for path in (folder / class_name).iterdir()
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
        )
        if not found:
            raise InputError(
                f"'{folder / class_name}' holds no images, expected files that end in "
                f"{', '.join(SUFFIXES)}"
            )
        files += found
        labels += [label] * len(found)
    if not files:
        raise InputError(f"'{folder}' holds no images, expected {_LAYOUT}")
    return files, labels


def _sound(files: list[Path], *, name: str, max_corrupt: float) -> np.ndarray:
    """The indices of the files that can be decoded."""
    sound = np.zeros(len(files), bool)
    progress = Progress(f"checking {name}", total=len(files), unit="images")
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        for place, is_sound in enumerate(threads.map(_decodes, files)):
            sound[place] = is_sound
            progress.show(place + 1)
    corrupt = [str(path) for path, good in zip(files, sound) if not good]
    found = f"{name}: {len(corrupt)} of {len(files)} images are damaged"
    if len(corrupt) > max_corrupt * len(files):
        raise InputError(
            f"{found}, expected at most data.max_corrupt = {max_corrupt:g} of them: "
            f"{_first(corrupt)}"
        )
    if corrupt:
        _LOGGER.warning("%s, and left out: %s", found, _first(corrupt))
    return np.flatnonzero(sound)


def _decodes(path: Path) -> bool:
    try:
        jpeg.whole_decoder()(path.read_bytes())
    except (jpeg.undecodable(), OSError):
        return False
    return True


def _first(names: list[str]) -> str:
    """At most ten of the names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
