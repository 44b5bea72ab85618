"""Seconds per weight update of natural, Free-m and 7-PGD training, and compile times.

    python -m benchmarks.step_cost [--rounds=5] [--out=FILE]

The methods take turns in one process, on the same network and batch, so that what
else the machine does falls on all of them; medians over the rounds.
"""

import argparse
import pathlib
import statistics
import time

import jax
import numpy as np

from benchmarks.record import write_record
from freeadv_jax import parallel
from freeadv_jax.config import base_config, replays
from freeadv_jax.parallel import SPLIT
from freeadv_jax.run import Run
from freeadv_jax.train import STATE_LAYOUT, make_train_step

NETWORKS = ("preact-resnet-18", "wrn-16-4")
METHODS = {
    "natural": {"method": "natural"},
    "free-2": {"method": "free", "attack.replays": 2},
    "free-8": {"method": "free", "attack.replays": 8},
    "7-pgd": {"method": "pgd", "attack.steps": 7, "attack.step_size": 2 / 255},
}
BATCH = 128


class Contender:
    """One method on one network, compiled and ready to step."""

    def __init__(self, network, fields):
        config = base_config()
        config.update_from_flattened_dict(
            {"model.name": network, "batch_size": BATCH, **fields}
        )
        run = Run(pathlib.Path(), config, num_classes=10, image_shape=(32, 32, 3))
        rng = np.random.default_rng(0)
        self._batch = parallel.place(
            {
                "image": rng.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8),
                "label": rng.integers(0, 10, BATCH, dtype=np.int32),
            },
            SPLIT,
        )
        self._state = parallel.place(run.initial_state(), STATE_LAYOUT)
        self._replays = replays(config)
        step = make_train_step(config, model=run.model(), tx=run.optimizer())
        lowered = step.lower(self._state, self._batch)
        started = time.perf_counter()
        self._step = lowered.compile()
        self.compile_seconds = time.perf_counter() - started
        self.seconds_per_update = []

    def take(self, updates):
        """Times at least so many updates, in whole steps."""
        steps = -(-updates // self._replays)
        started = time.perf_counter()
        for _ in range(steps):
            self._state, metrics = self._step(self._state, self._batch)
        jax.block_until_ready(metrics)
        seconds = time.perf_counter() - started
        self.seconds_per_update.append(seconds / (steps * self._replays))


def measure(network, rounds):
    contenders = {name: Contender(network, fields) for name, fields in METHODS.items()}
    for contender in contenders.values():
        contender.take(1)
        contender.seconds_per_update.clear()
    for number in range(rounds):
        for name, contender in contenders.items():
            contender.take(4)
            print(
                f"{network} round {number + 1}/{rounds} {name:8} "
                f"{contender.seconds_per_update[-1]:.3f} s/update",
                flush=True,
            )
    rows = {
        name: {
            "seconds_per_update": statistics.median(contender.seconds_per_update),
            "all_seconds_per_update": contender.seconds_per_update,
            "compile_seconds": contender.compile_seconds,
        }
        for name, contender in contenders.items()
    }
    natural = np.array(contenders["natural"].seconds_per_update)
    ratios = {
        f"{name} / natural": float(
            np.median(np.array(contenders[name].seconds_per_update) / natural)
        )
        for name in ("free-2", "free-8", "7-pgd")
    }
    ratios["compilation free-8 / free-2"] = (
        rows["free-8"]["compile_seconds"] / rows["free-2"]["compile_seconds"]
    )
    return {"batch": BATCH, "methods": rows, "ratios": ratios}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--out", default="benchmarks/results/step_cost.json")
    options = parser.parse_args()
    results = {name: measure(name, options.rounds) for name in options.networks}
    for network, result in results.items():
        print(f"\n{network}, batch {BATCH}: ratios, medians of {options.rounds} rounds")
        for name, ratio in result["ratios"].items():
            print(f"  {name:32}{ratio:6.2f}")
    write_record(options.out, results)


if __name__ == "__main__":
    main()
