"""The record of a benchmark names its command, versions and processor."""

import pathlib
import re

import pytest

from benchmarks.record import kept, write_record
from freeadv_jax.files import read_json, write_json

ARGUMENTS = [
    "/a/benchmarks/training.py",
    *("--rounds=1", "--variants", "as it is", "bfloat16"),
]


def test_a_record_has_its_command_its_results_and_the_requested_versions(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("sys.argv", ARGUMENTS)
    monkeypatch.delenv("XLA_FLAGS")
    write_record(tmp_path / "new" / "record.json", {"a": 1}, packages=("pytest",))
    record = read_json(tmp_path / "new" / "record.json")
    assert record["command"] == (
        "python -m benchmarks.training --rounds=1 --variants 'as it is' bfloat16"
    )
    assert record["results"] == {"a": 1}
    assert record["environment"]["peers"] == {"pytest": pytest.__version__}
    assert "rows" not in record


def test_the_command_of_a_record_sets_the_variables_that_change_kernels(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("sys.argv", ARGUMENTS)
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --b=2")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    write_record(tmp_path / "record.json", {}, rows=[{"a": 1}])
    record = read_json(tmp_path / "record.json")
    assert record["command"] == (
        "ONEDNN_MAX_CPU_ISA=AVX2 XLA_FLAGS='--a=1 --b=2' "
        "python -m benchmarks.training --rounds=1 --variants 'as it is' bfloat16"
    )
    assert record["rows"] == [{"a": 1}]


def test_only_results_with_the_same_settings_are_kept(tmp_path):
    file, how = tmp_path / "kept.json", {"setting": {"batch": 8}, "commit": "a"}
    assert kept(file, how) == how
    write_json(file, how | {"result": 1})
    assert kept(file, how) == how | {"result": 1}
    other = how | {"commit": "b"}
    assert kept(file, other) == other


def test_a_record_names_the_processor_and_the_vector_instructions_it_has(tmp_path):
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if not cpuinfo.exists() or "flags" not in cpuinfo.read_text():
        pytest.skip("the system does not list its vector instructions")
    write_record(tmp_path / "record.json", {})
    environment = read_json(tmp_path / "record.json")["environment"]
    text = cpuinfo.read_text()
    assert f": {environment['processor']}\n" in text
    known = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
    has = {name for name in known if re.search(rf"\b{name}\b", text)}
    assert set(environment["vector_instructions"]) == has
