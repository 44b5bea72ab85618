"""Certified training at CPU size, and what is certified afterwards on all test images.

    python -m benchmarks.certified --set=mnist --data=DIR
    python -m benchmarks.certified --set=cifar10 --data=DIR

trains the small network of Gowal et al. (2018) with each candidate of a set for a part of
the updates, takes the candidate with the most held-out training images certified by
interval bounds, trains with it for all updates, and certifies the test images. Trainings are
whole runs under --runs: the same command continues where it was cut off.
"""

import pathlib

from ml_collections import ConfigDict

import freeadv_jax as fa
from benchmarks.record import write_record
from benchmarks.runs import finish
from configs import cifar10_ibp_8, mnist_ibp_01
from freeadv_jax.certify import crown, interval
from freeadv_jax.command import Parser, run_command
from freeadv_jax.data.dataset import load_dataset
from freeadv_jax.intervals import wilson

SETS = {"mnist": mnist_ibp_01, "cifar10": cifar10_ibp_8}
# Adam's rate falls to 0, because the budget is a few passes over the images.
SMALL = {
    "model.name": "dm-small",
    "data.validation_examples": 5000,
    "batch_size": 100,
    "optimizer.schedule": "cosine",
    "optimizer.turns": (),
    "attack.certified_warmup": 0.05,
    "attack.certified_rampup": 0.4,
    "attack.certified_scale": 1.0,
    "validation.every_passes": 1000.0,
    "checkpoint.every_updates": 250,
    "checkpoint.keep": 1,
    "logging.every_updates": 50,
}
CANDIDATES = {
    "kappa 0.5, rate 0.001": {},
    "kappa 0, rate 0.001": {"attack.certified_kappa": 0.0},
    "kappa 0, rate 0.002": {
        "attack.certified_kappa": 0.0,
        "optimizer.learning_rate": 2e-3,
    },
}
UPDATES = {"mnist": 5000, "cifar10": 20000}
# The part of the updates by which candidates are compared.
_PART = 10


def configured(name: str, candidate: str, *, data: str, short: bool) -> ConfigDict:
    """Return the configuration of a candidate on a data set."""
    config = SETS[name].get_config()
    config.update_from_flattened_dict(SMALL | CANDIDATES[candidate])
    config.data.name, config.data.dir = name, data
    config.updates = UPDATES[name] // _PART if short else UPDATES[name]
    config.evaluation.attacks = ("natural",) if short else ("natural", "pgd-20")
    return config


def certified(workdir: pathlib.Path, split, epsilon: float, *, bounds: dict) -> dict:
    """Return {bound: certified images, their share and its interval} of a run."""
    model, found = fa.load(workdir), {}
    for name, (bound, settings) in bounds.items():
        outcome = bound(
            model, split.images, split.labels, norm="linf", epsilon=epsilon, **settings
        )
        count, examples = int(outcome.certified.sum()), len(split.labels)
        found[name] = {
            "correct": count,
            "examples": examples,
            "accuracy": count / examples,
            "interval": wilson(count, examples),
        }
        print(f"{workdir}: {name} certifies {count / examples:.2%}", flush=True)
    return found


IBP = {"ibp": (interval, {})}
BOTH = IBP | {"crown-ibp": (crown, {"intermediate": "ibp", "batch_size": 50})}


def table(name: str, *, data: str, runs: pathlib.Path) -> dict:
    """Choose, train and certify; return the candidates, and the final run's figures."""
    candidates = {}
    for candidate in CANDIDATES:
        config = configured(name, candidate, data=data, short=True)
        workdir = runs / name / candidate.replace(",", "").replace(" ", "-")
        result = finish(config, workdir, part="validation")
        held = load_dataset(**config.data).validation
        candidates[candidate] = {
            "updates": config.updates,
            "natural": result["evaluation"]["natural"]["accuracy"],
            "certified": certified(workdir, held, config.attack.epsilon, bounds=IBP),
        }
    best = max(
        candidates, key=lambda each: candidates[each]["certified"]["ibp"]["accuracy"]
    )
    config = configured(name, best, data=data, short=False)
    workdir = runs / name / "final"
    result = finish(config, workdir)
    test = load_dataset(**config.data).test
    return {
        "epsilon": float(config.attack.epsilon),
        "candidates": candidates,
        "chosen": best,
        "config": result["config"],
        "training": result["training"],
        "evaluation": result["evaluation"],
        "certified": certified(workdir, test, config.attack.epsilon, bounds=BOTH),
    }


def main(argv):
    parser = Parser("benchmarks.certified", __doc__)
    parser.add_argument("--set", choices=SETS, required=True, help="the data set")
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="the folder of its files"
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/benchmark-certified",
        help="the folder for the runs",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the record to write; default: benchmarks/results/certified_SET.json",
    )
    given = parser.parse_args(argv[1:])
    out = given.out or f"benchmarks/results/certified_{given.set}.json"
    write_record(out, table(given.set, data=given.data, runs=given.runs))


if __name__ == "__main__":
    run_command(main)
