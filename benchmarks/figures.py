"""The examples in docs/: a report, loss surfaces and large-epsilon images of CIFAR-10.

    python -m benchmarks.figures --data=DIR [--runs=DIR]

The runs are those of benchmarks.reproduce; what they lack is measured and kept in
them, and the same command goes on.
"""

import pathlib

from benchmarks.record import write_record
from freeadv_jax import evaluate
from freeadv_jax.analysis import large_epsilon, loss_surface
from freeadv_jax.analysis.comparison import open_subjects
from freeadv_jax.analysis.measurement import found
from freeadv_jax.command import Parser, run_command
from freeadv_jax.files import read_json
from freeadv_jax.report import __main__ as report

ATTACKS = "natural,fgsm,pgd-20,pgd-100,cw-100"
EXAMPLES = 500
ROWS = ("cifar10_natural", "cifar10_free8", "cifar10_pgd7")


def main(argv):
    parser = Parser("benchmarks.figures", __doc__)
    parser.add_argument("--data", required=True, help="where CIFAR-10 lies")
    parser.add_argument(
        "--runs", type=pathlib.Path, default="runs/reproduce_cifar10_scaled_down"
    )
    parser.add_argument("--docs", type=pathlib.Path, default="docs")
    parser.add_argument("--out", default="benchmarks/results/figures.json")
    options = parser.parse_args(argv[1:])
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
    flat = read_json(surface.with_suffix(".json"))
    subjects = open_subjects(runs)
    results = {}
    for subject, measured in zip(subjects, found(subjects, examples=EXAMPLES)):
        written = read_json(subject.run.workdir / "results.json")
        results[subject.run.workdir.name] = {
            "label": subject.label,
            "evaluation": written["evaluation"],
            "red_flags": written["red_flags"],
            "by_epsilon": {
                radius: standing.mean()
                for radius, standing in measured.by_epsilon.items()
            },
            "by_steps": {
                steps: standing.mean() for steps, standing in measured.by_steps.items()
            },
            "under_attacks_made_on": {
                other.label: measured.standing_under(other.label).mean()
                for other in subjects
            },
            "flatness": flat[subject.label],
        }
    surface.with_suffix(".json").unlink()  # Its numbers stand in the record.
    write_record(options.out, results)


if __name__ == "__main__":
    run_command(main)
