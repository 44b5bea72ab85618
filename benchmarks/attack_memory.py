"""Time attacks on a CPU with memory kept from call to call, and without.

    python -m benchmarks.attack_memory --workdir=RUN [--data=DIR --examples=256]
        [--rounds=3] [--out=FILE]

`python -m freeadv_jax.evaluate` keeps the memory (freeadv_jax/devices/memory.py). The two
sides are processes of their own and take turns. The record holds the seconds of each turn,
by the clock, and the pages that the system handed out.
"""

import pathlib
import resource
import statistics
import time

import jax

import freeadv_jax as fa
from benchmarks.contender import Worker
from benchmarks.record import write_record
from freeadv_jax.attacks import apgd, fab, square
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.devices.memory import keep_memory
from freeadv_jax.errors import InputError
from freeadv_jax.pixels import unit_range
from freeadv_jax.runs.folder import read_run

# A part of AutoAttack's stages, about as many passes each.
ATTACKS = {
    "apgd-t": (apgd, {"loss": "dlr", "goal": "multi-target", "targets": 3}),
    "fab-t": (fab, {"steps": 40}),
    "square": (square, {"queries": 400}),
}
SIDES = ("returned", "kept")


class Side:
    """The attacks on a trained model, in a process that keeps memory or returns it."""

    def __init__(self, side, workdir, data, examples):
        if side == "kept" and not keep_memory():
            raise InputError("the C library is not glibc: no memory can be kept")
        run = read_run(workdir)
        folder = data or run.config.data.dir
        test = load_arrays(run.config.data.name, folder, validation_examples=0).test
        self._images = unit_range(test.images[:examples])
        self._labels = test.labels[:examples]
        self._model = fa.load(workdir)
        threat = run.config.attack
        self._threat = {"norm": threat.norm, "epsilon": float(threat.epsilon)}

    def attack(self, name):
        """Return {seconds, pages} of an attack on all images."""
        function, options = ATTACKS[name]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        begun = time.perf_counter()
        outcome = function(
            self._model, self._images, self._labels, **self._threat, **options
        )
        jax.block_until_ready(outcome.images)
        seconds = time.perf_counter() - begun
        pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        return {"seconds": seconds, "pages": pages}


def measure(workdir, data, examples, rounds):
    """Return {attack: {side: its turns}, with the median of the ratios of the seconds}."""
    workers = {side: Worker(Side, side, workdir, data, examples) for side in SIDES}
    found = {}
    for name in ATTACKS:
        turns = {side: [] for side in SIDES}
        for turn in range(rounds + 1):
            for side, worker in workers.items():
                taken = worker.ask("attack", name)
                if turn:  # The first one compiles.
                    turns[side].append(taken)
        ratios = [
            returned["seconds"] / kept["seconds"]
            for returned, kept in zip(*turns.values(), strict=True)
        ]
        found[name] = turns | {"returned / kept": statistics.median(ratios)}
        print(
            f"{name:8} returned / kept {found[name]['returned / kept']:.2f}", flush=True
        )
    for worker in workers.values():
        worker.close()
    return found


def main(argv):
    parser = Parser("benchmarks.attack_memory", __doc__)
    add = parser.add_argument
    add(
        "--workdir",
        metavar="RUN",
        type=pathlib.Path,
        required=True,
        help="the run to attack",
    )
    add(
        "--data",
        metavar="DIR",
        help="the folder of the data set; default: that of the training",
    )
    add("--examples", type=count, default=256, help="test images to attack")
    add("--rounds", type=count, default=3, help="turns to take")
    add(
        "--out",
        metavar="FILE",
        default="benchmarks/results/attack_memory.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    how = options.workdir, options.data, options.examples, options.rounds
    found = measure(*how)
    network = read_run(options.workdir).config.model.name
    results = {"network": network, "examples": options.examples, "attacks": found}
    write_record(options.out, results)


if __name__ == "__main__":
    run_command(main)
