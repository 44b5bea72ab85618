"""Seconds of PGD-100 and of the whole AutoAttack, ours against PyTorch's.

    python -m benchmarks.attack_speed --workdir=RUN --data=DIR [--examples=256]

The peers are Foolbox's PGD and pyautoattack, the AutoAttack of its authors, both on
PyTorch with the weights of RUN (`pip install '.[references]'`). They take turns on the
same images with ours, whose first round includes compilation and is not counted.
"""

import argparse
import pathlib
import statistics
import time

import foolbox
import jax
import numpy as np
import torch

from benchmarks.peers.references import judged, reference
from benchmarks.peers.torch_networks import torch_classifier
from benchmarks.record import write_record
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.named import attack_by_name
from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.evaluation import logits_functions
from freeadv_jax.run import read_run

PGD_STEPS = 100


class Ours:
    """A campaign that has compiled what it needs after its first round."""

    def __init__(self, run, variables, images, labels, batch_size):
        self._logits_fn = logits_functions(run.model())(variables)
        self._campaign = Campaign(batch_size=batch_size)
        self._images, self._labels = images, labels

    def attack(self, named):
        """Standing images and the seconds of each stage."""
        seconds, begun = {}, time.perf_counter()
        logits = self._campaign.logits(self._logits_fn, self._images)
        standing = logits.argmax(axis=-1) == self._labels
        seconds["natural"] = time.perf_counter() - begun
        for name, stage in named.stages.items():
            begun = time.perf_counter()
            standing = self._campaign.attack(
                stage, self._logits_fn, self._images, self._labels, standing
            )
            seconds[name] = time.perf_counter() - begun
        return standing, seconds


class Theirs:
    """The same attacks on the same weights in PyTorch, for L-inf."""

    def __init__(self, run, variables, images, labels, batch_size):
        self._model = torch_classifier(run, variables)
        self._images, self._labels = images, labels
        self._batch_size = batch_size

    def attack(self, named):
        """Standing images and the seconds in all."""
        begun = time.perf_counter()
        if named.name == "autoattack":
            adversarial = reference("autoattack")(
                self._model,
                self._images,
                self._labels,
                norm=named.norm,
                epsilon=named.epsilon,
                seed=0,
                batch_size=self._batch_size,
            )
        else:
            adversarial = self._pgd(named)
        seconds = time.perf_counter() - begun
        standing, _ = judged(
            self._model,
            self._images,
            self._labels,
            adversarial,
            norm=named.norm,
            epsilon=named.epsilon,
            batch_size=self._batch_size,
        )
        return standing, {named.name: seconds}

    def _pgd(self, named):
        (stage,) = named.stages.values()
        attack = foolbox.attacks.LinfProjectedGradientDescentAttack(
            steps=stage.steps, abs_stepsize=stage.step_size
        )
        model = foolbox.models.PyTorchModel(self._model, bounds=(0, 1), device="cpu")
        nchw = torch.from_numpy(self._images.transpose(0, 3, 1, 2).copy())
        labels = torch.from_numpy(self._labels.astype(np.int64))
        size = self._batch_size
        batches = [
            attack.run(
                model,
                nchw[first : first + size],
                labels[first : first + size],
                epsilon=named.epsilon,
            )
            for first in range(0, len(labels), size)
        ]
        return torch.cat(batches).numpy().transpose(0, 2, 3, 1).copy()


def measure(name, contenders, config, rounds):
    """Seconds of one attack, turn by turn."""
    named = attack_by_name(
        name,
        norm="linf",
        epsilon=config.attack.epsilon,
        step_size=config.evaluation.step_size,
        num_classes=10,
    )
    warm_up = contenders["ours"].attack(named)[1]
    turns = {who: [] for who in contenders}
    standing = {}
    for number in range(rounds):
        for who, contender in contenders.items():
            found, seconds = contender.attack(named)
            standing[who] = int(found.sum())
            turns[who].append(seconds)
            print(
                f"{name} round {number + 1}/{rounds} {who:10}"
                f"{sum(seconds.values()):8.1f} s, {standing[who]} stand",
                flush=True,
            )
    totals = {
        who: [sum(seconds.values()) for seconds in taken]
        for who, taken in turns.items()
    }
    pairs = zip(totals["reference"], totals["ours"], strict=True)
    return {
        "standing": standing,
        "seconds": {who: statistics.median(taken) for who, taken in totals.items()},
        "all_seconds": totals,
        "seconds_by_stage": turns["ours"][-1],
        "first_round_seconds": sum(warm_up.values()),
        "reference / ours": statistics.median(theirs / ours for theirs, ours in pairs),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--data", required=True, help="where CIFAR-10 lies")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="benchmarks/results/attack_speed.json")
    options = parser.parse_args()
    dataset = load_arrays("cifar10", options.data, validation_examples=0).test
    images = dataset.images[: options.examples].astype(np.float32) / np.float32(255)
    labels = dataset.labels[: options.examples]
    run = read_run(options.workdir)
    variables = run.trained_state("last").variables
    contenders = {
        who: kind(run, variables, images, labels, options.batch_size)
        for who, kind in {"ours": Ours, "reference": Theirs}.items()
    }
    results = {
        "network": run.config.model.name,
        "examples": options.examples,
        "batch_size": options.batch_size,
        "torch_threads": torch.get_num_threads(),
        "devices": [device.device_kind for device in jax.devices()],
    }
    for name in (f"pgd-{PGD_STEPS}", "autoattack"):
        results[name] = measure(name, contenders, run.config, options.rounds)
        print(f"{name}: reference / ours {results[name]['reference / ours']:.2f}")
    write_record(options.out, results, packages=("torch", "pyautoattack", "foolbox"))


if __name__ == "__main__":
    main()
