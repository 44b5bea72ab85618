"""Compare trained models on one page: accuracies, figures, pictures and a verdict.

    python -m freeadv_jax.report MODEL... --out=report.html
        [--format=html|markdown|csv] [--data=DIR] [--examples=500] [--no-measure]

Each MODEL is an evaluated run folder, or an exported model with an evaluation (the folder
with its results.json). All share the data set and the threat. The evaluation lacks robust
accuracy by epsilon and by steps, attacked images and transferred attacks; these are
measured on the first --examples test images and kept in MODEL/report.npz, so that the
same command continues after an interruption. --no-measure shows the evaluation alone. An
exported model names no data set: without a run beside it nothing is measured.
"""

import argparse

from freeadv_jax.analysis.arguments import ModelsParser
from freeadv_jax.analysis.comparison import first_examples, open_models
from freeadv_jax.analysis.measurement import kept_measurements, measure
from freeadv_jax.analysis.plotting import new_figure
from freeadv_jax.command import count, run_command
from freeadv_jax.devices.compilation import keep_compiled
from freeadv_jax.files import machine_folder, whole_file
from freeadv_jax.report.page import FORMATS, render
from freeadv_jax.report.reported import read_reported


def main(argv):
    given = _parser().parse_args(argv[1:])
    out = given.out
    if given.format == "html":
        new_figure(1, 1)  # Fails early if matplotlib is not installed.
    models = open_models(given.models)
    keep_compiled(machine_folder(models[0].folder))
    read_reported(models, None)  # Fails early if a model was not evaluated.
    if given.measure and any(model.config for model in models):

        def load():
            return first_examples(models, data=given.data, examples=given.examples)

        measured = measure(models, load, examples=given.examples)
    else:
        if given.measure:
            print("nothing is measured: exported models name no data set")
        measured = kept_measurements(models, examples=given.examples)
    text = render(read_reported(models, measured), given.format)
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(out) as partial:
        partial.write_text(text, encoding="utf-8")
    print(f"written to {out} ({len(text.encode()) / 1e6:.2f} MB)")


def _parser():
    parser = ModelsParser("freeadv_jax.report", __doc__, written="report")
    parser.add_argument(
        "--format", choices=FORMATS, default="html", help="the form of the report"
    )
    parser.add_argument(
        "--examples", type=count, default=500, help="test images to measure on"
    )
    parser.add_argument(
        "--measure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure what the folders do not hold yet",
    )
    return parser


def run():
    """Run the command, as the console script does."""
    run_command(main)


if __name__ == "__main__":
    run()
