"""Trained runs shown side by side, on one page.

    python -m freeadv_jax.report RUN... --out=report.html
        [--format=html|markdown|csv] [--data=DIR] [--examples=500] [--no-measure]

Each RUN is a run folder with its results.json; all are of one data set and one threat.
What the evaluation does not hold (robust accuracy against epsilon and steps, attacked
images, attacks carried over between the models) is measured on the first --examples
test images and kept in RUN/report.npz; the same command again goes on where it was cut
off. --no-measure shows what is there.
"""

import argparse
import pathlib
import signal
import sys

from freeadv_jax.analysis.comparison import first_examples, open_subjects
from freeadv_jax.analysis.measurement import found, measure
from freeadv_jax.analysis.plotting import new_figure
from freeadv_jax.errors import InputError
from freeadv_jax.record import partial_path
from freeadv_jax.report.page import FORMATS, render
from freeadv_jax.report.shown import read_shown


def main(argv):
    given = _parser().parse_args(argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    out = pathlib.Path(given.out).expanduser()
    if out.is_dir():
        raise InputError(f"{out} is a folder: --out is the file to write")
    if given.format == "html":
        new_figure(1, 1)  # Says what is not installed before anything is measured.
    subjects = open_subjects(given.runs)
    read_shown(subjects, None)  # The same, of what was not evaluated.
    if given.measure:

        def load():
            return first_examples(subjects, data=given.data, examples=given.examples)

        measured = measure(subjects, load, examples=given.examples)
    else:
        measured = found(subjects, examples=given.examples)
    text = render(read_shown(subjects, measured), given.format)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial_path(out).write_text(text, encoding="utf-8")
    partial_path(out).replace(out)
    print(f"written to {out} ({len(text.encode()) / 1e6:.2f} MB)")


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(message)


def _parser():
    parser = _Parser(
        prog="python -m freeadv_jax.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    say = parser.add_argument
    say("runs", nargs="+", metavar="RUN", help="a run folder, with its evaluation")
    say("--out", required=True, help="the file to write")
    say("--format", choices=FORMATS, default="html")
    say("--data", default="", help="where the data set lies, if not as in training")
    say("--examples", type=_count, default=500, help="test images to measure on")
    say(
        "--measure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure what the run folders do not hold",
    )
    return parser


def _count(text):
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number above 0")
    return int(text)


if __name__ == "__main__":
    try:
        main(sys.argv)
    except InputError as fault:
        sys.exit(f"error: {fault}")
    except OSError as fault:  # A full disk, say, or a folder that cannot be written.
        sys.exit(f"error: {fault.filename}: {fault.strerror}")
