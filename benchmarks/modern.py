"""What leads the ablation against Free-8 at the same price, under AutoAttack.

    python -m benchmarks.modern --data=DIR [--size=full|scaled-down] [--seeds=3]

Both have the network, the updates and the passes through it of benchmarks.reproduce's
Free-8; what is changed was chosen by benchmarks.ablation on images held out of the
training set. Here the test set decides, seed by seed. Cut off, the same command goes on.
"""

import pathlib

import jax

from benchmarks.ablation import BASE, VARIANTS, summary
from benchmarks.record import write_record
from benchmarks.reproduce import SIZES, configuration
from benchmarks.runs import finish
from benchmarks.scaling import forward_flop
from benchmarks.training import update_flop
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.evaluation import WORST_CASE
from freeadv_jax.run import read_run

ROWS = {BASE: {}, "modern": VARIANTS["smoothing, step of 1.25 epsilon"]}
ATTACKS = ("natural", "pgd-20", "autoattack")


def outcome(row, *, size, data, seed, examples, runs):
    """Accuracies, seconds of training and FLOP of one run."""
    config = configuration("cifar10_free8", size=size, data=data)
    config.update_from_flattened_dict(ROWS[row])
    config.seed = seed
    config.evaluation.attacks = ATTACKS
    config.evaluation.examples = examples
    workdir = runs / f"{row}-{seed}"
    results = finish(config, workdir)
    flop = update_flop(config, forward_flop(read_run(workdir)))
    return {
        "accuracy": {
            name: results["evaluation"][name]["accuracy"]
            for name in (*ATTACKS, WORST_CASE)
        },
        "flop": flop * config.batch_size * config.updates,
        "seconds": results["training"]["seconds"],
    }


def main(argv):
    parser = Parser("benchmarks.modern", __doc__)
    parser.add_argument("--data", required=True, help="where CIFAR-10 lies")
    parser.add_argument(
        "--size",
        choices=SIZES,
        default="scaled-down" if jax.default_backend() == "cpu" else "full",
    )
    parser.add_argument("--seeds", type=count, default=3)
    parser.add_argument("--examples", type=count, default=500, help="of the test set")
    parser.add_argument("--runs", type=pathlib.Path, default="runs/modern")
    parser.add_argument("--out", default="benchmarks/results/modern.json")
    options = parser.parse_args(argv[1:])
    found = {row: [] for row in ROWS}
    for seed in range(options.seeds):
        for row, outcomes in found.items():
            outcomes.append(
                outcome(
                    row,
                    size=options.size,
                    data=options.data,
                    seed=seed,
                    examples=options.examples,
                    runs=options.runs / options.size,
                )
            )
    results = {}
    for row, outcomes in found.items():
        results[row] = {
            "fields": ROWS[row],
            "flop": outcomes[0]["flop"],
            "seconds": [each["seconds"] for each in outcomes],
            "accuracy": {
                name: summary(
                    [each["accuracy"][name] for each in outcomes],
                    [each["accuracy"][name] for each in found[BASE]],
                )
                for name in (*ATTACKS, WORST_CASE)
            },
        }
        print(
            f"{row:10}{results[row]['flop']:.2e} FLOP  ",
            *(
                f"{name} {100 * each['mean']:.1f} ± {100 * each['deviation']:.1f} "
                f"({100 * each['gain']['mean']:+.1f})  "
                for name, each in results[row]["accuracy"].items()
            ),
        )
    write_record(options.out, {"size": options.size, "rows": results})


if __name__ == "__main__":
    run_command(main)
