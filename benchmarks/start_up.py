"""Time a start: the import, and compilation at the first and at the second start.

    python -m benchmarks.start_up --data=DIR [--rounds=3]

The second start is the same run in another folder beside the first, and finds the
compiled programs of the first. The seconds cover everything that a run compiles before it
trains (the initial state, the batches and the step) and the tracing, which no cache saves.
"""

import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.record import write_record
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.files import read_json

# Eight small batches: the steps themselves are not timed.
_BRIEF = ("updates=8", "batch_size=8", "evaluation.attacks=('natural',)")
_CIFAR10 = "configs/cifar10_free8.py"
STARTS = {
    "digits": ("configs/digits_free8.py", ()),
    "preact-resnet-18": (_CIFAR10, ("model.name=preact-resnet-18",)),
    "wrn-32-10-madry": (_CIFAR10, ()),
}


def compile_seconds(workdir, config, fields, data):
    """Return the compile seconds that the results of a short run record."""
    given = (*_BRIEF, "evaluation.examples=8", *fields)
    if config == _CIFAR10:
        given += (f"data.dir={data}", "data.validation_examples=0")
    subprocess.run(
        [
            *(sys.executable, "-m", "freeadv_jax.main"),
            *(f"--config={config}", f"--workdir={workdir}"),
            *(f"--config.{field}" for field in given),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return read_json(workdir / "results.json")["training"]["compile_seconds"]


def starts(config, fields, data, rounds):
    """Return compile seconds of first and second starts, and the ratio of medians."""
    seconds = {"first": [], "second": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for start, found in seconds.items():
                workdir = pathlib.Path(folder) / start
                found.append(compile_seconds(workdir, config, fields, data))
    medians = {start: statistics.median(found) for start, found in seconds.items()}
    return {
        "compile_seconds": medians,
        "all": seconds,
        "second / first": medians["second"] / medians["first"],
    }


def import_seconds(rounds):
    """Return the seconds of `import freeadv_jax` in a new interpreter."""
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import freeadv_jax"], check=True)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def main(argv):
    parser = Parser("benchmarks.start_up", __doc__)
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="the folder of CIFAR-10"
    )
    parser.add_argument("--rounds", type=count, default=3, help="repetitions")
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/start_up.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    results = {"import": import_seconds(options.rounds)}
    print(f"import {results['import']:.2f} s")
    for name, (config, fields) in STARTS.items():
        row = results[name] = starts(config, fields, options.data, options.rounds)
        first, second = row["compile_seconds"].values()
        print(f"{name:20}{first:6.2f} s, then {second:.2f} s", flush=True)
    write_record(options.out, results)


if __name__ == "__main__":
    run_command(main)
