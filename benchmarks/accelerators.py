"""Compile training steps for a GPU or a TPU on a machine without one.

    python -m benchmarks.accelerators --target=h100 [--networks ...] [--devices 1 8]
        [--variants ...] --out=FILE

XLA compiles for a chip that is only described: an H100 with `'.[cuda]'` installed, a TPU
v5e with `'.[tpu]'`. Nothing runs, so that the only times are those of compilation. The
compiled program shows how many bytes an update moves to and from the chip's memory, each
loop body counted once, and how many the devices send to each other.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import itertools
import math
import multiprocessing
import os
import re
import time
from collections.abc import Callable
from unittest import mock

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks.contender import configured_run
from benchmarks.record import write_record
from benchmarks.scaling import program_memory
from benchmarks.step_changes import AS_IT_IS, one_vector_all_reduced
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.config import passes
from freeadv_jax.devices import parallel
from freeadv_jax.devices.parallel import REPLICATED, SPLIT
from freeadv_jax.errors import InputError
from freeadv_jax.models import relu
from freeadv_jax.runs.build import (
    configured_optimizer,
    configured_steps,
    initial_state_of,
    model_of,
)
from freeadv_jax.training.multistep import STATE_LAYOUT, minibatches_per_call

NETWORKS = ("preact-resnet-18", "wrn-32-10-madry", "resnet-50")
NARROW = "rectifiers' gradients chosen in bfloat16"
ONE_VECTOR = "gradients in one vector"

# NVIDIA's figures for the H100 SXM, in XLA's format for describing a GPU.
_H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  device_memory_size: 84929347584
  l2_cache_size: 52428800
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
_BYTES = {"pred": 1, "bf16": 2} | {
    f"{kind}{8 * bytes}": bytes for kind in "fsu" for bytes in (1, 2, 4, 8)
}
_INSTRUCTION = re.compile(r" +(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\((.*)$")
# Instructions that launch nothing.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
    *("while", "conditional", "call"),
}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction of a compiled program; `bytes` is the size of its result."""

    name: str
    bytes: int
    operation: str
    operands: tuple[str, ...]
    text: str


def computations(program: str) -> dict[str, dict[str, Instruction]]:
    """Return the instructions of a program for GPU by computation and name."""
    found = {}
    for line in program.splitlines():
        if opened := re.match(r"(?:ENTRY )?%(\S+) .*\{$", line):
            instructions = found[opened[1]] = {}
        elif match := _INSTRUCTION.match(line):
            name, shapes, operation, rest = match.groups()
            operands = tuple(re.findall(r"%([\w.-]+)", rest.partition(")")[0]))
            instructions[name] = Instruction(
                name, _size(shapes), operation, operands, rest
            )
    return found


def _size(shapes):
    """Return the bytes of all arrays in the text of a type."""
    return sum(
        _BYTES[dtype] * math.prod(int(side) for side in sides.split(",") if side)
        for dtype, sides in re.findall(r"(\w+)\[([\d,]*)\]", shapes)
    )


def traffic(program: str) -> dict:
    """Return kernels and bytes in the bodies of all loops, by kind of kernel."""
    found = computations(program)
    bodies = [
        found[body]
        for instructions in found.values()
        for each in instructions.values()
        for body in re.findall(r"body=%([\w.-]+)", each.text)
    ]
    kinds = {"convolutions": [], "other_kernels": [], "all_reduces": []}
    beside = 0
    for body in bodies:
        under_way = set()
        for each in body.values():
            if each.operation == "all-reduce-start":
                kinds["all_reduces"].append(each.bytes)
                under_way.add(each)
            elif each.operation == "all-reduce-done":
                under_way.remove(body[each.operands[0]])
            elif "__cudnn$conv" in each.text:
                kinds["convolutions"].append(_moved(each, body, found))
                beside += sum(start.bytes for start in under_way)
            elif each.operation not in _FREE:
                kinds["other_kernels"].append(_moved(each, body, found))
    read = {
        kind: {"count": len(each), "bytes": sum(each)} for kind, each in kinds.items()
    }
    # The mean number of convolutions that run while a byte travels between devices.
    sent = read["all_reduces"]["bytes"]
    read["all_reduces"]["convolutions_beside"] = beside / sent if sent else 0.0
    return read


def _moved(kernel, body, found):
    """Return the bytes that a kernel reads and writes, counting each array once."""
    called = re.search(r"calls=%([\w.-]+)", kernel.text)
    fused = found[called[1]] if called else {}
    parameters = {
        int(each.text.partition(")")[0]): each
        for each in fused.values()
        if each.operation == "parameter"
    }
    read = sum(
        _read(parameters[number], fused) if fused else body[name].bytes
        for number, name in enumerate(kernel.operands)
    )
    return read + kernel.bytes


def _read(parameter, fused):
    """Return the bytes of a parameter that are read: its slices if only they are used."""
    users = [each for each in fused.values() if parameter.name in each.operands]
    if all(each.operation in ("slice", "dynamic-slice") for each in users):
        return sum(each.bytes for each in users)
    return parameter.bytes


def _gpu(count):
    return topologies.get_topology_desc(
        "", platform="cuda", target_config=_H100, topology=f"1x1x{count}"
    )


def _tpu(count):
    # Otherwise libtpu asks the cloud for its machine, and locks chips that do not exist.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    return topologies.get_topology_desc("v5e:2x4", platform="tpu")


def _by_kind(compiled):
    return traffic(compiled.as_text())


def _by_xla(compiled):
    """Return the estimate of XLA's cost model; a fused program's text does not show the
    bytes.
    """
    return {"bytes": compiled.cost_analysis()["bytes accessed"]}


