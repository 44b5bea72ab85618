"""Measure an update's time on a CPU by kind of operation, with XLA's profiler.

    python -m benchmarks.profile [--networks ...] [--method=free-8] [--batch_size=32]
        [--out=FILE]

The profiler records begin and end of each operation of the compiled program. Operations
overlap on several cores: a kind's share is the time in which an operation of that kind
runs and none of the kinds above it in the table. In the remaining time nothing runs.
"""

import pathlib
import re
import tempfile

import jax
import numpy as np

from benchmarks.contender import configured_run, on_one_batch
from benchmarks.record import write_record
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.errors import InputError

NETWORKS = ("preact-resnet-18", "wrn-16-4", "wrn-10-1", "small-cnn-bn")
# Both gradients of a layer are one kind: XLA computes them at the same time.
KINDS = (FORWARD, GRADIENTS, PRODUCTS, TRANSPOSES, SUMS, OTHERS) = (
    "convolutions, forward",
    "convolutions, gradients",
    "matrix products",
    "transposes and copies",
    "sums",
    "other arithmetic",
)
NOTHING = "nothing"
_END = "end: "
_INSTRUCTION = re.compile(r"^ *(?:ROOT )?%(\S+) = \S+ ([\w-]+)\((.*)$", re.MULTILINE)


def kinds(program: str) -> dict[str, str]:
    """Return the kind of each operation from the text of a compiled program."""
    return {
        name: _kind(name, operation, rest)
        for name, operation, rest in _INSTRUCTION.findall(program)
        if operation not in ("while", "call", "conditional")
    }


def _kind(name, operation, rest):
    if operation == "convolution":
        return GRADIENTS if "transpose(jvp" in rest else FORWARD
    if operation == "dot":
        return PRODUCTS
    if re.match(r"transpose|copy", name):
        return TRANSPOSES
    return SUMS if "reduce" in name else OTHERS


def shares(spans, length) -> dict[str, float]:
    """Return the share of `length` in which each kind runs and none above it does.

    `spans` are (kind, begin, end).
    """
    times = np.unique([time for span in spans for time in span[1:]])
    taken = np.zeros(len(times) - 1, bool)
    found = {}
    for kind in KINDS:
        running = np.zeros(len(times), int)
        for _, begin, end in (span for span in spans if span[0] == kind):
            running[np.searchsorted(times, begin)] += 1
            running[np.searchsorted(times, end)] -= 1
        new = (running.cumsum()[:-1] > 0) & ~taken
        found[kind] = float(np.diff(times)[new].sum() / length)
        taken |= new
    return found | {NOTHING: 1 - sum(found.values())}


def spans_of(events, kind_of: dict[str, str]):
    """Return (kind, begin, end) of each operation that ran, in nanoseconds.

    XLA marks the end of an operation, perhaps in another thread, with the number of its
    begin. The profiler loses some of these marks; such an operation ends where its own
    thread released it.
    """
    begun, ends = [], {}
    for event in events:
        name = event.name.removeprefix(_END)
        if name not in kind_of:
            continue
        numbers, end = dict(event.stats), event.start_ns + event.duration_ns
        if event.name.startswith(_END):
            ends[numbers["_c"]] = end
        else:
            begun.append((kind_of[name], event.start_ns, end, numbers["_p"]))
    return [(kind, begin, ends.get(number, end)) for kind, begin, end, number in begun]


def measure(network, method, batch_size):
    """Return an update's time without the profiler, and its shares by kind."""
    run = configured_run(network, method, batch_size=batch_size)
    contender = on_one_batch(run)
    contender.take(1)
    seconds = contender.take(2)["seconds_per_update"]
    options = jax.profiler.ProfileOptions()
    options.host_tracer_level, options.python_tracer_level = 3, 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            contender.take(1)
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(file))
    events = (
        each for plane in trace.planes for line in plane.lines for each in line.events
    )
    spans = spans_of(events, kinds(contender.program()))
    begin, end = min(span[1] for span in spans), max(span[2] for span in spans)
    return {"seconds_per_update": seconds, "shares": shares(spans, end - begin)}


def main(argv):
    parser = Parser("benchmarks.profile", __doc__)
    parser.add_argument(
        "--networks",
        metavar="NAME",
        nargs="+",
        default=NETWORKS,
        help="networks to profile",
    )
    parser.add_argument(
        "--method",
        metavar="NAME",
        default="free-8",
        help="natural, free-<m> or <K>-pgd",
    )
    parser.add_argument(
        "--batch_size", type=count, default=32, help="images in a batch"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/profile.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        raise InputError("the profile is read for one CPU device; see JAX_PLATFORMS")
    results = {}
    for network in options.networks:
        row = measure(network, options.method, options.batch_size)
        results[network] = row
        print(f"\n{network}: {1000 * row['seconds_per_update']:.1f} ms an update")
        for kind, share in row["shares"].items():
            print(f"  {kind:36}{share:7.1%}", flush=True)
    record = {"method": options.method, "batch": options.batch_size}
    write_record(options.out, record | {"networks": results})


if __name__ == "__main__":
    run_command(main)
