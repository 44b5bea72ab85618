import importlib
import os
import signal

import pytest
from help_text import unexplained_options

from freeadv_jax.command import Parser, count, run_command

FULL = "No space left on device"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (OSError(28, FULL, "run.json"), f"run.json: {FULL}"),
        (OSError(28, FULL), FULL),
        (OSError("no such disk"), "no such disk"),
    ],
)
def test_an_error_of_the_system_is_reported_with_its_file_and_reason(
    monkeypatch, fault, said
):
    def main(argv):
        raise fault

    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == f"error: {said}"


def test_sigterm_ends_a_command_with_status_143():
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            run_command(lambda argv: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143


@pytest.mark.parametrize(
    "name",
    [
        "main",
        "evaluate",
        "export",
        "report.__main__",
        "analysis.loss_surface",
        "analysis.large_epsilon",
    ],
)
def test_every_option_of_a_command_has_a_meaning_and_a_default(name, capsys):
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"freeadv_jax.{name}").main([name, "--help"])
    assert ended.value.code == 0
    assert not unexplained_options(capsys.readouterr().out)


def test_defaults_and_allowed_values_are_shown_as_they_are_typed():
    parser = Parser("module", "A command.")
    add = parser.add_argument
    add("--size", type=count, default=3, help="a size")
    add("--sizes", nargs="+", type=count, default=(1, 8), help="sizes")
    add("--keep", action="store_true", help="keep it")
    add("--no", choices=("a b", "c"), metavar="X", default=("a b", "c"), help="names")
    text = " ".join(parser.format_help().split())
    assert "--size N a size; a whole number above 0; default: 3" in text
    assert "default: 1 8 --keep keep it; default: no" in text
    assert "--no X names; one of a b, c; default: 'a b' c" in text


def test_an_option_without_a_default_is_found():
    parser = Parser("module", "A command.")
    parser.add_argument("--bare", metavar="X", help="an option of no known default")
    (found,) = unexplained_options(parser.format_help())
    assert found.startswith("--bare")
