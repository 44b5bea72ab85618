"""Compare autoattack's version 'quick' with 'standard' on networks of several kinds.

    python -m benchmarks.quick --data=DIR [--rows NAME ...] [--runs=DIR] [--out=FILE]

Each row trains a network scaled down to a CPU, attacks test images by both versions, and
counts the images on which they differ and the passes that each took. The audit is left
out: the standard version says what `quick` missed, and how many passes an audited image
takes. The same command continues after an interruption, and the record holds all finished
rows. With --held_out the images are those held out of the training set, on which `quick`
was made.
"""

import pathlib
import zlib

import jax
import numpy as np

import freeadv_jax as fa
from benchmarks import certificates
from benchmarks.record import kept, write_record
from benchmarks.reproduce import configuration
from benchmarks.runs import finish
from freeadv_jax.attacks import autoattack
from freeadv_jax.attacks.attack import FORWARD
from freeadv_jax.attacks.audit import SHARE
from freeadv_jax.attacks.ensemble import cascade
from freeadv_jax.attacks.named import attack_by_name
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.data.dataset import load_dataset
from freeadv_jax.errors import InputError
from freeadv_jax.files import write_json
from freeadv_jax.pixels import unit_range

_LEVEL = 1 / 255
# At the recipe's the small CNN ends with one class for all images.
_SMALLER_RATE = {"optimizer.learning_rate": 0.005}
# Activations of these networks then fit into a CPU's cache; the result is the same.
_BATCH_SIZE = 32
# By row: the norm, epsilon, and what differs from Free-8 of the scaled-down recipe.
ROWS = {
    "free-8": ("linf", 8 * _LEVEL, {}),
    "natural": ("linf", 2 * _LEVEL, {"method": "natural"}),
    "2-pgd, one mean for all": (
        "linf",
        8 * _LEVEL,
        {"method": "pgd", "attack.steps": 2, "model.normalization": "mean_std"},
    ),
    "trades": ("linf", 8 * _LEVEL, {"method": "trades", "attack.steps": 2}),
    "free-4, small cnn": (
        "linf",
        4 * _LEVEL,
        {"model.name": "small-cnn-bn", "attack.replays": 4} | _SMALLER_RATE,
    ),
    "free-4, deeper": (
        "linf",
        8 * _LEVEL,
        {"model.name": "wrn-16-1", "attack.replays": 4},
    ),
    "free-4, silu": (
        "l2",
        0.5,
        {"model.name": "wrn-10-1-silu", "attack.replays": 4},
    ),
    "free-8, small cnn": ("l2", 0.5, {"model.name": "small-cnn-bn"} | _SMALLER_RATE),
}
# A residual network without normalisation, by the library and not by a configuration.
RESIDUAL = "free-4, residual"
_NAMES = (*ROWS, RESIDUAL)


def configured(row, data):
    """Return the configuration of a row of ROWS."""
    norm, epsilon, fields = ROWS[row]
    config = configuration("cifar10_free8", size="scaled-down", data=data)
    config.attack.norm, config.attack.epsilon = norm, epsilon
    config.attack.step_size = epsilon / 2 if "method" in fields else epsilon
    config.update_from_flattened_dict(fields)
    config.evaluation.attacks = ("natural",)
    return config


def trained(row, runs, data):
    """Return the network of a row as a function of images, and its threat."""
    workdir = runs / row.replace(", ", "-").replace(" ", "-")
    if row == RESIDUAL:
        dataset = load_dataset(**configured("free-8", data).data)
        # At the rate of benchmarks.certificates its units die on these images.
        weights = certificates.trained(
            dataset, workdir, updates=600, learning_rate=0.02
        )
        model = jax.tree_util.Partial(certificates.apply, weights)
        return model, {"norm": "linf", "epsilon": certificates.EPSILON}
    finish(configured(row, data), workdir)
    norm, epsilon, _ = ROWS[row]
    return fa.load(workdir), {"norm": norm, "epsilon": epsilon}


def _settings():
    """Return the settings of both versions, to which rows measured before must agree."""
    versions = ("autoattack", "autoattack-quick")
    shared = {"norm": "linf", "epsilon": 1.0, "step_size": 1.0, "num_classes": 10}
    return {name: attack_by_name(name, **shared).record(0) for name in versions}


