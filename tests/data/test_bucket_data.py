"""Data sets in buckets are those of the same files on this machine."""

import itertools

import numpy as np
import pytest
from image_files import write_folder
from test_folder import OPTIONS, numbers
from test_idx import write
from test_npz import both, written

from freeadv_jax.data.dataset import load_dataset
from freeadv_jax.devices import parallel
from freeadv_jax.errors import InputError
from freeadv_jax.files.buckets import BucketPath

pytestmark = pytest.mark.buckets


def put(bucket, folder):
    """Copy a folder into a bucket."""
    for file in folder.rglob("*"):
        if file.is_file():
            (bucket / file.relative_to(folder)).write_bytes(file.read_bytes())


def assert_same_data(ours, expected):
    assert ours.class_names == expected.class_names
    for part in ("train", "validation", "test"):
        one, other = getattr(ours, part), getattr(expected, part)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(np.asarray(one.images), np.asarray(other.images))


@pytest.mark.parametrize("gz", [False, True])
def test_idx_files_of_a_bucket(bucket, tmp_path, gz):
    write(tmp_path, gz=gz)
    put(bucket, tmp_path)
    load = lambda folder: load_dataset(name="mnist", **OPTIONS | {"dir": str(folder)})
    assert_same_data(load(bucket), load(tmp_path))
    (path,) = (p for p in bucket.files_below() if p.name.startswith("t10k-labels"))
    path.write_bytes(b"x")
    with pytest.raises(InputError, match=f"^{path} (starts with|is damaged)"):
        load(bucket)


def test_npz_files_of_a_bucket_and_of_its_folder(bucket, tmp_path):
    local = load_dataset(name=written(tmp_path, **both()), **OPTIONS)
    put(bucket, tmp_path)
    for name, folder in (
        (f"npz:{bucket}/own.npz", ""),
        ("npz:own.npz", bucket),
        ("npz:/elsewhere/own.npz", bucket),
        (f"npz:{bucket}/moved/own.npz", bucket),
    ):
        assert_same_data(
            load_dataset(name=name, **OPTIONS | {"dir": str(folder)}), local
        )
    with pytest.raises(InputError, match=f"{bucket}/gone.npz does not exist"):
        load_dataset(name=f"npz:{bucket}/gone.npz", **OPTIONS)


@pytest.mark.tensorflow
@pytest.mark.parametrize("reader", ["tf.data", "grain"])
def test_images_of_folders_in_a_bucket(bucket, tmp_path, monkeypatch, reader):
    pytest.importorskip({"tf.data": "tensorflow", "grain": "grain"}[reader])
    options = OPTIONS | {"reader": reader}
    monkeypatch.setattr(parallel, "assemble", lambda rows: rows)
    root = write_folder(tmp_path / "images", train=31, val=6)
    (root / "train" / "cat" / "nested").mkdir()
    (root / "train" / "cat" / "nested" / "deep.jpg").write_bytes(b"")
    put(bucket, root)
    ours, expected = (
        load_dataset(name=f"folder:{f}", **options) for f in (bucket, root)
    )
    drawn = [
        list(itertools.islice(each.batches(8, seed=3)(1), 5))
        for each in (ours, expected)
    ]
    assert numbers(drawn[0]) == numbers(drawn[1])
    for one, other in zip(*drawn):
        np.testing.assert_array_equal(one["image"], other["image"])
    assert_same_data(ours, expected)
    assert ours.test.images.fingerprint() == expected.test.images.fingerprint()


@pytest.mark.tensorflow
def test_a_store_that_fails_is_no_damaged_image(bucket, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    put(bucket, write_folder(tmp_path / "images", train=31, val=6))

    def fail(path):
        raise OSError(5, "the store is away", str(path))

    monkeypatch.setattr(BucketPath, "read_bytes", fail)
    with pytest.raises(OSError, match="the store is away"):
        load_dataset(name=f"folder:{bucket}", **OPTIONS | {"max_corrupt": 1.0})


def test_a_folder_that_a_bucket_lacks_is_named(bucket):
    with pytest.raises(InputError, match=f"'{bucket}' of 'mnist' does not exist"):
        load_dataset(name="mnist", **OPTIONS | {"dir": str(bucket)})
