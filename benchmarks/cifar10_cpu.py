"""Real CIFAR-10 on a CPU: natural, Free-8 and 7-PGD at the same number of updates.

    python -m benchmarks.cifar10_cpu --data=DIR [--runs=DIR]

A scaled-down version of the paper's Table 1: the same loss, ball and attacks with a
small network and a short budget. Runs that were cut off go on with the same command.
"""

import argparse
import pathlib

from benchmarks.record import write_record
from benchmarks.runs import finish
from configs import cifar10_free8, cifar10_natural, cifar10_pgd7

ROWS = {
    "cifar10_natural": cifar10_natural,
    "cifar10_free8": cifar10_free8,
    "cifar10_pgd7": cifar10_pgd7,
}
# Small batches, because Free-8 sees an eighth as many of them: at 2,000 updates of
# 128 images it has hardly begun to learn. Network, batch and learning rate (0.05 or
# 0.1) were chosen for Free-8, on 1,000 images held out of the training set.
SCALED_DOWN = {
    "updates": 2000,
    "batch_size": 32,
    "data.validation_examples": 1000,
    "model.name": "wrn-10-1",
    "optimizer.learning_rate": 0.1,
    "optimizer.schedule": "triangular",
    "optimizer.turns": (0.3,),
    "optimizer.nesterov": True,
    "optimizer.weight_decay": 5e-4,
    "checkpoint.every_updates": 200,
    "evaluation.attacks": ("natural", "fgsm", "pgd-20", "pgd-100"),
    "evaluation.examples": 1000,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="where CIFAR-10 lies")
    parser.add_argument(
        "--runs", type=pathlib.Path, default="runs/benchmark-cifar10-cpu"
    )
    parser.add_argument("--out", default="benchmarks/results/cifar10_cpu.json")
    options = parser.parse_args()
    results = {}
    for name, module in ROWS.items():
        config = module.get_config()
        config.update_from_flattened_dict(SCALED_DOWN)
        config.data.dir = options.data
        results[name] = finish(config, options.runs / name)
    for name, result in results.items():
        print(f"\n{name}: {result['training']['seconds'] / 60:.1f} minutes")
        for attack, row in result["evaluation"].items():
            print(f"  {attack:10}{row['accuracy']:8.2%} of {row['examples']}")
    write_record(options.out, results)


if __name__ == "__main__":
    main()
