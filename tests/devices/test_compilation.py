"""Compiled programs on disk are used, replaced if damaged, and kept where JAX is told
to.
"""

import json
import os
import subprocess

import pytest
from tiny_run import ROOT, command, environment

FIELDS = {"updates": 8, "evaluation__attacks": "('natural',)"}


def run(workdir, **variables):
    """Return the results of a short run in a new process."""
    inherited = environment(devices=1)
    del inherited["JAX_COMPILATION_CACHE_DIR"]  # These tests use their own cache.
    subprocess.run(
        command(workdir, **FIELDS),
        env=inherited | variables,
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return folder, run(folder / "first")


def test_a_second_start_compiles_nothing_and_ends_in_the_same_figures(runs):
    folder, first = runs
    kept = {path.name for path in (folder / ".compiled").iterdir()}
    programs = {name for name in kept if name.endswith("-cache")}
    assert len(programs) > 10
    again = run(folder / "again")
    after = {path.name for path in (folder / ".compiled").iterdir()}
    assert {name for name in after if name.endswith("-cache")} == programs
    assert again["evaluation"] == first["evaluation"]
    assert again["training"]["compile_seconds"] < first["training"]["compile_seconds"]


def test_damaged_programs_are_compiled_again(runs):
    folder, first = runs
    for path in (folder / ".compiled").glob("*-cache"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run(folder / "after damage")["evaluation"] == first["evaluation"]


def test_the_folder_of_the_environment_variable_is_used(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    run(tmp_path / "runs" / "one", JAX_COMPILATION_CACHE_DIR=str(elsewhere))
    assert any(elsewhere.glob("*-cache"))
    assert os.listdir(tmp_path / "runs") == ["one"]
