"""Compare whole updates with XLA's and with oneDNN's convolutions, on a CPU.

    python -m benchmarks.kernels [--networks NAME ...] [--batch_sizes 32 128]
        [--dtypes float32 bfloat16] [--method=free-8] [--rounds=3] [--out=FILE]

Both programs are in one process and take turns. The record holds seconds of wall time,
and seconds of processor time over all cores, which other work on the machine disturbs
less. `taskset -c 0 python -m ...` measures one core.
"""

import dataclasses
import itertools
import os
import statistics
import time

import jax

from benchmarks.contender import configured_run, on_one_batch
from benchmarks.record import write_record
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.devices import onednn
from freeadv_jax.errors import InputError

SIDES = (onednn.XLA, onednn.ONEDNN)


def measure(network, dtype, batch_size, method, rounds):
    """Return, for each of SIDES, the seconds of an update and its compilation."""
    run = configured_run(network, method, dtype=dtype, batch_size=batch_size)
    contenders = {
        name: on_one_batch(dataclasses.replace(run, convolutions=name), per_call=1)
        for name in SIDES
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
        "--method", metavar="NAME", default="free-8", help="the training method"
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
