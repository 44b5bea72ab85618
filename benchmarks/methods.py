"""Train one network by every adversarial method of `METHODS`, scaled down to a CPU.

    python -m benchmarks.methods --data=DIR [--rows NAME ...] [--runs=DIR] [--out=FILE]

Network, updates, batches and evaluation are those of `benchmarks.reproduce` scaled down.
Methods whose attack has several steps take two of half of epsilon, for the time of a
CPU. The last row is 2-PGD on the same network with denoising blocks. The same command
continues after an interruption, and the record holds all finished rows.
"""

import pathlib

from benchmarks.record import write_record
from benchmarks.reproduce import configuration
from benchmarks.runs import finish
from freeadv_jax.command import Parser, run_command
from freeadv_jax.errors import InputError
from freeadv_jax.files import read_json
from freeadv_jax.runs.folder import read_run
from freeadv_jax.training.methods import METHODS

ATTACKS = ("natural", "pgd-20", "apgd-t")
DENOISED = "pgd, denoising blocks"
ROWS = (*(name for name in METHODS if METHODS[name].adversarial), DENOISED)


def configured(row, data):
    """Return the configuration of a row of ROWS."""
    config = configuration("cifar10_free8", size="scaled-down", data=data)
    config.method = "pgd" if row == DENOISED else row
    if row == DENOISED:
        config.model.name += "-denoise"
    if "steps" in METHODS[config.method].settings:
        config.attack.steps = 2
        config.attack.step_size = config.attack.get_ref("epsilon") / 2
    if row == "fgsm-rs":
        config.attack.step_size = config.attack.get_ref("epsilon") * 1.25
    config.evaluation.attacks = ATTACKS
    # The activations of 32 images fit a core's cache.
    config.evaluation.batch_size = 32
    return config


def collected(runs):
    """Return {row: its title, accuracies and seconds} of the finished rows."""
    found = {}
    for row in ROWS:
        workdir = folder(runs, row)
        path = workdir / "results.json"
        if not path.exists():
            continue
        results, config = read_json(path), read_run(workdir).config
        if not set(ATTACKS) <= results["evaluation"].keys():
            continue
        title = METHODS[config.method].title(config.attack)
        found[row] = {
            "title": f"{title}, denoising blocks" if row == DENOISED else title,
            "model": config.model.name,
            "fields": {
                f"attack.{name}": config.attack[name]
                for name in ("step_size", *METHODS[config.method].settings)
            },
            "environment": results["environment"],
            "training": results["training"],
            "evaluation": {name: results["evaluation"][name] for name in ATTACKS},
        }
    return found


def folder(runs, row):
    """Return the run folder of a row."""
    return runs / row.replace(", ", "-").replace(" ", "-")


def show(found):
    """Print accuracies in percent, and minutes of training."""
    for row in found.values():
        accuracies = "".join(
            f"  {name} {100 * row['evaluation'][name]['accuracy']:5.1f}"
            for name in ATTACKS
        )
        minutes = row["training"]["seconds"] / 60
        print(f"{row['title']:28}{accuracies}  {minutes:.1f} minutes")


def main(argv):
    parser = Parser("benchmarks.methods", __doc__)
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="the folder of CIFAR-10"
    )
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="rows to train; default: all"
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/methods",
        help="folder for the runs",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/methods.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    rows = options.rows or ROWS
    if unknown := set(rows) - set(ROWS):
        raise InputError(f"--rows {min(unknown)}: must be one of {', '.join(ROWS)}")
    for row in rows:
        finish(configured(row, options.data), folder(options.runs, row))
        found = collected(options.runs)
        write_record(options.out, found)
    show(found)


if __name__ == "__main__":
    run_command(main)
