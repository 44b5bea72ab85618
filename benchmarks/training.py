"""Measure the cost of a training update, also against PyTorch.

    python -m benchmarks.training --data=DIR [--networks ...] [--images=NAME]
        [--methods ...] [--dtypes ...] [--batch_size=N] [--convolutions=auto]
        [--rounds=5] [--turn_seconds=2] [--peer [NAME ...]] [--runs=DIR] [--out=FILE]

Every contender runs in its own process: its peak memory is then its own, and JAX and
PyTorch need not share CUDA's libraries. (This costs no speed: on 2 CPU cores our step
took 53 ms in turns with PyTorch's, in one process as in two.) The contenders take turns
of whole calls for --turn_seconds, at least as many updates as ours makes in one call. The
first turn is not counted; the record holds the medians of the others.

Each network trains on its usual images, or on those of --images. CIFAR-10 and digits are
drawn and augmented on the device as in training. Our kernels are those that a training by
the recipe takes. Random pixels and classes take the place
of ImageNet and MNIST: benchmarks.input_rate measures the decoding of photographs. Results
of finished networks are kept under --runs, so that the same command continues after an
interruption; they are measured again with other settings, other code or on another
machine.

With --peer PyTorch takes turns too (`pip install '.[references]'`), as its users would
write it today and, in float32, in the style of the reference code: see
benchmarks/peers/torch_training.py.
"""

import dataclasses
import math
import os
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contender import IMAGES, Worker, configured_run, ours
from benchmarks.record import kept, measured_on, write_record
from benchmarks.scaling import forward_flop
from freeadv_jax.command import Parser, count, number, run_command
from freeadv_jax.config import passes, replays
from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.data.sampling import array_batches
from freeadv_jax.data.split import Split
from freeadv_jax.devices import onednn, parallel
from freeadv_jax.errors import InputError
from freeadv_jax.files import write_json
from freeadv_jax.models import DTYPES
from freeadv_jax.runs.build import configured_convolutions, model_of
from freeadv_jax.training.methods import METHODS
from freeadv_jax.training.multistep import minibatches_per_call

NETWORKS = ("wrn-32-10-madry", "preact-resnet-18", "resnet-50")
NETWORKS_ON_CPU = (*NETWORKS, "wrn-16-4", "wrn-10-1", "small-cnn-bn", "small-cnn")
MEASURED_METHODS = ("natural", "free-8", "7-pgd")
PEERS = ("pytorch", "reference-style")
PEER_METHODS = ("natural", "free", "pgd")
# Random images take the place of these data sets, this many batches.
GENERATED = ("imagenet", "mnist")
GENERATED_BATCHES = 4


def update_flop(config, forward):
    """Return the FLOP for each image of one update, from those of its forward pass.

    A backward pass computes two gradients, each for a forward pass's FLOP; an attack
    step computes only the gradient in the images. The first layer's input gradient, which
    natural training does without, is counted for every method.
    """
    return METHODS[config.method].forward_passes(config.attack) * forward


def utilisation(*, flop, seconds, rate):
    """Return the share of `rate` (FLOP/s) that computes `flop` in `seconds`."""
    return flop / seconds / rate


def product_rate(dtype):
    """Return FLOP/s of a matrix product on all devices: the best of 5 times 4 on one."""
    size = _product_size()
    square = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul, compiler_options=parallel.compiler_options())
    product(square, square).block_until_ready()
    best = math.inf
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(4):
            last = product(square, square)
        last.block_until_ready()
        best = min(best, (time.perf_counter() - started) / 4)
    return jax.device_count() * 2 * size**3 / best


def _product_size():
    return 2048 if jax.default_backend() == "cpu" else 4096


def build(who, data, setting, method):
    """Make the contender; it runs in its own process."""
    run = configured_setting(setting, method)
    split = training_images(run, data)
    if who in PEERS:
        from benchmarks.peers.torch_training import theirs

        return theirs(run, split, reference_style=who == "reference-style")
    batches = array_batches(
        split,
        batch_size=run.config.batch_size,
        seed=run.config.seed,
        pad=run.config.data.pad,
        flip=run.config.data.flip,
    )
    chosen = configured_convolutions(run.config, run.image_shape)
    return ours(dataclasses.replace(run, convolutions=chosen), batches(0))


def configured_setting(setting, method):
    """Return the run of a method with the settings of a measurement."""
    how = {"images": setting["images"], "dtype": setting["dtype"]}
    run = configured_run(setting["network"], method, batch_size=setting["batch"], **how)
    run.config.model.convolutions = setting["convolutions"]
    return run


