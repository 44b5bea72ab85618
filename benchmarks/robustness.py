"""Run every attack, AutoAttack included, on the models of the other benchmarks.

    python -m benchmarks.robustness --data=DIR [--runs=DIR] [--digits=DIR]

The models are the runs of benchmarks.reproduce in --runs and of benchmarks.digits in
--digits. Rows are added to their results.json, so that the same command continues after
an interruption.
"""

import pathlib

from benchmarks.record import write_record
from freeadv_jax.attacks.robustness import WORST_CASE
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.models.interface import logits_functions
from freeadv_jax.runs.build import model_of
from freeadv_jax.runs.folder import read_run
from freeadv_jax.runs.load import trained_state
from freeadv_jax.runs.results import (
    ResultsFolder,
    configured_attacks,
    evaluate_and_record,
    record_red_flags,
    table,
)

ATTACKS = ("natural", "pgd-20", "pgd-100", "cw-100", "pgd-20-x10", "autoattack")
DIGITS = ("digits_natural-0", "digits_free8-0")
CIFAR10 = ("cifar10_natural", "cifar10_free8", "cifar10_pgd7")


def robustness(workdir, data, examples):
    """Return the rows and red flags of one run."""
    run = read_run(workdir)
    config = run.config
    state = trained_state(run, "last")
    test = load_arrays(config.data.name, data, validation_examples=0).test
    logits_fn = logits_functions(model_of(run))(state.variables)
    how = {
        "into": ResultsFolder(workdir, {"config": config.to_dict()}),
        "batch_size": 64,
        "seed": config.seed,
    }
    evaluate_and_record(
        logits_fn,
        test.images,
        test.labels,
        configured_attacks(config, ATTACKS, num_classes=run.num_classes),
        **how,
        examples=examples,
    )
    chosen = slice(examples or None)
    threat = {
        "norm": config.attack.norm,
        "epsilon": config.attack.epsilon,
        "step_size": config.evaluation.step_size,
    }
    results = record_red_flags(
        logits_fn, test.images[chosen], test.labels[chosen], **how, threat=threat
    )
    print(f"\n{workdir}\n{table(results)}\n", flush=True)
    names = (*ATTACKS, WORST_CASE)
    rows = {name: results["evaluation"][name] for name in names}
    return {"evaluation": rows, "red_flags": results["red_flags"]}


def main(argv):
    parser = Parser("benchmarks.robustness", __doc__)
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="the folder of CIFAR-10"
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/reproduce_cifar10_scaled_down",
        help="the runs of benchmarks.reproduce",
    )
    parser.add_argument(
        "--digits",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/benchmark-digits/table",
        help="the runs of benchmarks.digits",
    )
    parser.add_argument(
        "--examples", type=count, default=500, help="test images of CIFAR-10"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/robustness.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    results = {name: robustness(options.digits / name, "", 0) for name in DIGITS}
    for name in CIFAR10:
        results[name] = robustness(options.runs / name, options.data, options.examples)
    write_record(options.out, results)


if __name__ == "__main__":
    run_command(main)
