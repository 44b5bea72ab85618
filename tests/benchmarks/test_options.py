"""Every benchmark explains its options."""

import importlib
import pathlib

import pytest
from help_text import unexplained_options

import benchmarks

FOLDER = pathlib.Path(benchmarks.__file__).parent
COMMANDS = sorted(
    path.stem for path in FOLDER.glob("*.py") if "Parser(" in path.read_text()
)


def test_there_are_benchmarks_with_options():
    assert {"training", "digits", "figures", "input_rate", "readme"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_a_benchmark_has_a_meaning_and_a_default(name, capsys):
    try:
        module = importlib.import_module(f"benchmarks.{name}")
    except ModuleNotFoundError as fault:
        pytest.skip(f"{fault.name} is not installed")
    with pytest.raises(SystemExit) as ended:
        module.main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"python -m benchmarks.{name}" in text
    assert not unexplained_options(text)
