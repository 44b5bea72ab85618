"""A naturally trained network made robust by Free-8 in a tenth of its updates.

    python -m benchmarks.fine_tuning --set=digits
    python -m benchmarks.fine_tuning --set=cifar10 --data=DIR

compares Free-8 from the weights of natural training with Free-8 from random weights, after
as many updates and after ten times as many. CIFAR-10 is scaled down to a CPU as in
benchmarks.reproduce. Trainings are whole runs under --runs: the same command continues
where it was cut off.
"""

import pathlib
import statistics

from ml_collections import ConfigDict

from benchmarks.record import write_record
from benchmarks.reproduce import SCALED_DOWN
from benchmarks.runs import finish
from configs import cifar10_free8, cifar10_natural, digits_free8, digits_natural
from freeadv_jax.command import Parser, run_command

SETS = {
    "digits": (digits_natural, digits_free8, {}),
    "cifar10": (cifar10_natural, cifar10_free8, SCALED_DOWN),
}
ATTACKS = ("natural", "pgd-20", "apgd-t")
SEEDS = range(3)
NATURAL = "natural"
FINE_TUNED = "natural, then Free-8 for a tenth of the updates"
SHORT = "Free-8 from random weights, as many updates"
FULL = "Free-8 from random weights, ten times as many"
# The part of the natural training's updates that fine-tuning takes.
_PART = 10


def configurations(
    name: str, seed: int, *, data: str, runs: pathlib.Path
) -> dict[str, tuple[ConfigDict, pathlib.Path]]:
    """Return {row: (configuration, run folder)} for a data set, natural training first."""
    natural_row, free_row, size = SETS[name]
    found = {}
    for row in (NATURAL, FINE_TUNED, SHORT, FULL):
        config = (natural_row if row == NATURAL else free_row).get_config()
        config.update_from_flattened_dict(size)
        config.data.dir = data
        config.seed = seed
        config.evaluation.attacks = ATTACKS
        if row in (FINE_TUNED, SHORT):
            replays = config.attack.replays
            config.updates = config.updates // _PART // replays * replays
        if row == FINE_TUNED:
            config.init = str(found[NATURAL][1])
        folder = row.replace(",", "").replace(" ", "-").lower()
        found[row] = config, runs / name / f"{folder}-{seed}"
    return found


def table(name: str, *, data: str, runs: pathlib.Path) -> dict:
    """Train, evaluate and return {row: updates and accuracies over the seeds}."""
    results = {}
    for seed in SEEDS:
        settings = configurations(name, seed, data=data, runs=runs)
        for row, (config, folder) in settings.items():
            result = finish(config, folder)
            kept = results.setdefault(row, {"updates": config.updates, "runs": []})
            kept["runs"].append(result)
    rows = {}
    for row, kept in results.items():
        evaluations = [result["evaluation"] for result in kept["runs"]]
        rows[row] = {
            "updates": kept["updates"],
            "examples": evaluations[0][NATURAL]["examples"],
            "training_seconds": [r["training"]["seconds"] for r in kept["runs"]],
            "accuracy": {
                attack: _summary([e[attack]["accuracy"] for e in evaluations])
                for attack in ATTACKS
            },
        }
        means = (f"{a} {s['mean']:.1%}" for a, s in rows[row]["accuracy"].items())
        print(f"{row}, {kept['updates']} updates: {', '.join(means)}")
    return {"epsilon": float(config.attack.epsilon), "rows": rows}


def _summary(values):
    return {
        "mean": statistics.mean(values),
        "deviation": statistics.stdev(values),
        "values": values,
    }


def main(argv):
    parser = Parser("benchmarks.fine_tuning", __doc__)
    parser.add_argument(
        "--set", choices=SETS, required=True, help="the data set to train on"
    )
    parser.add_argument(
        "--data",
        metavar="DIR",
        default="",
        help="the folder of CIFAR-10's archive; default: none, not needed for digits",
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/benchmark-fine-tuning",
        help="the folder for the runs",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the record to write; default: benchmarks/results/fine_tuning_SET.json",
    )
    given = parser.parse_args(argv[1:])
    out = given.out or f"benchmarks/results/fine_tuning_{given.set}.json"
    write_record(out, table(given.set, data=given.data, runs=given.runs))


if __name__ == "__main__":
    run_command(main)