def _trainings(data):
    """Return a checksum of what the trainings are configured with, wherever the data is."""
    configs = [configured(row, data) for row in ROWS]
    for config in configs:
        config.data.dir = ""
    return zlib.crc32("\n".join(config.to_json() for config in configs).encode())


def compared(model, threat, images, labels):
    """Return what both versions find on the same images."""
    found, standing = {}, {}
    for version, how in (("quick", {"audit": 0.0}), ("standard", {})):
        outcome = autoattack(
            model,
            images,
            labels,
            **threat,
            version=version,
            batch_size=_BATCH_SIZE,
            **how,
        )
        robust = ~outcome.success
        standing[version] = robust
        found[version] = {
            "robust": int(robust.sum()),
            "stages": outcome.standing,
            "passes_of_an_image": float(outcome.passes.mean()),
            "passes_of_a_survivor": float(outcome.passes[robust].mean())
            if robust.any()
            else 0.0,
        }
    different = standing["quick"] != standing["standard"]
    return found | {"images": len(labels), "different": int(different.sum())}


def with_audit(row):
    """Return quick's mean passes of a survivor and of an image, with the usual audit.

    An audited survivor also goes through all of the standard version but the untargeted
    APGD.
    """
    quick, standard = row["quick"], row["standard"]
    untargeted = cascade("standard", norm="linf", epsilon=1.0, num_classes=10)[
        "apgd-ce"
    ]
    known = FORWARD + float(np.dot(untargeted.passes(10), [1, untargeted.steps]))
    audit = SHARE * (standard["passes_of_a_survivor"] - known)
    survivors = quick["robust"] / row["images"]
    return {
        "passes_of_a_survivor": quick["passes_of_a_survivor"] + audit,
        "passes_of_an_image": quick["passes_of_an_image"] + survivors * audit,
    }


def show(found):
    """Print a line for each row."""
    for name, row in found.items():
        quick, standard = row["quick"], row["standard"]
        print(
            f"{name:26}{row['norm']:>5} {255 * row['epsilon']:6.1f}/255  robust "
            f"{quick['robust']:4} and {standard['robust']:4}, different "
            f"{row['different']}, passes of a survivor "
            f"{quick['passes_of_a_survivor']:.0f} and "
            f"{standard['passes_of_a_survivor']:.0f}"
        )


def main(argv):
    parser = Parser("benchmarks.quick", __doc__)
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="the folder of CIFAR-10"
    )
    parser.add_argument(
        "--rows", nargs="+", metavar="ROW", help="rows to measure; default: all"
    )
    parser.add_argument("--examples", type=count, default=1000, help="images to attack")
    parser.add_argument(
        "--held_out",
        action="store_true",
        help="attack images held out of the training set; default: test images",
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/quick",
        help="folder for the runs",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the record to write; default: benchmarks/results/quick.json, or "
        "quick_held_out.json beside it",
    )
    options = parser.parse_args(argv[1:])
    rows = options.rows or _NAMES
    if unknown := set(rows) - set(_NAMES):
        raise InputError(f"--rows {min(unknown)}: must be one of {', '.join(_NAMES)}")
    dataset = load_dataset(**configured("free-8", options.data).data)
    split = dataset.validation if options.held_out else dataset.test
    images = unit_range(np.asarray(split.images[: options.examples]))
    labels = split.labels[: options.examples]
    how = {"examples": len(labels), "held_out": options.held_out}
    how |= {"attacks": _settings(), "trainings": _trainings(options.data)}
    name = "quick_held_out.json" if options.held_out else "quick.json"
    path = options.runs / name
    options.runs.mkdir(parents=True, exist_ok=True)
    found = {"rows": {}} | kept(path, how)
    for row in rows:
        if row not in found["rows"]:
            model, threat = trained(row, options.runs, options.data)
            found["rows"][row] = threat | compared(model, threat, images, labels)
            write_json(path, found)
        show({row: found["rows"][row]})
    write_record(options.out or f"benchmarks/results/{name}", found)


if __name__ == "__main__":
    run_command(main)
