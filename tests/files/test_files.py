import sys

import pytest

from freeadv_jax.errors import InputError
from freeadv_jax.files import (
    as_path,
    buckets,
    partial_path,
    read_json,
    sole_writer,
    whole_file,
    write_json,
)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_file_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "results.json"
    partial_path(path).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        write_json(path, {"a": 1})
    assert raised.value.filename == str(path)


def test_error_without_a_number_keeps_its_reason(tmp_path):
    expected = pytest.raises(OSError, match="9 requested and 3 written.*file.npz")
    with expected as told, whole_file(tmp_path / "file.npz"):
        raise OSError("9 requested and 3 written")
    assert told.value.strerror == "9 requested and 3 written"


def test_folder_has_one_writer_at_a_time(tmp_path):
    with sole_writer(tmp_path):
        refused = pytest.raises(InputError, match=f"{tmp_path} is in use")
        with refused, sole_writer(tmp_path):
            pass
    with sole_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("scheme", "client"), [("gs", "gcsfs"), ("s3", "s3fs")])
def test_a_bucket_without_its_client_names_the_extra(scheme, client, monkeypatch):
    monkeypatch.setitem(sys.modules, client, None)
    buckets._store.cache_clear()
    with pytest.raises(
        InputError, match=f"^{scheme}:// needs {client}.*jax.buckets.'$"
    ):
        as_path(f"{scheme}://bucket/run")


@pytest.mark.parametrize("address", ["gs://", "s3:///run", "az://bucket/run"])
def test_an_address_that_is_no_bucket_is_refused(address):
    with pytest.raises(InputError, match="must be .*://BUCKET/FOLDER"):
        as_path(address)
