"""Provoke collapses of cheap adversarial training, and judge the alarm and the cure.

    python -m benchmarks.collapse --data=DIR [--seeds=3] [--sets ...] [--runs=DIR]
        [--misalignment=0.3] [--rounds=9] [--out=FILE]

Small networks are trained by FGSM-RS with a step of 2 epsilon and by Free-2, in large
balls on CIFAR-10 and on digits, and PGD-10 measures them after each pass on held-out
images. A run has collapsed where that accuracy has fallen below half of its best. The
alarm has foreseen it if it came a pass or more before; in a run that never collapses it
is false.

Each setting is also trained with the cure, `attack.misalignment`, and by 7-PGD, which
does not collapse, and evaluated by APGD-T on test images. Last, the training steps with
and without the alignment take turns. The same command continues after an interruption,
and the record holds what is finished.
"""

import itertools
import pathlib
import statistics

import jax.numpy as jnp
import numpy as np

from benchmarks.contender import Worker, configured_run, on_one_batch
from benchmarks.record import write_record
from benchmarks.reproduce import SCALED_DOWN
from benchmarks.runs import finish
from configs import cifar10_free8, digits_free8
from freeadv_jax.attacks.robustness import VALIDATION_ATTACK
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.config import parse_number
from freeadv_jax.runs.metrics import read_metrics
from freeadv_jax.training import free, update
from freeadv_jax.training.alignment import ALIGNMENT

# A run has collapsed below this share of its best accuracy, once that is no luck.
FALL, NO_LUCK = 0.5, 0.15
# Configuration, epsilons and fields. The images of digits are nearly black and white, and
# only larger balls make their training collapse.
SETS = {
    "cifar10": (
        cifar10_free8,
        (12 / 255, 14 / 255, 16 / 255),
        SCALED_DOWN | {"updates": 12_000, "batch_size": 64},
    ),
    "digits": (
        digits_free8,
        (16 / 255, 0.2, 0.3),
        {"batch_size": 32, "logging.every_updates": 16},
    ),
}
# The methods, with the step in epsilons.
METHODS = {
    "fgsm-rs": (2.0, {"method": "fgsm-rs"}),
    "free": (1.0, {"method": "free", "attack.replays": 2}),
    "pgd": (0.25, {"method": "pgd", "attack.steps": 7}),
}
CHEAP = ("fgsm-rs", "free")
EVALUATION = ("natural", "apgd-t")
# Networks and methods whose steps are timed.
TIMED = tuple(itertools.product(("small-cnn", "wrn-10-1"), ("fgsm-rs", "free-2")))
TURN_SECONDS = 2.0


def configured(name, method, epsilon, seed, *, misalignment=0.0, data=""):
    """Return the configuration of one run, in the set `name` of SETS."""
    module, _, fields = SETS[name]
    step, of_method = METHODS[method]
    config = module.get_config()
    config.update_from_flattened_dict(fields | of_method)
    config.seed = seed
    config.attack.epsilon = epsilon
    config.attack.step_size = config.attack.get_ref("epsilon") * step
    config.attack.misalignment = misalignment
    config.data.dir = "" if name == "digits" else data
    config.data.validation_examples = 200 if name == "digits" else 500
    config.validation.every_passes = 1.0
    config.evaluation.attacks = EVALUATION
    config.evaluation.examples = 1000
    return config


def history(lines):
    """Return accuracies by pass, alignments and the alarm from lines of metrics.jsonl."""
    validations = [line for line in lines if line["kind"] == "validation"]
    aligned = [line for line in lines if ALIGNMENT in line and line["kind"] == "train"]
    alarms = [line["updates"] for line in lines if line["kind"] == "alarm"]
    return {
        "updates": [line["updates"] for line in validations],
        VALIDATION_ATTACK: [line[VALIDATION_ATTACK] for line in validations],
        ALIGNMENT: {
            "updates": [line["updates"] for line in aligned],
            "values": [line[ALIGNMENT] for line in aligned],
        },
        "alarm": alarms[0] if alarms else None,
    }


def collapse(found):
    """Return the index of the pass after which a history has collapsed, else None."""
    best = 0.0
    for number, accuracy in enumerate(found[VALIDATION_ATTACK]):
        if best > NO_LUCK and accuracy < FALL * best:
            return number
        best = max(best, accuracy)
    return None


def judged(found):
    """Return after how many updates a run collapsed, and whether that was foreseen."""
    at, alarm = collapse(found), found["alarm"]
    fell = None if at is None else found["updates"][at]
    # The alarm came before the pass in which the accuracy fell.
    foreseen = None not in (at, alarm) and alarm <= found["updates"][at - 1]
    return {"collapse": fell, "alarm": alarm, "foreseen": foreseen}


def totals(verdicts):
    """Return how many runs collapsed, were foreseen, and had a false alarm."""
    fell = [each for each in verdicts if each["collapse"] is not None]
    stood = [each for each in verdicts if each["collapse"] is None]
    return {
        "collapses": len(fell),
        "foreseen": sum(each["foreseen"] for each in fell),
        "runs that stood": len(stood),
        "false alarms": sum(each["alarm"] is not None for each in stood),
    }


def trained(config, workdir):
    """Finish a run, and return its history, verdict and robust accuracy."""
    rows = finish(config, workdir)["evaluation"]
    found = history(read_metrics(workdir))
    return {
        "history": found,
        **judged(found),
        "accuracy": {name: rows[name]["accuracy"] for name in EVALUATION},
    }


