"""The code of the README and of docs/: Python blocks run, and commands exist as typed."""

import functools
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
import quick_compilation

from freeadv_jax.config import field_names

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# One device.
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "XLA_FLAGS": quick_compilation.FLAGS,
}
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# A page that loads this run expects that somebody trained it.
_LOADED = re.compile(r"load\(\"(runs/\w+)\"")


def blocks(page, language):
    return [body for name, body in _FENCE.findall(page.read_text()) if name == language]


# The Python blocks of a page are one program: later blocks use the names of earlier ones.
PROGRAMS = {
    page.stem: program
    for page in PAGES
    if (program := "\n".join(blocks(page, "python")))
}


def marks(program):
    """Return the markers of the libraries that a program needs."""
    needed = {"import torch": "torch", "fa.corruptions(": "corruptions"}
    return [getattr(pytest.mark, needed[text]) for text in needed if text in program]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=marks(program)) for name, program in PROGRAMS.items()],
)
def test_python_blocks_run_in_an_empty_folder(name, tmp_path, request):
    program = PROGRAMS[name]
    if "import torch" in program:
        # In a process of its own: beside a PyTorch that it was not built for torchvision
        # fails at its first import alone, and timm may have tried before.
        tried = [sys.executable, "-c", "import torchvision"]
        if subprocess.run(tried, capture_output=True, check=False).returncode:
            pytest.skip("torchvision is missing or does not fit this PyTorch")
    if "fa.corruptions(" in program:
        pytest.importorskip("imagecorruptions")
    for folder in _LOADED.findall(program):
        run = request.getfixturevalue("trained_pair")[1]
        shutil.copytree(run, tmp_path / folder)
    environment = os.environ | ENVIRONMENT
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


@pytest.mark.slow
def test_own_model_trains_from_the_command_line_as_the_page_shows(tmp_path):
    page = ROOT / "docs" / "own-model.md"
    *_, module, data = blocks(page, "python")
    path = tmp_path / re.match(r"# file: (\S+)\n", module)[1]
    path.write_text(module)
    (words,) = (words for words in commands(page) if words[0] == "freeadv-train")
    train = [
        sys.executable,
        "-m",
        "freeadv_jax.main",
        *words[1:],
        "--config.updates=80",
        "--config.evaluation.attacks=natural,pgd-20",
    ]
    environment = os.environ | ENVIRONMENT
    for command in ([sys.executable, "-c", data], train):
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "runs" / "own" / "results.json").exists()


def test_there_are_python_blocks_in_the_readme_and_the_guides():
    assert PROGRAMS.keys() >= {"README", "evaluate", "own-model", "fine-tuning", "runs"}


def commands(page):
    """Return the commands of a page, as lists of words: of sh blocks and of `code`."""
    text = page.read_text()
    lines = [
        line
        for body in blocks(page, "sh")
        for line in body.replace("\\\n", " ").splitlines()
    ]
    prose = _FENCE.sub("", text)
    lines += [
        " ".join(code.split())
        for code in re.findall(
            r"`((?:python -m|pip install|freeadv-\w+ )[^`]+)`", prose
        )
    ]
    return [
        words
        for line in lines
        for part in re.split(r"&&|\|", line)
        if (words := shlex.split(part, comments=True))
    ]


def source_of(module):
    """Return the text of a module of the repository; '' for another."""
    spec = importlib.util.find_spec(module)
    if spec.submodule_search_locations:
        spec = importlib.util.find_spec(f"{module}.__main__")
    path = pathlib.Path(spec.origin) if spec else None
    return path.read_text() if path and path.is_relative_to(ROOT) else ""


@functools.cache
def options_of(module):
    """Return the options named in a module, and in those of the repository it imports.

    Running `--help` would import JAX in a process for each module.
    """
    text = source_of(module)
    for imported in re.findall(
        r"^from ((?:benchmarks|freeadv_jax)[\w.]*)", text, re.MULTILINE
    ):
        text += source_of(imported)
    return set(re.findall(r"\"(?:--)?([a-z]\w*)\"", text))


def check_program(module, arguments):
    """Assert that a module exists and knows each option that it is given."""
    assert importlib.util.find_spec(module), module
    for argument in arguments:
        option = argument.split("=")[0]
        if option == "--config":
            path = argument.removeprefix("--config=")
            names = [ROOT / path, ROOT / "configs" / f"{path}.py"]
            assert any(each.is_file() for each in names), argument
        elif option.startswith("--config."):
            field = option.removeprefix("--config.")
            assert field == "FIELD" or field in field_names(), argument
        elif option.startswith("--") and option != "--help":
            names = {option[2:], option.removeprefix("--no-").removeprefix("--")}
            assert names & options_of(module), argument


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_name_existing_modules_options_extras_and_files(page):
    scripts = PROJECT["scripts"]
    for words in commands(page):
        if words[:2] == ["python", "-m"] and words[2] not in ("venv", "pytest", "mypy"):
            check_program(words[2], words[3:])
        elif words[0] in scripts:
            check_program(scripts[words[0]].split(":")[0], words[1:])
        elif words[:2] == ["pip", "install"]:
            for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
                assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
        elif words[0].startswith(("launch/", "freeadv-")):
            assert (ROOT / words[0]).is_file(), words


def test_a_command_with_an_unknown_option_or_field_is_found():
    for wrong in ("--workdirs=RUN", "--no-such"):
        with pytest.raises(AssertionError):
            check_program("freeadv_jax.evaluate", [wrong])
    with pytest.raises(AssertionError):
        check_program("freeadv_jax.main", ["--config.attack.epsilons=1"])
    with pytest.raises(AssertionError):
        check_program("freeadv_jax.main", ["--config=configs/none.py"])
