"""What the commands that compare runs share: arguments, and errors in one line."""

import argparse
import pathlib
import signal
import sys
from collections.abc import Callable

from freeadv_jax.errors import InputError


class Parser(argparse.ArgumentParser):
    """Arguments of `python -m MODULE RUN... --out=FILE`, explained by its docstring."""

    def __init__(self, module: str, description: str):
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        say = self.add_argument
        say("runs", nargs="+", metavar="RUN", help="a trained run folder")
        say("--out", required=True, type=_path, help="the file to write")
        say("--data", default="", help="where the data set lies, if not as in training")

    def error(self, message):
        raise InputError(message)


def count(text: str) -> int:
    """An argument that is a whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number above 0")
    return int(text)


def place(text: str) -> int:
    """An argument that numbers an image, from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, 0 or more")
    return int(text)


def run_command(main: Callable[[list[str]], None]) -> None:
    """`main` of the command line; what is wrong with it ends it with one line."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        main(sys.argv)
    except InputError as fault:
        sys.exit(f"error: {fault}")
    except OSError as fault:  # A full disk, say, or a folder that cannot be written.
        sys.exit(f"error: {fault.filename}: {fault.strerror}")


def _path(text):
    path = pathlib.Path(text).expanduser()
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder: name a file to write")
    return path
