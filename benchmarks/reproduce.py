"""Train and evaluate the paper's Table 1, and compare it with the published figures.

    python -m benchmarks.reproduce --table=cifar10 --data=DIR [--size=full|scaled-down]

`full` is the paper's recipe and needs an accelerator. `scaled-down`, the default on a
CPU, keeps the loss, the ball and the attacks with a small network and a short budget, the
same for all rows. The same command continues after an interruption; `--rows` trains some
rows, and the table holds all finished ones.
"""

import importlib
import pathlib

import jax

from benchmarks.record import write_record
from benchmarks.runs import finish
from freeadv_jax.command import Parser, run_command
from freeadv_jax.errors import InputError
from freeadv_jax.files import read_json
from freeadv_jax.report.published import published_row
from freeadv_jax.runs.folder import read_run

# The order of training: the paper's main row comes first.
TABLES = {
    "cifar10": {
        "cifar10_free8": "Free-8",
        "cifar10_natural": "natural",
        "cifar10_free4": "Free-4",
        "cifar10_free2": "Free-2",
        "cifar10_free10": "Free-10",
        "cifar10_pgd7": "7-PGD",
    }
}
ATTACKS = ("natural", "pgd-20", "pgd-100", "cw-100", "pgd-20-x10")
# Small batches, because Free-8 sees an eighth as many: after 2,000 updates of
# 128 images it has hardly begun to learn. Network, batch size and learning rate (0.05 or
# 0.1) were chosen for Free-8 on 1,000 images held out of the training set.
SCALED_DOWN = {
    "updates": 2000,
    "batch_size": 32,
    "data.validation_examples": 1000,
    "model.name": "wrn-10-1",
    "optimizer.learning_rate": 0.1,
    "optimizer.schedule": "triangular",
    "optimizer.turns": (0.3,),
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 5e-4,
    "checkpoint.every_updates": 200,
    "evaluation.examples": 1000,
    # This fits into a CPU's cache; results do not depend on the batch size.
    "evaluation.batch_size": 32,
}
SIZES = {"full": {}, "scaled-down": SCALED_DOWN}


def configuration(row, *, size, data):
    """Return the configuration of a row of the table."""
    config = importlib.import_module(f"configs.{row}").get_config()
    config.update_from_flattened_dict(SIZES[size])
    config.data.dir = data
    config.evaluation.attacks = ATTACKS
    return config


def collected(rows, runs):
    """Return {row: its results and the published row} of the finished rows."""
    found = {}
    for row in rows:
        path = runs / row / "results.json"
        if not path.exists():
            continue
        results, config = read_json(path), read_run(runs / row).config
        if not set(ATTACKS) <= results["evaluation"].keys():
            continue
        published = published_row(config)
        found[row] = {
            "model": config.model.name,
            "updates": config.updates,
            "environment": results["environment"],
            "training": results["training"],
            "evaluation": {name: results["evaluation"][name] for name in ATTACKS},
            "published": {
                "source": published.source,
                "accuracy": published.accuracy,
                "minutes": published.minutes,
            },
        }
    return found


def show(names, found):
    """Print our table beside the published figures."""
    print("\n" + " " * 20 + "".join(f"{name:>12}" for name in (*ATTACKS, "minutes")))
    for row, name in names.items():
        if row not in found:
            print(f"{name:20}not yet run")
            continue
        result = found[row]
        ours = [
            f"{100 * result['evaluation'][name]['accuracy']:.2f}" for name in ATTACKS
        ]
        ours.append(f"{result['training']['seconds'] / 60:.1f}")
        published = [f"{result['published']['accuracy'][name]:.2f}" for name in ATTACKS]
        published.append(f"{result['published']['minutes']:.0f}")
        for title, cells in ((name, ours), ("  published", published)):
            print(f"{title:20}" + "".join(f"{cell:>12}" for cell in cells))


def main(argv):
    parser = Parser("benchmarks.reproduce", __doc__)
    parser.add_argument(
        "--table", choices=TABLES, default="cifar10", help="the table to make"
    )
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="the folder of the data set"
    )
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="scaled-down" if jax.default_backend() == "cpu" else "full",
        help="the paper's recipe, or one for a CPU",
    )
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="rows to train; default: all"
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        help="folder for the runs; default: in runs",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=pathlib.Path,
        help="the record to write; default: in benchmarks/results",
    )
    options = parser.parse_args(argv[1:])
    names = TABLES[options.table]
    rows = options.rows or tuple(names)
    if unknown := set(rows) - names.keys():
        raise InputError(f"--rows {min(unknown)}: must be one of {', '.join(names)}")
    title = f"reproduce_{options.table}"
    if options.size != "full":
        title += f"_{options.size.replace('-', '_')}"
    runs = options.runs or pathlib.Path("runs") / title
    for row in rows:
        finish(configuration(row, size=options.size, data=options.data), runs / row)
        found = collected(names, runs)
        write_record(options.out or f"benchmarks/results/{title}.json", found)
    show(names, found)


if __name__ == "__main__":
    run_command(main)
