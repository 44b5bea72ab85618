import gzip
import io
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest
from cifar_files import BATCHES, FILES, ROW, python2_pickle, write_all

from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.errors import InputError


@pytest.fixture
def scratch(tmp_path):
    yield tmp_path
    shutil.rmtree(tmp_path)  # pytest would keep its 400 MB.


@pytest.mark.parametrize(
    ("name", "class_name"), [("cifar10", "truck"), ("cifar100", "worm")]
)
def test_all_forms_of_cifar_give_the_same_arrays_with_channels_last(
    scratch, name, class_name
):
    first_place, *places = write_all(scratch, name)
    first = load_arrays(name, first_place, validation_examples=0)
    assert first.image_shape == (32, 32, 3)
    assert first.class_names[-1] == class_name
    assert len(set(first.class_names)) == first.train.labels.max() + 1
    assert (len(first.train.labels), len(first.test.labels)) == (50_000, 10_000)
    # A record holds all red values, then all green, then all blue ones, row by row.
    image = first.train.images[7]
    assert image[0, 0, 0] == 7
    assert image[0, 5, 0] == ROW[5]
    assert image[3, 4, 0] == ROW[3 * 32 + 4]
    assert image[3, 4, 1] == ROW[1024 + 3 * 32 + 4]
    assert image[31, 31, 2] == ROW[3071]
    starts = first.train.images[::10_000, 0, 1, 0].tolist()
    assert starts == ([0, 1, 2, 3, 4] if name == "cifar10" else [0] * 5)
    assert first.test.images[0, 0, 1, 0] == len(FILES[name]) - 1
    assert first.train.labels[:3].tolist() == [0, 1, 2]
    for place in places:
        other = load_arrays(name, place, validation_examples=0)
        for part in ("train", "test"):
            ours, theirs = getattr(first, part), getattr(other, part)
            assert np.array_equal(ours.images, theirs.images)
            assert np.array_equal(ours.labels, theirs.labels)


def fault(directory, name="cifar10"):
    with pytest.raises(InputError) as caught:
        load_arrays(name, directory, validation_examples=0)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{directory}/", "")


def sparse_binary_folder(root):
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for name in BATCHES:
        (folder / f"{name}.bin").touch()
        os.truncate(folder / f"{name}.bin", 30_730_000)
    return folder


@pytest.mark.parametrize("size", [30_729_999, 30_730_001])
def test_a_binary_file_of_another_length_is_refused(tmp_path, size):
    os.truncate(sparse_binary_folder(tmp_path) / "data_batch_2.bin", size)
    assert fault(tmp_path) == (
        f"cifar-10-batches-bin/data_batch_2.bin has {size:,} bytes: must have exactly "
        "30,730,000 (10,000 records of 3,073 bytes)"
    )


def test_a_label_outside_the_classes_is_refused(tmp_path):
    folder = sparse_binary_folder(tmp_path)
    with open(folder / "data_batch_1.bin", "r+b") as stream:
        stream.seek(2 * 3073)
        stream.write(b"\x0a")
    assert fault(tmp_path) == (
        "cifar-10-batches-bin/data_batch_1.bin: label 10 of image 2 is out of range: "
        "must be 0 to 9"
    )


def test_a_missing_file_is_named(tmp_path):
    (sparse_binary_folder(tmp_path) / "data_batch_3.bin").unlink()
    assert fault(tmp_path).startswith(
        "cifar-10-batches-bin/data_batch_3.bin is missing: must have data_batch_1.bin, "
    )


def test_a_directory_without_the_set_is_answered_with_what_it_must_hold(tmp_path):
    assert fault(tmp_path).endswith(
        "' holds no cifar10: must hold one of cifar-10-batches-bin, cifar-10-batches-py, "
        "cifar-10-binary.tar.gz, cifar-10-python.tar.gz"
    )
    assert fault(tmp_path, "cifar100").endswith(
        "' holds no cifar100: must hold one of cifar-100-binary, cifar-100-python, "
        "cifar-100-binary.tar.gz, cifar-100-python.tar.gz"
    )


