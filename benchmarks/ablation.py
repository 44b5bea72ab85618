"""What helps Free-8 at the same price: one change at a time, on images held out.

    python -m benchmarks.ablation --data=DIR [--size=full|scaled-down] [--seeds=3]

Every variant costs what Free-8 costs: the same network, updates and passes through it.
Accuracies are those of held-out training images, which nothing is trained on, and
differences to Free-8 are taken seed by seed. Cut off, the same command goes
on.
"""

import pathlib
import statistics

import jax

from benchmarks.record import write_record
from benchmarks.reproduce import SIZES, configuration
from benchmarks.runs import finish
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.evaluation import WORST_CASE

BASE = "Free-8"
# Fields by variant, from BASE; schedules are of the same peak.
VARIANTS = {
    BASE: {},
    "average of the weights": {"optimizer.average_decay": 0.998},
    "cosine schedule": {"optimizer.schedule": "cosine", "optimizer.turns": ()},
    "label smoothing 0.1": {"optimizer.label_smoothing": 0.1},
    "random start": {"attack.start": "random"},
    "start at zero": {"attack.start": "zero"},
    "step of half epsilon": {"attack.step_size": 4 / 255},
    "step of 1.25 epsilon": {"attack.step_size": 10 / 255},
    # Twice the minibatches for the same updates.
    "four replays": {"attack.replays": 4},
    "four replays, random start": {"attack.replays": 4, "attack.start": "random"},
    "smoothing, step of 1.25 epsilon": {
        "optimizer.label_smoothing": 0.1,
        "attack.step_size": 10 / 255,
    },
    "both, four replays, random start": {
        "optimizer.label_smoothing": 0.1,
        "attack.step_size": 10 / 255,
        "attack.replays": 4,
        "attack.start": "random",
    },
}
HELD_OUT = 5000
ATTACKS = ("natural", "pgd-20", "cw-20")


def accuracies(variant, *, size, data, seed, examples, runs):
    """{attack: accuracy}, the worst case over the attacks among them."""
    config = configuration("cifar10_free8", size=size, data=data)
    config.update_from_flattened_dict(VARIANTS[variant])
    config.seed = seed
    config.data.validation_examples = HELD_OUT
    config.evaluation.attacks = ATTACKS
    config.evaluation.examples = examples
    # Nothing is chosen on the way.
    config.validation.every_passes = 1e6
    workdir = runs / f"{variant.replace(' ', '-')}-{seed}"
    rows = finish(config, workdir, part="validation")["evaluation"]
    return {name: rows[name]["accuracy"] for name in (*ATTACKS, WORST_CASE)}


def summary(values, base):
    """Mean and deviation, and those of the differences to `base`, seed by seed."""
    gains = [value - other for value, other in zip(values, base, strict=True)]
    return {
        "mean": statistics.mean(values),
        "deviation": statistics.stdev(values),
        "values": values,
        "gain": {"mean": statistics.mean(gains), "deviation": statistics.stdev(gains)},
    }


def main(argv):
    parser = Parser("benchmarks.ablation", __doc__)
    parser.add_argument("--data", required=True, help="where CIFAR-10 lies")
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="scaled-down" if jax.default_backend() == "cpu" else "full",
    )
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument("--examples", type=count, default=2000, help="held out")
    parser.add_argument("--runs", type=pathlib.Path, default="runs/ablation")
    parser.add_argument("--out", default="benchmarks/results/ablation.json")
    options = parser.parse_args(argv[1:])
    found = {}
    # Seed by seed, so that all variants are compared however early it is cut off.
    for seed in range(options.seeds):
        for variant in VARIANTS:
            row = accuracies(
                variant,
                size=options.size,
                data=options.data,
                seed=seed,
                examples=options.examples,
                runs=options.runs / options.size,
            )
            found.setdefault(variant, []).append(row)
    results = {}
    for variant, rows in found.items():
        results[variant] = {"fields": VARIANTS[variant]} | {
            attack: summary(
                [row[attack] for row in rows], [row[attack] for row in found[BASE]]
            )
            for attack in rows[0]
        }
        natural, robust = results[variant]["natural"], results[variant][WORST_CASE]
        print(
            f"{variant:24} natural {100 * natural['mean']:5.1f}  robust "
            f"{100 * robust['mean']:5.1f} ± {100 * robust['deviation']:.1f}  gain "
            f"{100 * robust['gain']['mean']:+.1f} ± "
            f"{100 * robust['gain']['deviation']:.1f}"
        )
    write_record(options.out, {"size": options.size, "variants": results})


if __name__ == "__main__":
    run_command(main)
