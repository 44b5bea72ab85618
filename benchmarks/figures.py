"""Make the examples in docs/: a report, loss surfaces and large-epsilon images.

    python -m benchmarks.figures --data=DIR [--runs=DIR] [--digits=DIR]

The models are the CIFAR-10 runs of benchmarks.reproduce; a second large-epsilon figure is
made of the digits runs of benchmarks.digits. Missing measurements are made and kept in
the runs, so that the same command continues after an interruption.
"""

import pathlib

from benchmarks.record import write_record
from freeadv_jax import evaluate
from freeadv_jax.analysis import large_epsilon, loss_surface
from freeadv_jax.analysis.comparison import open_models
from freeadv_jax.analysis.measurement import kept_measurements
from freeadv_jax.command import Parser, run_command
from freeadv_jax.files import read_json
from freeadv_jax.report import __main__ as report

ATTACKS = "natural,fgsm,pgd-20,pgd-100,cw-100"
EXAMPLES = 500
ROWS = ("cifar10_natural", "cifar10_free8", "cifar10_pgd7")
DIGITS = ("digits_natural-0", "digits_free8-0")


def main(argv):
    options = _parser().parse_args(argv[1:])
    runs = [str(options.runs / name) for name in ROWS]
    data = f"--data={options.data}"
    few = f"--examples={EXAMPLES}"
    for run in runs:
        evaluate.main(["", f"--workdir={run}", data, f"--attacks={ATTACKS}", few])
    surface = options.docs / "loss_surface.png"
    report.main(["", *runs, data, few, f"--out={options.docs / 'report.html'}"])
    loss_surface.main(["", *runs, data, f"--out={surface}"])
    pictures = options.docs / "large_epsilon.png"
    large_epsilon.main(["", *runs, data, f"--out={pictures}"])
    digits = [str(options.digits / name) for name in DIGITS]
    pictures = options.docs / "large_epsilon_digits.png"
    large_epsilon.main(["", *digits, "--images=4", f"--out={pictures}"])
    numbers = surface.with_suffix(".json")
    write_record(options.out, results(open_models(runs), read_json(numbers)))
    numbers.unlink()  # The record holds these numbers too.


def results(models, flatness):
    """Return all figures of the examples, by the folder of the run."""
    found = {}
    for model, measured in zip(models, kept_measurements(models, examples=EXAMPLES)):
        evaluated = read_json(model.folder / "results.json")
        found[model.folder.name] = {
            "label": model.label,
            "evaluation": evaluated["evaluation"],
            "red_flags": evaluated["red_flags"],
            "by_epsilon": _means(measured.by_epsilon),
            "by_steps": _means(measured.by_steps),
            "under_attacks_made_on": {
                other.label: measured.robust_to_attack_on(other.label).mean()
                for other in models
            },
            "flatness": flatness[model.label],
        }
    return found


def _means(robust):
    return {key: images.mean() for key, images in robust.items()}


def _parser():
    parser = Parser("benchmarks.figures", __doc__)
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="the folder that holds CIFAR-10"
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/reproduce_cifar10_scaled_down",
        help="the runs of benchmarks.reproduce",
    )
    parser.add_argument(
        "--digits",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/benchmark-digits/table",
        help="the runs of benchmarks.digits",
    )
    parser.add_argument(
        "--docs",
        metavar="DIR",
        type=pathlib.Path,
        default="docs",
        help="folder for the examples",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/figures.json",
        help="the record to write",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