def archive_of(**files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as members:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-100-binary/{name}.bin")
            member.size = len(content)
            members.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.mark.parametrize("damage", ["cut", "no gzip", "no tar", "checksum"])
def test_a_damaged_archive_is_refused(tmp_path, damage):
    good = archive_of(test=bytes(10_000 * 3_074))
    bad = {
        "cut": good[: len(good) // 2],
        "no gzip": b"<html>404</html>",
        "no tar": gzip.compress(b"no tar archive" * 100),
        "checksum": good[:-8] + b"\0\0\0\0" + good[-4:],
    }
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(bad[damage])
    message = fault(tmp_path, "cifar100")
    assert message.startswith("cifar-100-binary.tar.gz is damaged or unreadable (")
    assert message.endswith(": must be the official gzipped archive; download it again")


def test_an_archive_that_lacks_files_or_bytes_is_refused(tmp_path):
    archive = tmp_path / "cifar-100-binary.tar.gz"
    archive.write_bytes(archive_of(test=bytes(10_000 * 3_074)))
    assert fault(tmp_path, "cifar100") == (
        "cifar-100-binary.tar.gz lacks train.bin: must hold train.bin, test.bin"
    )
    archive.write_bytes(archive_of(train=b"short"))
    assert fault(tmp_path, "cifar100") == (
        "cifar-100-binary.tar.gz/train.bin has 5 bytes: must have exactly 153,700,000 "
        "(50,000 records of 3,074 bytes)"
    )


class Malicious:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


ZEROS = np.zeros((10_000, 3072), np.uint8)
REFUSED = f"it asks for {os.system.__module__}.system, which is not allowed"
SHAPES = ": its data have shape (2, 3072): must have (10000, 3072) and a list of labels"
ALLOWED = "must be the official pickle of 10,000 images"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            lambda: pickle.dumps(Malicious(), protocol=2),
            f" is damaged (UnpicklingError: {REFUSED}): {ALLOWED}",
        ),
        (lambda: b"", f" is damaged (EOFError: Ran out of input): {ALLOWED}"),
        (
            lambda: python2_pickle(ZEROS[:2], labels=[0, 0])[:-10],
            f" is damaged (UnpicklingError: pickle data was truncated): {ALLOWED}",
        ),
        (
            lambda: python2_pickle(ZEROS[:2], other=[0, 0]),
            f" is damaged (KeyError: b'labels'): {ALLOWED}",
        ),
        (
            lambda: pickle.dumps({b"data": 1, b"labels": [1]}, protocol=3),
            f": its data are no array of bytes: {ALLOWED}",
        ),
        (
            lambda: python2_pickle(ZEROS[:2], labels=[0, 0]),
            SHAPES,
        ),
        (
            lambda: python2_pickle(ZEROS, labels=[0] * 9_999),
            ": 10,000 images and 9,999 labels: must be equally many",
        ),
        (
            lambda: python2_pickle(ZEROS, labels=[0, 11] + [0] * 9_998),
            ": label 11 of image 1 is out of range: must be 0 to 9",
        ),
    ],
)
def test_a_pickle_other_than_the_official_ones_is_refused(tmp_path, content, message):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in BATCHES:
        (folder / name).touch()
    (folder / "data_batch_1").write_bytes(content())
    assert fault(tmp_path) == f"cifar-10-batches-py/data_batch_1{message}"


def test_an_oversized_pickle_is_refused_without_reading_it(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "data_batch_1").touch()
    os.truncate(folder / "data_batch_1", 10**12)
    assert fault(tmp_path) == (
        "cifar-10-batches-py/data_batch_1 has 1,000,000,000,000 bytes: must have about "
        "30,720,000 (a pickle of 10,000 images)"
    )
