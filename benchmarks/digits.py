"""Run the quickstart over five seeds: natural training against Free-8 on digits.

    python -m benchmarks.digits [--runs=DIR]            the table
    python -m benchmarks.digits --select [--runs=DIR]   the choice of its recipe

Each seed and each setting is a whole run under --runs, so that the same command continues
after an interruption.
"""

import itertools
import pathlib
import statistics

from benchmarks.record import write_record
from benchmarks.runs import finish
from configs import digits_free8, digits_natural
from freeadv_jax.command import Parser, run_command

ROWS = {"digits_natural": digits_natural, "digits_free8": digits_free8}
SEEDS = range(5)
GRID = {
    "updates": (640, 1280),
    "optimizer.learning_rate": (0.05, 0.1, 0.15),
    "optimizer.weight_decay": (2e-4, 2e-3),
}


def table(runs):
    """Return the test accuracies of both rows: mean and deviation over the seeds."""
    rows = {}
    for name, module in ROWS.items():
        results = []
        for seed in SEEDS:
            config = module.get_config()
            config.seed = seed
            results.append(finish(config, runs / f"{name}-{seed}"))
        attacks = results[0]["evaluation"]
        rows[name] = {
            "config": results[0]["config"],
            "attacks": {a: row["attack"] for a, row in attacks.items()},
            "examples": attacks["natural"]["examples"],
            "training_seconds": [r["training"]["seconds"] for r in results],
            "accuracy": {
                attack: _summary([r["evaluation"][attack]["accuracy"] for r in results])
                for attack in attacks
            },
        }
    for name, row in rows.items():
        print(f"\n{name}, {len(SEEDS)} seeds, {row['examples']} test images")
        for attack, summary in row["accuracy"].items():
            print(f"  {attack:10}{summary['mean']:8.2%} +- {summary['deviation']:.2%}")
    return rows


def select(runs):
    """Return accuracies on held-out training images, over GRID and two seeds."""
    rows = []
    for values in itertools.product(*GRID.values()):
        fields = dict(zip(GRID, values, strict=True))
        accuracies = {"natural": [], "pgd-20": []}
        for seed in SEEDS[:2]:
            config = digits_free8.get_config()
            config.update_from_flattened_dict(fields)
            config.seed = seed
            config.evaluation.attacks = tuple(accuracies)
            name = "-".join(map(str, (*values, seed)))
            results = finish(config, runs / name, part="validation")
            for attack, found in accuracies.items():
                found.append(results["evaluation"][attack]["accuracy"])
        rows.append({"fields": fields, "accuracy": accuracies})
    rows.sort(key=lambda row: -statistics.mean(row["accuracy"]["pgd-20"]))
    for row in rows:
        print(row["fields"], row["accuracy"])
    return rows


def _summary(values):
    return {
        "mean": statistics.mean(values),
        "deviation": statistics.stdev(values),
        "values": values,
    }


def main(argv):
    parser = Parser("benchmarks.digits", __doc__)
    parser.add_argument(
        "--select", action="store_true", help="choose the recipe; default: no"
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/benchmark-digits",
        help="folder for the runs",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the record to write; default: in benchmarks/results",
    )
    options = parser.parse_args(argv[1:])
    job = select if options.select else table
    out = options.out or f"benchmarks/results/digits{'_select' * options.select}.json"
    write_record(out, job(options.runs / job.__name__))


if __name__ == "__main__":
    run_command(main)