def plan(sets, seeds, misalignment):
    """Yield (set, method, epsilon, seed, misalignment) of every run, seed by seed."""
    for seed in range(seeds):
        for name in sets:
            for epsilon in SETS[name][1]:
                for method in CHEAP:
                    yield name, method, epsilon, seed, 0.0
                    yield name, method, epsilon, seed, misalignment
                yield name, "pgd", epsilon, seed, 0.0


def folder(name, method, epsilon, seed, misalignment):
    """Return the name of a run's folder, which is also that of its row in the record."""
    cure = f"-misalignment-{misalignment:g}" if misalignment else ""
    return f"{name}-{method}-{255 * epsilon:.3g}{cure}-{seed}"


def cured(rows, settings):
    """Return the robust accuracy that the cure keeps of 7-PGD's, where runs collapsed.

    `rows` maps the names of `folder` to results of `trained`, and `settings` are those of
    the runs in it.
    """
    kept = {}
    for name, method, epsilon, seed, misalignment in settings:
        if not misalignment:
            continue
        ours, plain, reference = (
            rows.get(folder(name, *others))
            for others in (
                (method, epsilon, seed, misalignment),
                (method, epsilon, seed, 0.0),
                ("pgd", epsilon, seed, 0.0),
            )
        )
        if ours and reference and plain and plain["collapse"] is not None:
            robust = [each["accuracy"][EVALUATION[-1]] for each in (ours, reference)]
            kept[folder(name, method, epsilon, seed, misalignment)] = {
                "robust": robust[0],
                "of 7-PGD": robust[1],
                "collapse": ours["collapse"],
            }
    return kept


def build(aligned, network, method, images):
    """Make a timed step in its own process, with or without the alignment."""
    if not aligned:
        # The gradient after the step is then computed for nobody, and left out.
        update.alignment = free.alignment = lambda before, after: jnp.zeros(())
    run = configured_run(network, method, images=images, batch_size=64)
    return on_one_batch(run)


def cost(rounds):
    """Return by network and method what the alignment adds to a step's time."""
    found = {}
    for network, method in TIMED:
        workers = {}
        try:
            for aligned in (False, True):
                workers[aligned] = Worker(build, aligned, network, method, "cifar10")
            calls = workers[True].ask("calls_in", TURN_SECONDS)
            seconds = {aligned: [] for aligned in workers}
            for _ in range(rounds):
                for aligned, worker in workers.items():
                    turn = worker.ask("take", calls)
                    seconds[aligned].append(turn["seconds_per_update"])
        finally:
            for worker in workers.values():
                worker.close()
        ratios = np.divide(seconds[True], seconds[False])
        found[f"{network}, {method}"] = {
            "seconds_per_update": statistics.median(seconds[True]),
            "without the alignment": statistics.median(seconds[False]),
            "ratio": float(np.median(ratios)),
            "all ratios": ratios.tolist(),
        }
    return found


def summary(rows, settings):
    """Return the record of the finished runs."""
    plain = [
        rows[folder(*each)] for each in settings if not each[-1] and each[1] in CHEAP
    ]
    return {
        "alarm": totals(plain),
        "cure": cured(rows, settings),
        "runs": rows,
    }


def show(record):
    """Print how the alarm, the cure and the cost did."""
    alarm, cure = record["alarm"], record["cure"].values()
    print(
        f"{alarm['foreseen']} of {alarm['collapses']} collapses foreseen, "
        f"{alarm['false alarms']} false alarms in {alarm['runs that stood']} other runs"
    )
    for name, row in record["cure"].items():
        print(
            f"  {name:44} robust {100 * row['robust']:5.1f}, "
            f"7-PGD {100 * row['of 7-PGD']:5.1f}"
        )
    if cure:
        ours, reference = (
            sum(row[side] for row in cure) for side in ("robust", "of 7-PGD")
        )
        print(f"  together {100 * ours / reference:.0f} % of 7-PGD's robust accuracy")
    for name, row in record["cost"].items():
        print(f"  {name:24} the alignment adds {100 * (row['ratio'] - 1):+.2f} %")


def main(argv):
    parser = Parser("benchmarks.collapse", __doc__)
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="the folder of CIFAR-10"
    )
    parser.add_argument("--seeds", type=count, default=3, help="seeds of each setting")
    parser.add_argument(
        "--sets",
        nargs="+",
        choices=SETS,
        metavar="NAME",
        default=tuple(SETS),
        help="data sets",
    )
    parser.add_argument(
        "--misalignment",
        type=parse_number,
        default=0.3,
        help="the strength of the cure",
    )
    parser.add_argument(
        "--rounds", type=count, default=9, help="turns of the timed steps"
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/collapse",
        help="folder for the runs",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/collapse.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    settings, rows = [], {}
    for setting in plan(options.sets, options.seeds, options.misalignment):
        *which, misalignment = setting
        config = configured(*which, misalignment=misalignment, data=options.data)
        settings.append(setting)
        rows[folder(*setting)] = trained(config, options.runs / folder(*setting))
        write_record(options.out, summary(rows, settings))
    record = summary(rows, settings) | {"cost": cost(options.rounds)}
    write_record(options.out, record)
    show(record)


if __name__ == "__main__":
    run_command(main)
