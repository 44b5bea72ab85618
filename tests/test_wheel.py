"""The built wheel: it holds the configurations and commands, and trains without a clone."""

import configparser
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return a folder with the content of the wheel, as site-packages has it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in SOURCES:
        shutil.copy(REPOSITORY / name, source)
    for folder in ("freeadv_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / folder, source / folder, ignore=ignored)
    program = (
        f"from setuptools import build_meta; build_meta.build_wheel({str(built)!r})"
    )
    subprocess.run(
        [sys.executable, "-c", program], cwd=source, check=True, capture_output=True
    )
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(built / "site")
    return built / "site"


def run_installed(installed, folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_every_configuration_and_nothing_beside_the_package(installed):
    names = {path.name for path in (REPOSITORY / "configs").glob("*.py")}
    packaged = installed / "freeadv_jax/configs"
    assert {path.name for path in packaged.glob("*.py")} == names
    assert (installed / "freeadv_jax/py.typed").is_file()
    assert (installed / "freeadv_jax/weights/robustbench.json").is_file()
    top = {path.name for path in installed.iterdir()}
    assert {name for name in top if "dist-info" not in name} == {"freeadv_jax"}


def test_each_console_script_names_a_function(installed):
    (path,) = installed.glob("*.dist-info/entry_points.txt")
    parser = configparser.ConfigParser()
    parser.read(path)
    scripts = dict(parser["console_scripts"])
    assert set(scripts) == {
        f"freeadv-{name}" for name in ("train", "evaluate", "report", "export")
    }
    lines = "; ".join(
        f"from {module} import {name}"
        for module, _, name in (target.partition(":") for target in scripts.values())
    )
    ended = run_installed(installed, installed, "-c", lines)
    assert ended.returncode == 0, ended.stderr


def test_an_installed_package_knows_its_configurations_by_name(installed, tmp_path):
    ended = run_installed(
        installed, tmp_path, "-m", "freeadv_jax.main", "--config=digits_fre8"
    )
    assert ended.returncode == 1
    assert "did you mean digits_free8 or " in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.slow
def test_an_installed_package_trains_in_a_folder_that_is_no_clone(installed, tmp_path):
    ended = run_installed(
        installed,
        tmp_path,
        "-m",
        "freeadv_jax.main",
        "--config=digits_free8",
        "--config.updates=64",
        "--config.batch_size=64",
        "--config.evaluation.attacks=natural,fgsm",
    )
    assert ended.returncode == 0, ended.stderr
    results = json.loads((tmp_path / "runs/digits_free8/results.json").read_text())
    assert list(results["evaluation"]) == ["natural", "fgsm"]
