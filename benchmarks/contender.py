"""One training method on one network, ready to step, in turns with others."""

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
from freeadv_jax.devices import parallel
from freeadv_jax.errors import InputError
from freeadv_jax.runs.build import configured_steps
from freeadv_jax.runs.folder import Run
from freeadv_jax.runs.watch import Clock
from freeadv_jax.training.multistep import STATE_LAYOUT, minibatches_per_call


@dataclasses.dataclass(frozen=True)
class Images:
    """What a network is trained on: its recipe, [h, w, c] and the number of classes."""

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
    """ImageNet's for a ResNet, digits for the CNN of their recipe, else CIFAR-10's."""
    if network.startswith("resnet"):
        return "imagenet"
    return "digits" if network == recipes.digits().model.name else "cifar10"


def configured_run(
    network: str, method: str, *, images=None, dtype="float32", batch_size=None
):
    """The network by the recipe of `images`, a name in IMAGES, its usual ones if None.

    Methods are natural, free-<m> and <K>-pgd. The batch is the recipe's where None.
    """
    images = images or usual_images(network)
    kind = IMAGES[images]
    config = kind.recipe()
    fields = {"data.name": images, "model.name": network, "model.dtype": dtype}
    config.update_from_flattened_dict(fields | _fields(method))
    config.batch_size = batch_size or config.batch_size
    return Run(pathlib.Path(), config, kind.classes, kind.shape)


def _fields(method):
    if method == "natural":
        return {"method": "natural"}
    if free := re.fullmatch(r"free-([1-9]\d*)", method):
        return {"method": "free", "attack.replays": int(free[1])}
    if pgd := re.fullmatch(r"([1-9]\d*)-pgd", method):
        steps = {"attack.steps": int(pgd[1]), "attack.step_size": 2 / 255}
        return {"method": "pgd", **steps}
    raise InputError(
        f"unknown method {method!r}; allowed: natural, free-<m>, <K>-pgd with m, K >= 1"
    )


@dataclasses.dataclass
class Contender:
    """A program that was compiled, and its batches.

    `call` takes what `batches` gives to metrics, numbers that may still be on their way
    from the device; one call is so many `updates`.
    """

    call: Callable[[Any], dict]
    batches: Iterator
    updates: int
    compile_seconds: float
    # The most memory it has taken: {"bytes": ..., "of": ...}.
    peak_memory: Callable[[], dict]
    # Whatever else the record is to say of it.
    remarks: dict = dataclasses.field(default_factory=dict)
    # The text of the compiled program, for XLA's.
    program: Callable[[], str] | None = None

    def take(self, calls: int) -> dict:
        """Seconds an update, and the share of them spent waiting for batches."""
        clock = Clock({})
        unread = {}
        with clock.spending("training"):
            for _ in range(calls):
                with clock.spending("waiting"):
                    batch = next(self.batches)
                metrics = self.call(batch)
                # As `train` reads them. With more calls on their way JAX would let the
                # host wait for the device wherever it next asks something of it.
                _read(unread)
                unread = metrics
            _read(unread)
        seconds = clock.seconds["training"]
        return {
            "seconds_per_update": seconds / (calls * self.updates),
            "input_wait_fraction": clock.seconds["waiting"] / seconds,
        }

    def calls_in(self, seconds: float, *, updates: int = 1) -> int:
        """Whole calls that last so long and make so many updates, at the least.

        Two are made, to warm up.
        """
        self.take(1)
        call = self.take(1)["seconds_per_update"] * self.updates
        return math.ceil(max(seconds / call, updates / self.updates))

    def costs(self) -> dict:
        """What it took besides time."""
        return {
            "compile_seconds": self.compile_seconds,
            "peak_memory": self.peak_memory(),
            "process_memory": process_memory(),
            **self.remarks,
        }


def _read(metrics):
    for value in metrics.values():
        float(value)  # Once it is there the device has done the call.


def process_memory() -> dict:
    """The most this process had resident, libraries, data and all."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux has that begin with what the process had that started this one.
    status = pathlib.Path("/proc/self/status")
    if status.exists() and (own := re.search(r"VmHWM:\s+(\d+)", status.read_text())):
        kilobytes = int(own[1])
    return {"bytes": 1024 * kilobytes, "of": "process"}


def ours(run: Run, batches: Iterator, *, per_call: int | None = None) -> Contender:
    """The program that `train` runs. Tracing and lowering count as compilation.

    `per_call` minibatches a call, where None as many as `train` takes.
    """
    state = parallel.place(run.initial_state(), STATE_LAYOUT)
    per_call = per_call or minibatches_per_call(passes(run.config))
    groups = zip(*[batches] * per_call, strict=True)
    group = jax.block_until_ready(next(groups))
    started = time.perf_counter()
    steps = configured_steps(run.config, model=run.model(), tx=run.optimizer()).program
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
        program=compiled.as_text,
    )


def on_one_batch(run: Run, *, per_call: int | None = None) -> Contender:
    """`ours` on one batch of random pixels and labels, drawn once."""
    rng, size = np.random.default_rng(0), run.config.batch_size
    batch = {
        "image": rng.integers(0, 256, (size, *run.image_shape), dtype=np.uint8),
        "label": rng.integers(0, run.num_classes, size, dtype=np.int32),
    }
    placed = parallel.place(batch, parallel.SPLIT)
    return ours(run, itertools.repeat(placed), per_call=per_call)


class Worker:
    """A contender in a process of its own, made there by `build(*arguments)`.

    The process ends with this one, however this one ends.
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
        """What the contender's `method` returns."""
        self._pipe.send((method, arguments, options))
        return self._answer()

    def close(self) -> None:
        self._pipe.close()
        self._process.join()

    def _answer(self):
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            sys.exit(
                f"error: a contender ended with status {self._process.exitcode}; "
                "what it said stands above"
            )


def _serve(pipe, build, arguments):
    # What it takes to compile is measured.
    jax.config.update("jax_enable_compilation_cache", False)
    contender = build(*arguments)
    pipe.send("ready")
    while True:
        try:
            method, arguments, options = pipe.recv()
        except EOFError:
            return
        pipe.send(getattr(contender, method)(*arguments, **options))
