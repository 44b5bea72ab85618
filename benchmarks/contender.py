"""A compiled training step of one method on one network, ready to be timed."""

import dataclasses
import itertools
import math
import multiprocessing
import pathlib
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.scaling import program_memory
from freeadv_jax import recipes
from freeadv_jax.config import base_config, passes, replays
from freeadv_jax.devices import onednn, parallel
from freeadv_jax.errors import InputError
from freeadv_jax.runs.build import (
    configured_optimizer,
    configured_steps,
    initial_state_of,
    model_of,
)
from freeadv_jax.runs.folder import Run
from freeadv_jax.runs.watch import Clock
from freeadv_jax.training.methods import METHODS
from freeadv_jax.training.multistep import STATE_LAYOUT, minibatches_per_call


@dataclasses.dataclass(frozen=True)
class Images:
    """A data set for a network: its recipe, image shape (h, w, c) and classes."""

    recipe: Callable
    shape: tuple[int, int, int]
    classes: int


IMAGES = {
    "imagenet": Images(recipes.imagenet, (224, 224, 3), 1000),
    "cifar10": Images(base_config, (32, 32, 3), 10),
    "mnist": Images(recipes.digits, (28, 28, 1), 10),
    "digits": Images(recipes.digits, (8, 8, 1), 10),
}


def usual_images(network: str) -> str:
    """Return imagenet for a ResNet, digits for the CNN of their recipe, else cifar10."""
    if network.startswith("resnet"):
        return "imagenet"
    return "digits" if network == recipes.digits().model.name else "cifar10"


def configured_run(
    network: str, method: str, *, images=None, dtype="float32", batch_size=None
):
    """Return a run of the network with the recipe of `images`, a name in IMAGES.

    `images` None means the network's usual ones, `batch_size` None the recipe's. Methods
    are free-<m>, <K>-pgd and the names of the other methods. The run has no folder.
    """
    images = images or usual_images(network)
    kind = IMAGES[images]
    config = kind.recipe()
    fields = {"data.name": images, "model.name": network, "model.dtype": dtype}
    config.update_from_flattened_dict(fields | _fields(method))
    config.batch_size = batch_size or config.batch_size
    return Run(pathlib.Path(), config, kind.classes, kind.shape)


def _fields(method):
    """Return the fields of the configuration that a method's name sets."""
    others = METHODS.keys() - {"free", "pgd"}
    if method in others:
        return {"method": method}
    if free := re.fullmatch(r"free-([1-9]\d*)", method):
        return {"method": "free", "attack.replays": int(free[1])}
    if pgd := re.fullmatch(r"([1-9]\d*)-pgd", method):
        steps = {"attack.steps": int(pgd[1]), "attack.step_size": 2 / 255}
        return {"method": "pgd", **steps}
    raise InputError(
        f"unknown method {method!r}; allowed: free-<m>, <K>-pgd, with m, K >= 1, "
        f"{', '.join(sorted(others))}"
    )


@dataclasses.dataclass
class Contender:
    """A compiled program and its batches.

    `call` maps an item of `batches` to metrics, numbers that the device may still be
    computing. One call makes `updates` updates.
    """

    call: Callable[[Any], dict]
    batches: Iterator
    updates: int
    compile_seconds: float
    # Returns the peak memory: {"bytes": ..., "of": ...}.
    peak_memory: Callable[[], dict]
    # Further entries of the record.
    remarks: dict = dataclasses.field(default_factory=dict)
    # Returns the text of a program that XLA compiled.
    program: Callable[[], str] | None = None

    def take(self, calls: int) -> dict:
        """Return the seconds of an update, and the share spent waiting for batches."""
        clock = Clock({})
        unread = {}
        with clock.spending("training"):
            for _ in range(calls):
                with clock.spending("waiting"):
                    batch = next(self.batches)
                metrics = self.call(batch)
                # `train` reads them at the same point. With more calls under way, JAX
                # would block the host at its next request to the device.
                _read(unread)
                unread = metrics
            _read(unread)
        seconds = clock.seconds["training"]
        return {
            "seconds_per_update": seconds / (calls * self.updates),
            "input_wait_fraction": clock.seconds["waiting"] / seconds,
        }

    def calls_in(self, seconds: float, *, updates: int = 1) -> int:
        """Return how many calls last `seconds` and make `updates` updates, at least.

        Two calls are made for it; they also warm up the program.
        """
        self.take(1)
        call = self.take(1)["seconds_per_update"] * self.updates
        return math.ceil(max(seconds / call, updates / self.updates))

    def costs(self) -> dict:
        """Return compile time, memory and the remarks."""
        return {
            "compile_seconds": self.compile_seconds,
            "peak_memory": self.peak_memory(),
            "process_memory": process_memory(),
            **self.remarks,
        }