def training_images(run, data):
    """Return the training images of a run, random ones for GENERATED data sets."""
    if run.config.data.name not in GENERATED:
        return load_arrays(run.config.data.name, data, validation_examples=0).train
    rng = np.random.default_rng(0)
    examples = GENERATED_BATCHES * run.config.batch_size
    images = rng.integers(0, 256, (examples, *run.image_shape), dtype=np.uint8)
    return Split(images, rng.integers(0, run.num_classes, examples, dtype=np.int32))


def measure(setting, data):
    """Return the rows of one network in one precision; all methods take turns."""
    network, dtype, batch = (setting[name] for name in ("network", "dtype", "batch"))
    if setting["images"] == "cifar10":
        load_arrays(
            "cifar10", data, validation_examples=0
        )  # Fails before any measurement.
    rates, workers, calls = [], {}, {}
    turns = {
        (method, who): [] for method in setting["methods"] for who in setting["who"]
    }
    try:
        for method, who in turns:
            print(f"{network} {dtype} {method} {who}: compiling", flush=True)
            worker = Worker(build, who, data, setting, method)
            workers[method, who] = worker
            config = configured_setting(setting, method).config
            calls[method, who] = worker.ask(
                "calls_in",
                setting["turn_seconds"],
                updates=minibatches_per_call(passes(config)) * replays(config),
            )
        for round_number in range(setting["rounds"]):
            rates.append(product_rate(dtype))
            for (method, who), worker in workers.items():
                turn = worker.ask("take", calls[method, who])
                turns[method, who].append(turn)
                print(
                    f"{network} {dtype} round {round_number + 1}/{setting['rounds']} "
                    f"{method:8} {who:16}{turn['seconds_per_update']:9.4f} s/update",
                    flush=True,
                )
        costs = {key: worker.ask("costs") for key, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()
    rate = max(*rates, product_rate(dtype))
    rows = {}
    for (method, who), taken in turns.items():
        run = configured_setting(setting, method)
        flop = update_flop(run.config, forward_flop(run))
        seconds = [turn["seconds_per_update"] for turn in taken]
        waits = [turn["input_wait_fraction"] for turn in taken]
        median = statistics.median(seconds)
        rows.setdefault(method, {})[who] = {
            "seconds_per_update": median,
            "all_seconds_per_update": seconds,
            "images_per_second": batch / median,
            "flop_per_image": flop,
            "utilisation": utilisation(flop=batch * flop, seconds=median, rate=rate),
            "input_wait_fraction": statistics.median(waits),
            "calls_per_turn": calls[method, who],
            **costs[method, who],
        }
    product = {"size": _product_size(), "flop_per_second": rate}
    return {"product": product, "methods": rows, "ratios": ratios(rows)}


def memory(row):
    """Return the peak memory of the device, or of the process where that is unknown."""
    on_device = row["peak_memory"]["of"] == "device"
    return row["peak_memory" if on_device else "process_memory"]["bytes"]


def compilation(row):
    """Return the seconds of compilation; 'eager' where torch.compile is not used."""
    if row.get("torch.compile", "").startswith("not used"):
        return "eager"
    return f"{row['compile_seconds']:.0f} s"


def ratios(rows):
    """Return by method the median over rounds of each peer's time divided by ours."""
    return {
        method: {
            f"{who} / ours": float(
                np.median(
                    np.divide(
                        row["all_seconds_per_update"],
                        sides["ours"]["all_seconds_per_update"],
                    )
                )
            )
            for who, row in sides.items()
            if who != "ours"
        }
        for method, sides in rows.items()
    }


def show(setting, result):
    """Print the table of one network in one precision."""
    product = result["product"]
    generated = ", generated at random" if setting["generated"] else ""
    print(
        f"\n{setting['network']}, {setting['dtype']}, batches of {setting['batch']} "
        f"({setting['images']}{generated}), on {setting['devices']}\n"
        f"a product of {product['size']} x {product['size']}: "
        f"{product['flop_per_second'] / 1e12:.3f} TFLOP/s\n"
        f"{'':26}{'s/update':>10}{'images/s':>10}{'of product':>12}{'waiting':>9}"
        f"{'compile':>9}{'peak memory':>13}{'/ ours':>8}"
    )
    for method, sides in result["methods"].items():
        for who, row in sides.items():
            ratio = result["ratios"][method].get(f"{who} / ours")
            print(
                f"{method:10}{who:16}{row['seconds_per_update']:10.4f}"
                f"{row['images_per_second']:10.1f}{row['utilisation']:12.1%}"
                f"{row['input_wait_fraction']:9.1%}{compilation(row):>9}"
                f"{memory(row) / 1e9:10.2f} GB" + (f"{ratio:8.2f}" if ratio else ""),
                flush=True,
            )


def settings(options):
    """Yield the settings of each measurement, by network and precision.

    Raise InputError for impossible settings before anything is measured.
    """
    # --peer without a name means all peers.
    peers = () if options.peer is None else options.peer or PEERS
    if peers and jax.device_count() > 1:
        raise InputError(f"--peer is for 1 device, and there are {jax.device_count()}")
    for network in options.networks:
        for dtype in options.dtypes:
            for method in options.methods:
                run = configured_run(
                    network,
                    method,
                    images=options.images,
                    dtype=dtype,
                    batch_size=options.batch_size,
                )
                model_of(run)
                if peers and run.config.method not in PEER_METHODS:
                    raise InputError(
                        f"--peer with --methods {method}: PyTorch's contenders know "
                        f"only {', '.join(PEER_METHODS)}"
                    )
            parallel.check_batch_size(run.config.batch_size)
            if run.config.data.name == "cifar10" and not options.data:
                raise InputError(f"{network} needs --data, the folder with CIFAR-10")
            # The reference code knows only float32.
            who = [x for x in peers if x == "pytorch" or dtype == "float32"]
            yield {
                "network": network,
                "dtype": dtype,
                "batch": run.config.batch_size,
                "images": run.config.data.name,
                "convolutions": options.convolutions,
                "generated": run.config.data.name in GENERATED,
                "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
                "methods": list(options.methods),
                "who": ["ours", *who],
                "rounds": options.rounds,
                "turn_seconds": options.turn_seconds,
            }


def main(argv):
    parser = Parser("benchmarks.training", __doc__)
    parser.add_argument(
        "--data",
        metavar="DIR",
        default="",
        help="the folder of CIFAR-10; default: not needed without its networks",
    )
    parser.add_argument(
        "--networks",
        metavar="NAME",
        nargs="+",
        help="networks; default: those of the README",
    )
    parser.add_argument(
        "--images",
        choices=IMAGES,
        help="images to train on; default: the usual ones of each network",
    )
    parser.add_argument(
        "--methods",
        metavar="NAME",
        nargs="+",
        default=MEASURED_METHODS,
        help="free-<m>, <K>-pgd or the name of another method",
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        metavar="NAME",
        choices=DTYPES,
        default=tuple(DTYPES),
        help="precisions of the arithmetic",
    )
    parser.add_argument(
        "--batch_size",
        type=count,
        help="images in a batch; default: those of the recipes",
    )
    parser.add_argument(
        "--convolutions",
        choices=onednn.CHOICES,
        metavar="NAME",
        default=onednn.AUTO,
        help="kernels of our convolutions on a CPU; auto is what the recipe takes",
    )
    parser.add_argument("--rounds", type=count, default=5, help="turns to take")
    parser.add_argument(
        "--turn_seconds", type=number, default=2.0, help="length of a turn"
    )
    parser.add_argument(
        "--peer",
        nargs="*",
        choices=PEERS,
        metavar="NAME",
        help="PyTorch's programs to compare with; without a name all; default: none",
    )
    parser.add_argument(
        "--runs",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/benchmark-training",
        help="folder for finished measurements",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/training.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    # This process shares the accelerator's memory with the contenders.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    on_cpu = jax.default_backend() == "cpu"
    options.networks = options.networks or (NETWORKS_ON_CPU if on_cpu else NETWORKS)
    options.runs.mkdir(parents=True, exist_ok=True)
    packages = ("torch",) if options.peer is not None else ()
    results = {}
    for setting in list(settings(options)):
        name = f"{setting['network']} {setting['dtype']}"
        file = options.runs / f"{name.replace(' ', '-')}.json"
        found = kept(file, {"setting": setting, "environment": measured_on(packages)})
        if "result" not in found:
            found["result"] = measure(setting, options.data)
            write_json(file, found)
        result = {"setting": setting, **found["result"]}
        show(setting, result)
        results[name] = result
    write_record(options.out, results, packages=packages)


if __name__ == "__main__":
    run_command(main)
