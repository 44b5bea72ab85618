"""Read CIFAR-10 and CIFAR-100 from the official archives or their unpacked folders.

Source of the formats: https://www.cs.toronto.edu/~kriz/cifar.html. Archives are read
in memory; nothing is extracted to disk.
"""

import gzip
import io
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from freeadv_jax.data.split import Split, existing_directory, labelled
from freeadv_jax.errors import InputError, one_line
from freeadv_jax.files import AnyPath, local_copy
from freeadv_jax.pickles import unpickle_arrays

_PIXELS = 3 * 32 * 32
_TRAIN_RECORDS = 50_000
_TEST_RECORDS = 10_000


@dataclass(frozen=True)
class _Form:
    """Describe one of the forms in which a set is published.

    `label` is the number of label bytes before the pixels of a binary record, of which
    the last one is used, or the key of the labels in a pickled file.
    """

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label: int | bytes

    def records(self, file: str) -> int:
        """Return the number of images in the official `file`."""
        return _TEST_RECORDS if file in self.test else _TRAIN_RECORDS // len(self.train)


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_FORMS = {
    "cifar10": (
        _Form(
            folder="cifar-10-batches-bin",
            archive="cifar-10-binary.tar.gz",
            train=tuple(f"{batch}.bin" for batch in _BATCHES),
            test=("test_batch.bin",),
            label=1,
        ),
        _Form(
            folder="cifar-10-batches-py",
            archive="cifar-10-python.tar.gz",
            train=_BATCHES,
            test=("test_batch",),
            label=b"labels",
        ),
    ),
    "cifar100": (
        _Form(
            folder="cifar-100-binary",
            archive="cifar-100-binary.tar.gz",
            train=("train.bin",),
            test=("test.bin",),
            label=2,
        ),
        _Form(
            folder="cifar-100-python",
            archive="cifar-100-python.tar.gz",
            train=("train",),
            test=("test",),
            label=b"fine_labels",
        ),
    ),
}


def read_cifar(
    name: str, directory: str | AnyPath, *, num_classes: int
) -> tuple[Split, Split]:
    """Return the training and test part of 'cifar10' or 'cifar100' (fine labels).

    `directory` holds an official archive or an unpacked folder, or is the unpacked
    folder. An unpacked folder is preferred to an archive, and the binary form to the
    pickled one. Raise InputError naming a file that is missing or damaged.
    """
    forms = _FORMS[name]
    wanted = [form.folder for form in forms] + [form.archive for form in forms]
    contents = f"one of {', '.join(wanted)}"
    root = existing_directory(directory, name=name, contents=contents)
    form, location = _locate(forms, root)
    if form is None:
        raise InputError(f"'{root}' holds no {name}: must hold {contents}")
    read = _read_folder if location.is_dir() else _read_archive
    files = read(form, location)
    parts = [
        [_decode(files[file], form, file, location, num_classes) for file in part]
        for part in (form.train, form.test)
    ]
    train, test = (
        Split(
            np.concatenate([piece.images for piece in pieces]),
            np.concatenate([piece.labels for piece in pieces]),
        )
        for pieces in parts
    )
    return train, test


def _locate(forms: tuple[_Form, ...], root: AnyPath) -> tuple[_Form | None, AnyPath]:
    for form in forms:
        if (root / form.folder).is_dir():
            return form, root / form.folder
        if any((root / file).is_file() for file in form.train + form.test):
            return form, root
    for form in forms:
        if (root / form.archive).is_file():
            return form, root / form.archive
    return None, root


def _read_folder(form: _Form, folder: AnyPath) -> dict[str, bytes]:
    files = {}
    for file in form.train + form.test:
        path = folder / file
        if not path.is_file():
            raise InputError(f"{path} is missing: must have {_listed(form)}")
        try:
            _check_size(path.stat().st_size, form, file, folder)
            files[file] = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} is unreadable ({error.strerror})") from error
    return files


def _read_archive(form: _Form, archive: AnyPath) -> dict[str, bytes]:
    files = {}
    try:
        # Not tarfile's own "r|gz", which does not verify the gzip checksum.
        with local_copy(archive) as copy, gzip.open(copy) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as members:
                for member in members:
                    file = Path(member.name).name
                    if member.isfile() and file in form.train + form.test:
                        _check_size(member.size, form, file, archive)
                        files[file] = members.extractfile(member).read()
            while stream.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(
            f"{archive} is damaged or unreadable ({one_line(error)}): must be the "
            "official gzipped archive; download it again"
        ) from error
    missing = [file for file in form.train + form.test if file not in files]
    if missing:
        raise InputError(
            f"{archive} lacks {', '.join(missing)}: must hold {_listed(form)}"
        )
    return files


def _listed(form: _Form) -> str:
    return ", ".join(form.train + form.test)


def _check_size(size: int, form: _Form, file: str, location: AnyPath) -> None:
    records = form.records(file)
    if isinstance(form.label, int):
        record = form.label + _PIXELS
        if size != records * record:
            raise InputError(
                f"{location / file} has {size:,} bytes: must have exactly "
                f"{records * record:,} ({records:,} records of {record:,} bytes)"
            )
    elif size > 2 * records * _PIXELS:
        raise InputError(
            f"{location / file} has {size:,} bytes: must have about {records * _PIXELS:,} "
            f"(a pickle of {records:,} images)"
        )


def _decode(
    content: bytes, form: _Form, file: str, location: AnyPath, num_classes: int
) -> Split:
    source = str(location / file)
    if isinstance(form.label, int):
        table = np.frombuffer(content, np.uint8).reshape(-1, form.label + _PIXELS)
        rows, labels = table[:, form.label :], table[:, form.label - 1]
    else:
        rows, labels = _unpickle(content, form.label, form.records(file), source)
    images = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return labelled(
        np.ascontiguousarray(images), labels, num_classes=num_classes, source=source
    )


def _unpickle(
    content: bytes, label_key: bytes, records: int, source: str
) -> tuple[np.ndarray, np.ndarray]:
    allowed = f"must be the official pickle of {records:,} images"
    try:
        # The files were written by Python 2, whose strings are bytes.
        batch = unpickle_arrays(io.BytesIO(content), encoding="bytes")
        rows, labels = batch[b"data"], np.asarray(batch[label_key], np.int64)
    except Exception as error:  # A damaged pickle raises nearly anything.
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{source} is damaged ({reason}): {allowed}") from error
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8:
        raise InputError(f"{source}: its data are no array of bytes: {allowed}")
    if rows.shape != (records, _PIXELS) or labels.ndim != 1:
        raise InputError(
            f"{source}: its data have shape {rows.shape}: must have "
            f"({records}, {_PIXELS}) and a list of labels"
        )
    return rows, labels
