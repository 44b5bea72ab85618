"""Measure changes to Free-8 at the same cost, one change at a time.

    python -m benchmarks.ablation --data=DIR [--size=full|scaled-down] [--network=NAME]
        [--updates=N] [--seeds=3]
    python -m benchmarks.ablation --data=DIR --part=test --variants NAME...
        --attacks natural pgd-20 autoattack --out=FILE

Every variant costs as much as Free-8: the same network, updates and passes through it.
Variants are chosen on held-out training images (--part=validation), and the chosen ones
are confirmed on the test images (--part=test). The held-out images are never trained on,
whatever the part. Differences to Free-8 are taken seed by seed. The same command
continues after an interruption.
"""

import pathlib
import statistics

import jax
import numpy as np

from benchmarks.record import write_record
from benchmarks.reproduce import SIZES, configuration
from benchmarks.runs import finish
from benchmarks.scaling import forward_flop
from benchmarks.training import update_flop
from freeadv_jax.attacks.robustness import WORST_CASE
from freeadv_jax.command import Parser, count, run_command, several
from freeadv_jax.errors import InputError
from freeadv_jax.recipes import CIFAR_10_STANDARDISATION
from freeadv_jax.runs.folder import read_run
from freeadv_jax.runs.outcomes import read_arrays

BASE = "Free-8"
# The training set's mean and deviation replace each image's own. Division by an image's
# own deviation amplifies changes to images without contrast.
_FIXED = {f"model.{name}": value for name, value in CIFAR_10_STANDARDISATION.items()}
# Changed fields by variant; all schedules have the same peak.
VARIANTS = {
    BASE: {},
    "average of the weights": {"optimizer.average_decay": 0.998},
    "cosine schedule": {"optimizer.schedule": "cosine", "optimizer.turns": ()},
    "label smoothing 0.1": {"optimizer.label_smoothing": 0.1},
    "random start": {"attack.start": "random"},
    "start at zero": {"attack.start": "zero"},
    "straight-through gradient": {"attack.straight_through": True},
    "step of half epsilon": {"attack.step_size": 4 / 255},
    "step of 1.25 epsilon": {"attack.step_size": 10 / 255},
    "fixed standardisation": _FIXED,
    # Fewer replays: more minibatches for the same updates.
    "four replays": {"attack.replays": 4},
    "four replays, random start": {"attack.replays": 4, "attack.start": "random"},
    "four replays, random start, fixed standardisation": {
        "attack.replays": 4,
        "attack.start": "random",
        **_FIXED,
    },
    "four replays, random start, step of 1.25 epsilon": {
        "attack.replays": 4,
        "attack.start": "random",
        "attack.step_size": 10 / 255,
    },
    "two replays, random start": {"attack.replays": 2, "attack.start": "random"},
    "two replays, random start, step of 1.25 epsilon": {
        "attack.replays": 2,
        "attack.start": "random",
        "attack.step_size": 10 / 255,
    },
    "two replays, random start, step of 2 epsilon": {
        "attack.replays": 2,
        "attack.start": "random",
        "attack.step_size": 16 / 255,
    },
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


def variation(variant, seed, options):
    """Return the configuration of a variant and the folder of its run."""
    config = configuration("cifar10_free8", size=options.size, data=options.data)
    config.update_from_flattened_dict(VARIANTS[variant])
    config.model.name = options.network or config.model.name
    config.updates = options.updates or config.updates
    config.seed = seed
    config.evaluation.attacks = tuple(dict.fromkeys(("natural", *options.attacks)))
    config.evaluation.examples = options.examples
    config.data.validation_examples = HELD_OUT
    given = (options.size, options.network, options.updates)
    scale = "-".join(str(each) for each in given if each)
    folder = f"{variant.replace(' ', '-')}-{seed}"
    return config, options.runs / scale / options.part / folder


def accuracies(robust, attacks, examples):
    """Return accuracies by attack, natural first, and the worst case of several attacks.

    `robust` has bool[n] by attack, true for robust images. Attacks and images beyond
    those that are asked for are ignored.
    """
    counted = {name: robust[name][:examples] for name in attacks}
    if len(attacks) > 2:
        counted[WORST_CASE] = np.logical_and.reduce([*counted.values()])
    return {name: float(images.mean()) for name, images in counted.items()}


def outcome(variant, seed, options):
    """Return accuracies, FLOP and seconds of one training."""
    config, workdir = variation(variant, seed, options)
    results = finish(config, workdir, part=options.part, validates=False)
    flop = update_flop(config, forward_flop(read_run(workdir)))
    robust = read_arrays(workdir / "evaluation.npz")
    return {
        "accuracy": accuracies(robust, config.evaluation.attacks, options.examples),
        "flop": flop * config.batch_size * config.updates,
        "seconds": results["training"]["seconds"],
    }


def summary(values, base):
    """Return mean and deviation, also of the differences to `base` seed by seed."""
    gains = [value - other for value, other in zip(values, base, strict=True)]
    return {
        "mean": statistics.mean(values),
        "deviation": statistics.stdev(values),
        "values": values,
        "gain": {"mean": statistics.mean(gains), "deviation": statistics.stdev(gains)},
    }


def show(variant, row):
    """Print one line of the table."""
    natural, *_, robust = row["accuracy"].values()
    gain = robust["gain"]
    print(
        f"{variant:50} {row['flop']:.2e} FLOP  natural {100 * natural['mean']:5.1f}  "
        f"robust {100 * robust['mean']:5.1f} ± {100 * robust['deviation']:.1f}  "
        f"gain {100 * gain['mean']:+.1f} ± {100 * gain['deviation']:.1f}"
    )


def main(argv):
    parser = Parser("benchmarks.ablation", __doc__)
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="the folder of CIFAR-10"
    )
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="scaled-down" if jax.default_backend() == "cpu" else "full",
        help="the paper's recipe, or one for a CPU",
    )
    parser.add_argument(
        "--network",
        metavar="NAME",
        help="value of model.name; default: that of the size",
    )
    parser.add_argument(
        "--updates", type=count, help="weight updates; default: those of the size"
    )
    parser.add_argument(
        "--seeds", type=several, default=3, help="seeds of each variant"
    )
    parser.add_argument(
        "--part",
        choices=("validation", "test"),
        default="validation",
        help="images to evaluate on",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        metavar="NAME",
        help=f"variants beside {BASE}; default: all",
    )
    parser.add_argument(
        "--attacks",
        metavar="NAME",
        nargs="+",
        default=ATTACKS,
        help="attacks of the evaluation",
    )
    parser.add_argument(
        "--examples", type=count, default=2000, help="images to evaluate on"
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/ablation",
        help="folder for the runs",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/ablation.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    if options.seeds == 1:
        raise InputError("--seeds 1: must be at least 2, for a deviation")
    if set(options.attacks) == {"natural"}:
        raise InputError(
            "--attacks natural: name an attack, in which gains are measured"
        )
    # Seed by seed, so that an interruption leaves all variants with the same seeds.
    found = {
        variant: []
        for variant in dict.fromkeys((BASE, *(options.variants or VARIANTS)))
    }
    for seed in range(options.seeds):
        for variant, outcomes in found.items():
            outcomes.append(outcome(variant, seed, options))
    rows = {}
    for variant, outcomes in found.items():
        rows[variant] = {
            "fields": VARIANTS[variant],
            "flop": outcomes[0]["flop"],
            "seconds": [each["seconds"] for each in outcomes],
            "accuracy": {
                name: summary(
                    *(
                        [each["accuracy"][name] for each in found[which]]
                        for which in (variant, BASE)
                    )
                )
                for name in outcomes[0]["accuracy"]
            },
        }
        show(variant, rows[variant])
    record = {
        "size": options.size,
        "network": options.network,
        "updates": options.updates,
        "part": options.part,
        "variants": rows,
    }
    write_record(options.out, record)


if __name__ == "__main__":
    run_command(main)
