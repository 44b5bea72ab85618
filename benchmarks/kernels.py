"""Compare whole updates and attack steps with XLA's and oneDNN's convolutions, on a CPU.

    python -m benchmarks.kernels [--networks NAME ...] [--batch_sizes 32 128]
        [--dtypes float32 bfloat16] [--method=free-8] [--rounds=3] [--out=FILE]

`--method=attack` measures what a step of an attack takes: the forward pass, and the
gradient of the loss in the images. Both programs are in one process and take turns. The record holds seconds of wall time,
and seconds of processor time over all cores, which other work on the machine disturbs
less. `taskset -c 0 python -m ...` measures one core.
"""

import dataclasses
import itertools
import os
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contender import (
    Contender,
    configured_run,
    on_one_batch,
    process_memory,
)
from benchmarks.record import write_record
from freeadv_jax.attacks.attack import value_and_gradient
from freeadv_jax.attacks.kernels import traced_with
from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.devices import onednn, parallel
from freeadv_jax.errors import InputError
from freeadv_jax.models.interface import logits_functions
from freeadv_jax.runs.build import initial_state_of, model_of

SIDES = (onednn.XLA, onednn.ONEDNN)
ATTACK = "attack"


def attack_pass(run):
    """Return the contender that computes the gradient in the images of one batch."""
    rng, size = np.random.default_rng(0), run.config.batch_size
    images = rng.random((size, *run.image_shape), np.float32)
    labels = jnp.asarray(rng.integers(0, run.num_classes, size, dtype=np.int32))
    logits_fn = traced_with(
        run.convolutions,
        logits_functions(model_of(run))(initial_state_of(run).variables),
    )

    def gradient(logits_fn, images):
        def objective(images):
            logits = logits_fn(images).astype(jnp.float32)
            return cross_entropy(logits, labels), logits

        losses, _, slope = value_and_gradient(objective, images)
        return losses.sum(), slope

    started = time.perf_counter()
    options = parallel.compiler_options()
    compiled = (
        jax.jit(gradient, compiler_options=options).lower(logits_fn, images).compile()
    )
    compile_seconds = time.perf_counter() - started

    def call(images):
        return {"loss": jax.block_until_ready(compiled(logits_fn, images))[0]}

    batches = itertools.repeat(jnp.asarray(images))
    return Contender(call, batches, 1, compile_seconds, process_memory)


def measure(network, dtype, batch_size, method, rounds):
    """Return, for each of SIDES, the seconds of an update and its compilation.

    With ATTACK for the `method` a step of an attack takes the place of the update.
    """
    of_attack = method == ATTACK
    how = {"dtype": dtype, "batch_size": batch_size}
    run = configured_run(network, "natural" if of_attack else method, **how)
    build = attack_pass if of_attack else partial(on_one_batch, per_call=1)
    contenders = {
        name: build(dataclasses.replace(run, convolutions=name)) for name in SIDES
    }
    taken = {name: {"wall": [], "processor": []} for name in SIDES}
    for contender in contenders.values():
        contender.take(1)
    for _ in range(rounds):
        for name, contender in contenders.items():
            begun = time.process_time()
            taken[name]["wall"].append(contender.take(1)["seconds_per_update"])
            spent = (time.process_time() - begun) / contender.updates
            taken[name]["processor"].append(spent)
    return {
        "seconds_per_update": {
            name: {kind: statistics.median(times) for kind, times in kinds.items()}
            for name, kinds in taken.items()
        },
        "all_seconds_per_update": taken,
        "xla / onednn": {
            kind: statistics.median(
                xla / ours
                for xla, ours in zip(
                    *(taken[name][kind] for name in SIDES), strict=True
                )
            )
            for kind in ("wall", "processor")
        },
        "compile_seconds": {
            name: contender.compile_seconds for name, contender in contenders.items()
        },
    }


def main(argv):
    parser = Parser("benchmarks.kernels", __doc__)
    parser.add_argument(
        "--networks",
        metavar="NAME",
        nargs="+",
        default=("preact-resnet-18",),
        help="networks to train",
    )
    parser.add_argument(
        "--batch_sizes", nargs="+", type=count, default=(32, 128), help="batch sizes"
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=("float32", "bfloat16"),
        metavar="NAME",
        default=("float32", "bfloat16"),
        help="number types of the computation",
    )
    parser.add_argument(
        "--method",
        metavar="NAME",
        default="free-8",
        help="the training method, or attack",
    )
    parser.add_argument("--rounds", type=count, default=3, help="turns to take")
    parser.add_argument(
        "--note",
        metavar="TEXT",
        help="a remark on the machine, for the record; default: none",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/kernels.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    if reason := onednn.unavailable():
        raise InputError(f"oneDNN's convolutions are unavailable: {reason}")
    jax.config.update("jax_enable_compilation_cache", False)
    results = {
        "method": options.method,
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "note": options.note,
        "rows": {},
    }
    for network, size, dtype in itertools.product(
        options.networks, options.batch_sizes, options.dtypes
    ):
        name = f"{network}, {dtype}, {size}"
        row = measure(network, dtype, size, options.method, options.rounds)
        results["rows"][name] = row
        print(
            f"{name:36}",
            *(
                f"{kind}: "
                + " / ".join(
                    f"{1000 * row['seconds_per_update'][side][kind]:.0f}"
                    for side in SIDES
                )
                + f" ms = {ratio:.2f}  "
                for kind, ratio in row["xla / onednn"].items()
            ),
            flush=True,
        )
    results["load_after"] = os.getloadavg()[0]
    write_record(options.out, results)


if __name__ == "__main__":
    run_command(main)
