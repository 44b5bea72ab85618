"""What the command lines share: whole numbers, and every fault told in one line."""

import argparse
import signal
import sys
from collections.abc import Callable

from freeadv_jax.console import show_library_messages
from freeadv_jax.errors import InputError, TrainingStoppedError


class Parser(argparse.ArgumentParser):
    """Arguments of `python -m MODULE`, explained by its docstring."""

    def __init__(self, module: str, description: str):
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message):
        raise InputError(message)


def count(text: str) -> int:
    """An argument that is a whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number above 0")
    return int(text)


def run_command(main: Callable[[list[str]], None]) -> None:
    """`main` of the command line; what is wrong with it ends it with one line.

    SIGTERM ends it with 143, as a shell says it; a training saves first, and takes that
    for a good end.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    show_library_messages()
    try:
        main(sys.argv)
    except (InputError, TrainingStoppedError) as fault:
        sys.exit(f"error: {fault}")
    except OSError as fault:  # A full disk, say, or a folder in place of a file.
        said = [part for part in (fault.filename, fault.strerror) if part] or [fault]
        sys.exit(f"error: {': '.join(map(str, said))}")
