"""The published package has its metadata, licence, address, and checks."""

import importlib.util
import pathlib
import re
import subprocess
import tomllib

import pytest
import yaml

import freeadv_jax

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def oldest():
    """Load .ci/oldest.py, which lies in no package."""
    spec = importlib.util.spec_from_file_location("oldest", ROOT / ".ci" / "oldest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_requirement_has_one_lower_bound():
    bounds = oldest().lower_bounds(PROJECT)
    assert {"jax", "flax", "orbax-checkpoint", "torch", "mkdocs"} <= bounds.keys()
    assert bounds["orbax-checkpoint"] == "0.12.8"


@pytest.mark.parametrize("requirement", ["torch", "torch<3", "torch>2"])
def test_a_requirement_without_a_lower_bound_is_refused(requirement):
    project = {"name": "n", "dependencies": [requirement], "optional-dependencies": {}}
    with pytest.raises(ValueError, match="no lower bound"):
        oldest().lower_bounds(project)


def test_orbax_has_an_upper_bound_while_its_private_methods_are_replaced():
    source = (ROOT / "freeadv_jax" / "runs" / "checkpoint.py").read_text()
    (orbax,) = (each for each in PROJECT["dependencies"] if each.startswith("orbax"))
    assert "manager._get_metrics" in source
    assert ",<" in orbax


def test_the_address_of_the_repository_stands_in_one_file():
    address = PROJECT["urls"]["Repository"].removeprefix("https://")
    files = subprocess.check_output(
        ["git", "grep", "-l", address], cwd=ROOT, text=True
    ).split()
    assert files == ["pyproject.toml"]


def test_the_changelog_has_a_section_for_this_version():
    sections = re.findall(
        r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    version = freeadv_jax.__version__
    assert sections[0] == ("Unreleased" if "dev" in version else version)


def test_the_forge_runs_all_checks_on_the_oldest_and_the_newest_versions():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    job = workflow["jobs"]["checks"]
    assert job["strategy"]["matrix"]["include"] == [
        {"python": "3.11", "versions": "oldest"},
        {
            "python": "3.13",
            "versions": "newest",
            "accelerators": "yes",
            "thorough": "yes",
        },
    ]
    assert job["steps"][-1]["run"] == "bash .ci/run"
    (oldest_python,) = re.findall(r">=(3\.\d+)", PROJECT["requires-python"])
    assert oldest_python == "3.11"
    for row in job["strategy"]["matrix"]["include"]:
        classifier = f"Programming Language :: Python :: {row['python']}"
        assert classifier in PROJECT["classifiers"]


def test_the_citation_names_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert paper["title"] == "Adversarial Training for Free!"
    assert paper["authors"][0]["family-names"] == "Shafahi"


def test_type_annotations_are_published():
    assert (ROOT / "freeadv_jax" / "py.typed").exists()
    assert "py.typed" in (ROOT / "setup.py").read_text()
