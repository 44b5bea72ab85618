"""The arguments of the commands that compare runs."""

import argparse

from freeadv_jax import command
from freeadv_jax.errors import InputError
from freeadv_jax.files import local_path


class Parser(command.Parser):
    """Arguments of `python -m MODULE RUN... --out=FILE`, explained by its docstring."""

    def __init__(self, module: str, description: str):
        super().__init__(module, description)
        say = self.add_argument
        say("runs", nargs="+", metavar="RUN", help="a trained run folder")
        say("--out", required=True, type=_path, help="the file to write")
        say("--data", default="", help="where the data set lies, if not as in training")


def place(text: str) -> int:
    """An argument that numbers an image, from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, 0 or more")
    return int(text)


def _path(text):
    try:
        path = local_path(text)
    except InputError as fault:
        raise argparse.ArgumentTypeError(str(fault)) from fault
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder: name a file to write")
    return path
