"""Train a small ViT and a small ConvNeXt naturally and by Free-4, scaled down to a CPU.

    python -m benchmarks.transformers --data=DIR [--rows NAME ...] [--runs=DIR] [--out=FILE]

Both methods take the same updates, batches and optimizer, and therefore cost the same.
The batches are those of `benchmarks.reproduce` scaled down, and the updates half of them;
the optimizer is that of the ImageNet configurations of these networks, from random weights.
Nothing was tuned.
The same command continues after an interruption, and the record holds all finished rows.
"""

import pathlib

from benchmarks.record import write_record
from benchmarks.reproduce import configuration
from benchmarks.runs import finish
from freeadv_jax.command import Parser, run_command
from freeadv_jax.errors import InputError
from freeadv_jax.files import read_json
from freeadv_jax.runs.folder import read_run

ATTACKS = ("natural", "pgd-20", "apgd-t")
ADAMW = {
    "updates": 1000,
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-3,
    "optimizer.schedule": "cosine",
    "optimizer.turns": (),
    "optimizer.warmup": 0.1,
    "optimizer.weight_decay": 0.05,
    "optimizer.decayed": "kernels",
    "optimizer.clip_norm": 1.0,
    "optimizer.nesterov": False,
    "evaluation.examples": 250,
}
# APGD-T makes 900 passes through a network for each image that stands: 250 of them, and a
# ViT of half the depth and width of ViT-Ti, the smallest that is usual.
NETWORKS = {
    "convnext-atto": {"model.name": "cifar-convnext-atto"},
    "vit": {
        "model.name": "module:freeadv_jax.models.vit:VisionTransformer",
        "model.arguments": "features=96,heads=3,depth=6,patch=4",
    },
}
ROWS = {
    f"{network}, {method}": (network, config)
    for network in NETWORKS
    for method, config in (("natural", "cifar10_natural"), ("free-4", "cifar10_free4"))
}


def configured(row, data):
    """Return the configuration of a row of ROWS."""
    network, base = ROWS[row]
    config = configuration(base, size="scaled-down", data=data)
    config.update_from_flattened_dict(ADAMW)
    config.update_from_flattened_dict(NETWORKS[network])
    config.evaluation.attacks = ATTACKS
    return config


def folder(runs, row):
    """Return the run folder of a row."""
    return runs / row.replace(", ", "-")


def collected(runs):
    """Return {row: its model, method, accuracies and seconds} of the finished rows."""
    found = {}
    for row in ROWS:
        path = folder(runs, row) / "results.json"
        if not path.exists():
            continue
        results, config = read_json(path), read_run(path.parent).config
        if not set(ATTACKS) <= results["evaluation"].keys():
            continue
        found[row] = {
            "model": config.model.name,
            "arguments": config.model.arguments,
            "method": row.split(", ")[1],
            "updates": config.updates,
            "batch_size": config.batch_size,
            "environment": results["environment"],
            "training": results["training"],
            "evaluation": {name: results["evaluation"][name] for name in ATTACKS},
        }
    return found


def show(found):
    """Print accuracies in percent, and minutes of training."""
    for name, row in found.items():
        accuracies = "".join(
            f"  {attack} {100 * row['evaluation'][attack]['accuracy']:5.1f}"
            for attack in ATTACKS
        )
        minutes = row["training"]["seconds"] / 60
        print(f"{name:28}{accuracies}  {minutes:.1f} minutes")


def main(argv):
    parser = Parser("benchmarks.transformers", __doc__)
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
        default="runs/transformers",
        help="folder for the runs",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/transformers.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    rows = options.rows or tuple(ROWS)
    if unknown := set(rows) - ROWS.keys():
        raise InputError(f"--rows {min(unknown)}: must be one of {', '.join(ROWS)}")
    for row in rows:
        finish(configured(row, options.data), folder(options.runs, row))
        found = collected(options.runs)
        write_record(options.out, found)
    show(found)


if __name__ == "__main__":
    run_command(main)
