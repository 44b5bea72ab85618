"""The command-line arguments of the commands that compare models."""

import argparse

from freeadv_jax.command import Parser
from freeadv_jax.errors import InputError
from freeadv_jax.files import as_path


class ModelsParser(Parser):
    """Parse `python -m MODULE MODEL... --out=FILE [--data=DIR]` and further options."""

    def __init__(
        self,
        module: str,
        description: str,
        *,
        written: str = "figure, .png, .svg or .pdf,",
    ):
        super().__init__(module, description)
        self.add_argument(
            "models",
            nargs="+",
            metavar="MODEL",
            help="the folder of a trained run or of an exported model",
        )
        self.add_argument(
            "--out",
            required=True,
            type=_path,
            metavar="FILE",
            help=f"the {written} to write",
        )
        self.add_argument(
            "--data",
            default="",
            metavar="DIR",
            help="the folder of the data set; default: that of the training",
        )


def image_number(text: str) -> int:
    """Return an argument that numbers an image, counted from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, 0 or more")
    return int(text)


def _path(text):
    try:
        path = as_path(text)
    except InputError as fault:
        raise argparse.ArgumentTypeError(str(fault)) from fault
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder: name a file to write")
    return path
