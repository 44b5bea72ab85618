"""One style for all command lines: options, help, numbers and one-line errors."""

import argparse
import pathlib
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable

from freeadv_jax.config import parse_number
from freeadv_jax.console import show_library_messages
from freeadv_jax.errors import InputError, TrainingStoppedError, unknown_choice


class Parser(argparse.ArgumentParser):
    """Options of `python -m MODULE`, explained by its docstring.

    `--help` shows the default and the allowed values of each option. An option without
    a default says in its help text what happens where it is not given. Every mistake
    raises InputError.
    """

    def __init__(self, module: str, description: str):
        typed = pathlib.Path(sys.argv[0]).name
        script = typed.startswith("freeadv-")
        super().__init__(
            prog=typed if script else f"python -m {module}",
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,
        )

    def parse_args(self, args=None, namespace=None):
        """Return the given options; raise InputError for an unknown one."""
        given, rest = self.parse_known_args(args, namespace)
        if rest:
            raise self.unknown(rest[0])
        return given

    def unknown(self, argument: str) -> InputError:
        """Return the error for an argument that no option takes."""
        if not argument.startswith("-"):
            return InputError(
                f"argument {argument!r} is unknown; options begin with --"
            )
        # The fields of a configuration would drown the others.
        options = [
            option
            for option in self._option_string_actions
            if option.startswith("--") and "config." not in option
        ]
        return unknown_choice("option", argument.split("=")[0], options)

    def add_processes(self, verb: str) -> None:
        """Add the options of several processes that `verb` together."""
        self.add_argument(
            "--multihost",
            action="store_true",
            help=f"this process is one of several that {verb} together; default: alone",
        )
        self.add_argument(
            "--coordinator",
            metavar="HOST:PORT",
            help="address of the first process; default: found through the cluster",
        )
        self.add_argument(
            "--num_processes",
            type=count,
            metavar="N",
            help="number of processes; default: found through the cluster",
        )
        self.add_argument(
            "--process_id",
            type=_process_id,
            metavar="I",
            help="number of this process, from 0; default: found through the cluster",
        )

    def error(self, message):
        """Raise InputError in place of printing the usage."""
        raise InputError(message)


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help texts that name the allowed values and the default of each option."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=28, width=88)

    def _get_default_metavar_for_optional(self, action):
        return _METAVARS.get(action.type) or super()._get_default_metavar_for_optional(
            action
        )

    def _split_lines(self, text, width):
        # Names such as fgsm-rs stay on one line.
        return textwrap.wrap(text, width, break_on_hyphens=False)

    def _get_help_string(self, action):
        meaning, semicolon, default = action.help.partition("; default: ")
        parts = [meaning]
        if action.type in _ALLOWED:
            parts.append(_ALLOWED[action.type])
        if action.choices is not None and action.metavar:
            parts.append(f"one of {', '.join(map(str, action.choices))}")
        if action.required:
            parts.append("required")
        if semicolon:
            parts.append(f"default: {default}")
        elif action.default not in (None, argparse.SUPPRESS):
            parts.append(f"default: {_as_typed(action.default)}")
        return "; ".join(parts)


def _as_typed(default):
    """Return a default as the command line takes it."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, str) or not isinstance(default, Iterable):
        return str(default)
    return " ".join(f"'{each}'" if " " in str(each) else str(each) for each in default)


def processes_of(given: argparse.Namespace) -> dict:
    """Return the options of `Parser.add_processes` as `devices.processes.start` takes them."""
    names = ("multihost", "coordinator", "num_processes", "process_id")
    return {name: getattr(given, name) for name in names}


def _process_id(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, 0 or more")
    return int(text)


def count(text: str) -> int:
    """Return the whole number above 0 that an argument writes."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: must be {_ALLOWED[count]}")
    return int(text)


def several(text: str) -> int:
    """Return the whole number above 1 that an argument writes."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: must be {_ALLOWED[several]}")
    return int(text)


def number(text: str) -> float:
    """Return the number that an argument writes, such as 0.03 or 8/255."""
    try:
        return parse_number(text)
    except ValueError as fault:
        raise argparse.ArgumentTypeError(
            f"{text!r}: must be {_ALLOWED[number]}"
        ) from fault


def numbers(text: str) -> tuple[float, ...]:
    """Return the numbers, with commas between, that an argument writes."""
    return tuple(map(number, text.split(",")))


_ALLOWED = {
    count: "a whole number above 0",
    several: "a whole number, 2 or more",
    number: "a number, such as 8/255",
}
_METAVARS = {count: "N", several: "N", number: "NUMBER", numbers: "A,B"}


def run_command(main: Callable[[list[str]], None]) -> None:
    """Call `main` with the command line, and end with one line for an expected error.

    SIGTERM ends the process with status 143, as shells report it. A training saves
    first and then ends with status 0.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    show_library_messages()
    try:
        main(sys.argv)
    except (InputError, TrainingStoppedError) as fault:
        sys.exit(f"error: {fault}")
    except OSError as fault:  # A full disk, or a folder in place of a file.
        said = [part for part in (fault.filename, fault.strerror) if part] or [fault]
        sys.exit(f"error: {': '.join(map(str, said))}")
