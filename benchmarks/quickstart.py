"""Time the README's quickstart, from its start to its table.

python -m benchmarks.quickstart [--rounds=3]
"""

import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.record import write_record
from freeadv_jax.command import Parser, count, run_command


def main(argv):
    parser = Parser("benchmarks.quickstart", __doc__)
    parser.add_argument("--rounds", type=count, default=3, help="repetitions")
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/quickstart.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    job = [sys.executable, "-m", "freeadv_jax.main", "--config=configs/digits_free8.py"]
    seconds = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            subprocess.run([*job, f"--workdir={folder}/run"], check=True)
            seconds.append(time.perf_counter() - started)
    print(f"median {statistics.median(seconds):.1f} s of {options.rounds}")
    write_record(options.out, {"median": statistics.median(seconds), "all": seconds})


if __name__ == "__main__":
    run_command(main)