def _read(metrics):
    for value in metrics.values():
        float(value)  # Waits until the device has finished the call.


def process_memory() -> dict:
    """Return the peak resident memory of this process, libraries and data included."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux starts that figure at the size of the parent process.
    status = pathlib.Path("/proc/self/status")
    if status.exists() and (own := re.search(r"VmHWM:\s+(\d+)", status.read_text())):
        kilobytes = int(own[1])
    return {"bytes": 1024 * kilobytes, "of": "process"}


def ours(run: Run, batches: Iterator, *, per_call: int | None = None) -> Contender:
    """Return the program that `train` runs. Tracing and lowering count as compilation.

    `per_call` is the number of minibatches in a call; None means as many as `train`
    takes.
    """
    state = parallel.place(initial_state_of(run), STATE_LAYOUT)
    per_call = per_call or minibatches_per_call(passes(run.config))
    groups = zip(*[batches] * per_call, strict=True)
    group = jax.block_until_ready(next(groups))
    convolutions = onednn.choose_again(run.convolutions)
    started = time.perf_counter()
    steps = configured_steps(
        run.config,
        model=model_of(run),
        tx=configured_optimizer(run.config),
        convolutions=convolutions,
    ).program
    compiled = steps.lower(state, group, np.int32(per_call)).compile()
    compile_seconds = time.perf_counter() - started

    def advance(group):
        nonlocal state
        state, metrics = compiled(state, group, np.int32(per_call))
        return {name: values[-1] for name, values in metrics.items()}

    def peak_memory():
        device = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in device:
            return {"bytes": device["peak_bytes_in_use"], "of": "device"}
        return {"bytes": program_memory(compiled)["total"], "of": "compiled program"}

    updates = per_call * replays(run.config)
    return Contender(
        advance,
        groups,
        updates,
        compile_seconds,
        peak_memory,
        remarks={"convolutions": convolutions},
        program=compiled.as_text,
    )


def on_one_batch(run: Run, *, per_call: int | None = None) -> Contender:
    """Return `ours` on a single batch of random pixels and labels."""
    rng, size = np.random.default_rng(0), run.config.batch_size
    batch = {
        "image": rng.integers(0, 256, (size, *run.image_shape), dtype=np.uint8),
        "label": rng.integers(0, run.num_classes, size, dtype=np.int32),
    }
    placed = parallel.place(batch, parallel.SPLIT)
    return ours(run, itertools.repeat(placed), per_call=per_call)


class Worker:
    """A contender in its own process, where `build(*arguments)` makes it.

    The process ends when this one ends, whatever the reason.
    """

    def __init__(self, build: Callable[..., Contender], *arguments):
        processes = multiprocessing.get_context("spawn")
        self._pipe, theirs = processes.Pipe()
        self._process = processes.Process(
            target=_serve, args=(theirs, build, arguments)
        )
        self._process.start()
        theirs.close()
        self._answer()

    def ask(self, method: str, *arguments, **options) -> Any:
        """Call a method of the contender and return its result."""
        self._pipe.send((method, arguments, options))
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join()

    def _answer(self):
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            sys.exit(
                f"error: a contender ended with status {self._process.exitcode}; "
                "its own message is above"
            )


def _serve(pipe, build, arguments):
    # Compilation is measured, so that no cache may shorten it.
    jax.config.update("jax_enable_compilation_cache", False)
    contender = build(*arguments)
    pipe.send("ready")
    while True:
        try:
            method, arguments, options = pipe.recv()
        except EOFError:
            return
        pipe.send(getattr(contender, method)(*arguments, **options))
