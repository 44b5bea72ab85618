import re

import jax
import pytest

import freeadv_jax
from freeadv_jax.errors import InputError
from freeadv_jax.files import (
    partial_path,
    read_json,
    sole_writer,
    whole_file,
    write_json,
)
from freeadv_jax.runs.provenance import environment


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "results.json"
    partial_path(path).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as raised:
        write_json(path, {"a": 1})
    assert raised.value.filename == str(path)


def test_a_fault_without_a_number_keeps_its_reason(tmp_path):
    expected = pytest.raises(OSError, match="9 requested and 3 written.*file.npz")
    with expected as told, whole_file(tmp_path / "file.npz"):
        raise OSError("9 requested and 3 written")
    assert told.value.strerror == "9 requested and 3 written"


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    with sole_writer(tmp_path):
        refused = pytest.raises(InputError, match=f"{tmp_path} is in use")
        with refused, sole_writer(tmp_path):
            pass
    with sole_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_environment_names_versions_devices_and_commit():
    found = environment()
    assert found["versions"]["jax"] == jax.__version__
    assert found["device_count"] == 8
    assert found["device_kind"] == "cpu"
    assert found["versions"]["freeadv_jax"] == freeadv_jax.__version__
    assert found["commit"] is None or re.fullmatch(
        "[0-9a-f]{40}(-dirty)?", found["commit"]
    )