@dataclasses.dataclass(frozen=True)
class Target:
    """A chip: JAX's name for its platform, and the source of its compiler."""

    platform: str
    # The extra to install, and the packages whose versions the record names.
    extra: str
    packages: tuple[str, ...]
    # (number of chips) -> a topology of at least that many.
    describe: Callable
    # (compiled program) -> the figures for the record.
    read: Callable


TARGETS = {
    "h100": Target(
        "gpu", "cuda", ("jax-cuda12-pjrt", "nvidia-cudnn-cu12"), _gpu, _by_kind
    ),
    "v5e": Target("tpu", "tpu", ("libtpu",), _tpu, _by_xla),
}


def chips(target: str, number: int) -> list:
    """Return described chips; raise InputError if their compiler is not installed."""
    known = TARGETS[target]
    for package in known.packages:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as fault:
            raise InputError(
                f"no compiler for {target}: it comes with `pip install "
                f"'.[{known.extra}]'` ({package} is missing)"
            ) from fault
    # Undescribed work stays on this CPU. Asking for devices makes JAX find its plugins.
    jax.config.update("jax_platforms", "cpu")
    jax.devices()
    found = known.describe(number).devices
    if number > len(found):
        raise InputError(f"--devices={number}: {target} is described with {len(found)}")
    return found[:number]


@contextlib.contextmanager
def compiling_for(devices: list, platform: str):
    """Make JAX compile as if it had found these devices, which are only described."""
    mesh = Mesh(np.array(devices), (parallel.AXIS,))
    with (
        mock.patch.object(jax, "default_backend", lambda: platform),
        mock.patch.object(jax, "device_count", lambda: len(devices)),
        mock.patch.object(parallel, "_mesh", lambda: mesh),
    ):
        yield


def laid_out(layout, tree):
    """Return the shapes of arrays with their sharding.

    `layout` is a prefix of `tree` with REPLICATED and SPLIT.
    """

    def lies(axis, part):
        placed = parallel.sharding(axis)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), part
        )

    return jax.tree.map(lies, layout, tree, is_leaf=lambda axis: axis is REPLICATED)


def compiled_step(run, devices, platform):
    """Return the program that `train` would run on these devices."""
    size = run.config.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((size, *run.image_shape), np.uint8),
        "label": jax.ShapeDtypeStruct((size,), np.int32),
    }
    batches = (batch,) * minibatches_per_call(passes(run.config))
    arguments = jax.eval_shape(lambda: initial_state_of(run)), batches, np.int32(1)
    with compiling_for(devices, platform):
        parallel.check_batch_size(size)
        steps = configured_steps(
            run.config, model=model_of(run), tx=configured_optimizer(run.config)
        ).program
        layout = STATE_LAYOUT, SPLIT, REPLICATED
        return steps.lower(*laid_out(layout, arguments)).compile()


def _narrow():
    relu._at_least_float32 = lambda array: array


def _nothing():
    pass


# By variant, the change to the package that its process makes first.
VARIANTS = {AS_IT_IS: _nothing, NARROW: _narrow, ONE_VECTOR: one_vector_all_reduced}


def measure(variant, target, devices, network, how) -> dict:
    """Return the figures of one program; runs in its own process."""
    # A program for a chip that does not exist cannot be read from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    VARIANTS[variant]()
    run = configured_run(network, how["method"], dtype=how["dtype"])
    started = time.perf_counter()
    compiled = compiled_step(run, chips(target, devices), TARGETS[target].platform)
    return {
        "batch_size": run.config.batch_size,
        "compile_seconds": time.perf_counter() - started,
        "memory": program_memory(compiled)["total"],
        **TARGETS[target].read(compiled),
    }


def _all_moved(row):
    if "bytes" in row:
        return row["bytes"]
    return row["convolutions"]["bytes"] + row["other_kernels"]["bytes"]


def main(argv):
    parser = Parser("benchmarks.accelerators", __doc__)
    add = parser.add_argument
    add("--target", choices=TARGETS, required=True, help="the chip to compile for")
    add(
        "--networks",
        metavar="NAME",
        nargs="+",
        default=NETWORKS,
        help="networks to compile",
    )
    add(
        "--method",
        metavar="NAME",
        default="free-8",
        help="natural, free-<m> or <K>-pgd",
    )
    add(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="bfloat16",
        help="precision of the arithmetic",
    )
    add("--devices", nargs="+", type=count, default=(1, 8), help="numbers of chips")
    add(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        metavar="NAME",
        default=tuple(VARIANTS),
        help="changes to the step",
    )
    add("--out", metavar="FILE", required=True, help="the record to write")
    options = parser.parse_args(argv[1:])
    how = {"method": options.method, "dtype": options.dtype}
    rows = []
    for network, devices, variant in itertools.product(
        options.networks, options.devices, options.variants
    ):
        setting = {"network": network, "devices": devices, "variant": variant}
        processes = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=processes) as pool:
            asked = pool.submit(measure, variant, options.target, devices, network, how)
            rows.append(setting | asked.result())
        row = rows[-1]
        print(
            f"{network:18}{devices:3} x {options.target}  {variant:42}"
            f"{_all_moved(row) / 1e9:8.2f} GB an update, {row['memory'] / 1e9:.1f} GB "
            f"of memory, compiled in {row['compile_seconds']:.0f} s",
            flush=True,
        )
    packages = TARGETS[options.target].packages
    results = {"target": options.target, **how, "rows": rows}
    write_record(options.out, results, packages=packages)


if __name__ == "__main__":
    run_command(main)
