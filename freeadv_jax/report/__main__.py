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

from freeadv_jax.analysis.command import Parser
from freeadv_jax.analysis.comparison import first_examples, open_subjects
from freeadv_jax.analysis.measurement import found, measure
from freeadv_jax.analysis.plotting import new_figure
from freeadv_jax.command import count, run_command
from freeadv_jax.devices.compilation import keep_compiled
from freeadv_jax.files import whole_file
from freeadv_jax.report.page import FORMATS, render
from freeadv_jax.report.shown import read_shown


def main(argv):
    given = _parser().parse_args(argv[1:])
    out = given.out
    if given.format == "html":
        new_figure(1, 1)  # Says what is not installed before anything is measured.
    subjects = open_subjects(given.runs)
    keep_compiled(subjects[0].run.workdir)
    read_shown(subjects, None)  # The same, of what was not evaluated.
    if given.measure:

        def load():
            return first_examples(subjects, data=given.data, examples=given.examples)

        measured = measure(subjects, load, examples=given.examples)
    else:
        measured = found(subjects, examples=given.examples)
    text = render(read_shown(subjects, measured), given.format)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"written to {out} ({len(text.encode()) / 1e6:.2f} MB)")


def _parser():
    parser = Parser("freeadv_jax.report", __doc__)
    say = parser.add_argument
    say("--format", choices=FORMATS, default="html")
    say("--examples", type=count, default=500, help="test images to measure on")
    say(
        "--measure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure what the run folders do not hold",
    )
    return parser


def run():
    """Run the command, as the console script does."""
    run_command(main)


if __name__ == "__main__":
    run()
