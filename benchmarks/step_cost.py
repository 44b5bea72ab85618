"""Time the weight updates and the compilation of natural, Free-m and 7-PGD training.

    python -m benchmarks.step_cost [--rounds=5] [--out=FILE]

The methods take turns in one process, on the same network and batch, so that the
machine's other work affects all methods alike. The record holds medians over the rounds.
"""

import statistics

import numpy as np

from benchmarks.contender import configured_run, on_one_batch
from benchmarks.record import write_record
from freeadv_jax.command import Parser, count, run_command

NETWORKS = ("preact-resnet-18", "wrn-16-4")
METHODS = ("natural", "free-2", "free-8", "7-pgd")
# Natural training without `train`'s loop over minibatches.
ONE_A_CALL = "natural, one minibatch a call"
BATCH = 128
# The least number of updates in a turn, which consists of whole calls.
UPDATES = 4


def contender(network, method, **how):
    """Return the compiled step of a method on one batch."""
    return on_one_batch(configured_run(network, method, batch_size=BATCH), **how)


def measure(network, rounds):
    """Return seconds of an update and of compilation by method, and their ratios."""
    contenders = {method: contender(network, method) for method in METHODS}
    contenders[ONE_A_CALL] = contender(network, "natural", per_call=1)
    for each in contenders.values():
        each.take(1)
    seconds = {name: [] for name in contenders}
    for number in range(rounds):
        for name, each in contenders.items():
            taken = each.take(-(-UPDATES // each.updates))["seconds_per_update"]
            seconds[name].append(taken)
            print(
                f"{network} round {number + 1}/{rounds} {name:32}{taken:.3f} s/update",
                flush=True,
            )
    rows = {
        name: {
            "seconds_per_update": statistics.median(seconds[name]),
            "all_seconds_per_update": seconds[name],
            "compile_seconds": each.compile_seconds,
        }
        for name, each in contenders.items()
    }
    ratios = {
        f"{name} / natural": float(
            np.median(np.divide(seconds[name], seconds["natural"]))
        )
        for name in contenders
        if name != "natural"
    }
    ratios["compilation free-8 / free-2"] = (
        rows["free-8"]["compile_seconds"] / rows["free-2"]["compile_seconds"]
    )
    return {"batch": BATCH, "methods": rows, "ratios": ratios}


def main(argv):
    parser = Parser("benchmarks.step_cost", __doc__)
    parser.add_argument("--rounds", type=count, default=5, help="turns to take")
    parser.add_argument(
        "--networks",
        metavar="NAME",
        nargs="+",
        default=NETWORKS,
        help="networks to time",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/step_cost.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    results = {name: measure(name, options.rounds) for name in options.networks}
    for network, result in results.items():
        print(f"\n{network}, batch {BATCH}: ratios, medians of {options.rounds} rounds")
        for name, ratio in result["ratios"].items():
            print(f"  {name:42}{ratio:6.2f}")
    write_record(options.out, results)


if __name__ == "__main__":
    run_command(main)
