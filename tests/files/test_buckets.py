"""Paths of buckets, against stores on this machine that speak the real protocols."""

import pathlib

import numpy as np
import pytest

from freeadv_jax.errors import InputError
from freeadv_jax.files import (
    as_path,
    files_below,
    listed_once,
    local_copy,
    local_folder,
    local_path,
    read_json,
    strangers,
    whole_file,
    write_json,
)
from freeadv_jax.files.buckets import BucketPath

pytestmark = pytest.mark.buckets


def test_json_of_a_bucket_is_one_object(bucket):
    path = bucket / "run" / "results.json"
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}
    assert path.is_file() and not path.is_dir()
    assert path.parent.is_dir() and not path.parent.is_file()
    assert str(path).startswith(("s3://bucket/", "gs://bucket/"))
    assert [p.name for p in bucket.files_below()] == ["results.json"]


def test_a_file_that_was_not_finished_leaves_the_object_as_it_was(bucket):
    path = bucket / "results.json"
    path.write_text("before")
    with pytest.raises(RuntimeError), whole_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    with pytest.raises(OSError, match="written whole"):
        path.open("w")
    assert path.read_text() == "before"


def test_an_object_of_many_megabytes_is_written_and_read(bucket):
    arrays = {"x": np.random.default_rng(0).random(2_000_000)}  # 16 MB.
    with whole_file(bucket / "x.npz") as partial, partial.open("wb") as file:
        np.savez(file, **arrays)
    with local_copy(bucket / "x.npz") as copy, np.load(copy) as file:
        np.testing.assert_array_equal(file["x"], arrays["x"])
    assert not copy.exists()


def test_only_one_creator_of_an_object_succeeds(bucket):
    (bucket / "x").create(b"first")
    with pytest.raises(FileExistsError):
        (bucket / "x").create(b"second")
    assert (bucket / "x").read_bytes() == b"first"


def test_a_store_without_conditional_puts_takes_the_object(bucket, monkeypatch):
    """Its answer is that of such stores behind the protocol of S3."""
    put = bucket.store.pipe_file

    def refuse(key, data, mode="overwrite"):
        if mode == "create":
            cause = RuntimeError("A header you provided is not implemented")
            cause.response = {"Error": {"Code": "NotImplemented"}}
            raise OSError(5, "not implemented") from cause
        return put(key, data)

    monkeypatch.setattr(bucket.store, "pipe_file", refuse)
    (bucket / "x").create(b"first")
    assert (bucket / "x").read_bytes() == b"first"


def test_an_object_that_another_process_put_is_seen(bucket):
    assert not (bucket / "x").exists()
    assert not bucket.is_dir()
    (bucket / "x").write_bytes(b"1")
    assert list(bucket.iterdir()) == [bucket / "x"]
    (bucket / "y").write_bytes(b"22")
    assert (bucket / "y").exists()
    assert (bucket / "y").stat().st_size == 2
    assert list(bucket.iterdir()) == [bucket / "x", bucket / "y"]
    (bucket / "x").unlink()
    (bucket / "x").unlink(missing_ok=True)
    assert list(bucket.iterdir()) == [bucket / "y"]


def test_a_missing_object_and_a_missing_bucket_are_named(bucket):
    with pytest.raises(FileNotFoundError) as raised:
        (bucket / "x").read_bytes()
    assert raised.value.filename == f"{bucket}/x"
    nowhere = as_path(str(bucket).replace("bucket", "nowhere"))
    with pytest.raises(OSError) as raised:
        write_json(nowhere / "x", {})
    assert raised.value.filename == f"{nowhere}/x"


def tree(folder):
    for name in ("b/1.txt", "b/c/2.txt", "a/3.txt", "4.txt", ".hidden/5.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_listings_are_those_of_the_same_folder_on_this_machine(bucket, tmp_path):
    tree(bucket)
    tree(tmp_path)

    def seen(folder):
        names = [str(path.relative_to(folder)) for path in files_below(folder)]
        below = [folder / name for name in ("b", "b/c", "b/1.txt", "c", "a/3.txt")]
        kinds = [(p.exists(), p.is_dir(), p.is_file()) for p in below]
        listed = [sorted(p.name for p in each.iterdir()) for each in (folder, below[0])]
        return sorted(names), kinds, listed

    assert seen(bucket) == seen(listed_once(bucket)) == seen(tmp_path)
    with local_folder(bucket) as copy:
        assert (copy / "b/c/2.txt").read_text() == "b/c/2.txt"


def test_a_folder_that_is_listed_once_stays_as_it_was(bucket):
    tree(bucket)
    listed = listed_once(bucket)
    (bucket / "late").write_text("late")
    assert not (listed / "late").exists()
    assert (listed / "4.txt").read_text() == "4.txt"
    assert not listed_once(bucket / "empty").exists()


def test_strangers_are_all_but_the_known_files(bucket):
    assert not strangers(bucket)
    write_json(bucket / "run.json", {})
    (bucket / ".lease" / "1").write_text("")
    assert not strangers(bucket, bucket / "run.json")
    (bucket / "mine").write_text("")
    assert strangers(bucket, bucket / "run.json") == [bucket / "mine"]


def test_a_path_is_of_this_machine_or_of_a_bucket(bucket):
    assert as_path("~/runs") == pathlib.Path("~/runs").expanduser()
    assert type(as_path("a/b")) is type(pathlib.Path("a/b"))
    assert as_path(bucket) is bucket
    path = as_path(f"{bucket}//a/../b/")
    assert isinstance(path, BucketPath)
    assert str(path) == str(path.resolve()) == f"{bucket}/b"
    with pytest.raises(InputError, match="is no folder of this machine: copy it here"):
        local_path(str(bucket))
