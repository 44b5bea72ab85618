"""Estimate the work of an update, and the bottleneck of each machine, on paper.

    python -m benchmarks.scaling [--out=FILE]
    python -m benchmarks.scaling --evaluation [--out=FILE]

The second estimates AutoAttack, standard and quick, from the passes in the record of
benchmarks.quick.

Counts come from our own networks, machines from their makers' publications. The memory is
the CPU backend's report on the compiled step, which is not run. The decoding of JPEGs is
the only measurement; it runs on this machine with TensorFlow (the extra tfds).
"""

import dataclasses
import importlib.resources
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from benchmarks.record import write_record
from freeadv_jax.attacks.audit import SHARE
from freeadv_jax.attacks.ensemble import cascade
from freeadv_jax.command import Parser, run_command
from freeadv_jax.config import base_config
from freeadv_jax.files import read_json
from freeadv_jax.runs.build import (
    configured_optimizer,
    configured_steps,
    initial_state_of,
    model_of,
)
from freeadv_jax.runs.folder import Run

BATCHES = (256, 512, 1024, 2048, 4096, 8192)
REPLAYS = (1, 2, 4, 8)
# (pixels a side, classes)
NETWORKS = {
    "resnet-50": (224, 1000),
    "resnet-101": (224, 1000),
    "resnet-152": (224, 1000),
    "wrn-32-10-madry": (32, 10),
}
_V5E = "https://cloud.google.com/tpu/docs/v5e"
_H100 = "https://www.nvidia.com/en-us/data-center/h100/"
_A3 = "https://cloud.google.com/compute/docs/gpus"


@dataclasses.dataclass(frozen=True)
class Machine:
    """A machine; rates are those of one chip in FLOP/s (bfloat16, dense) and bytes/s."""

    chips: int
    flop: float
    memory: float
    memory_bandwidth: float
    # One way, over the links of the chip that has the fewest.
    link_bandwidth: float
    # All hosts together.
    vcpus: int
    sources: tuple[str, ...]


MACHINES = {
    # 400 GB/s both ways over 4 links; the corners of a 2 x 4 mesh have 2 links.
    "v5e-8": Machine(8, 197e12, 16e9, 819e9, 100e9, 224, (_V5E,)),
    # A torus of 16 x 16: all 4 links.
    "v5e-256": Machine(256, 197e12, 16e9, 819e9, 200e9, 32 * 224, (_V5E,)),
    # 1,979 TFLOP/s are with sparsity; NVLink's 900 GB/s are both ways; the host is an
    # a3-highgpu-8g.
    "8 x H100": Machine(8, 989.5e12, 80e9, 3350e9, 450e9, 208, (_H100, _A3)),
}


# Images of a whole test set, and the share of them that survives AutoAttack in the tables
# of RobustBench: Engstrom et al. (2019) at 4/255, and TRADES (Zhang et al., 2019), whose
# network is a little deeper than this one.
EVALUATIONS = {"resnet-50": (50_000, 0.2922), "wrn-32-10-madry": (10_000, 0.5308)}
_QUICK = pathlib.Path(__file__).parent / "results" / "quick.json"


def configured_run(name, *, dtype="float32", batch=256, replays=4):
    """Return a run of a network by the default recipe, without a folder."""
    config = base_config()
    config.batch_size = batch
    config.model.name = name
    config.model.dtype = dtype
    config.attack.replays = replays
    size, classes = NETWORKS[name]
    return Run(pathlib.Path(), config, classes, (size, size, 3))


def count(name):
    """Return a network's FLOP and bytes in an image's forward pass in bfloat16.

    A multiplication and an addition are 2 FLOP. `traffic` is the size of the operands and
    results of convolutions and products, as if everything else were fused into them.
    """
    run = configured_run(name, dtype="bfloat16")
    state = jax.eval_shape(lambda: initial_state_of(run))
    products = forward_products(run)
    parameters, statistics = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (state.params, state.collections)
    )
    return {
        "pixels": run.image_shape[0],
        "parameters": parameters,
        "statistics": statistics,
        "all_reduced_bytes": 4 * (parameters + statistics),
        "batch_norm_bytes": 4 * 4 * statistics // 2,
        "forward_flop": forward_flop(run),
        "traffic": sum(
            _bytes(product.invars[0]) + _bytes(product.outvars[0])
            for product in products
        ),
        "delta_bytes": 4 * math.prod(run.image_shape),
    }


def forward_flop(run):
    """Return the FLOP of one image: its convolutions and matrix products alone."""
    return sum(_flop(product) for product in forward_products(run))


def forward_products(run):
    """Return the convolutions and matrix products of a forward pass in training."""
    state = jax.eval_shape(lambda: initial_state_of(run))
    image = jax.ShapeDtypeStruct((1, *run.image_shape), jnp.float32)
    # BatchNorm runs as in training, but has no axis to synchronise over.
    config = run.config.copy_and_resolve_references()
    config.model.sync_batch_norm = False
    model = model_of(dataclasses.replace(run, config=config))
    forward = jax.make_jaxpr(
        lambda variables, images: model.apply(
            variables, images, train=True, mutable=["batch_stats"]
        )
    )(state.variables, image)
    return list(_products(forward.jaxpr))


def _products(jaxpr):
    """Return the convolutions and matrix products of a program and of the programs it
    calls.
    """
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            yield equation
        for called in core.jaxprs_in_params(equation.params):
            yield from _products(called)


def _flop(product):
    kernel = product.invars[1].aval.shape  # HWIO, or in-by-out
    return 2 * math.prod(product.outvars[0].aval.shape) * math.prod(kernel[:-1])


def _bytes(variable):
    return variable.aval.size * variable.aval.dtype.itemsize


def update(machine, cost, batch):
    """Return the seconds of an update at peak rates: of the chips, and of the all-reduce.

    The backward pass computes and moves twice as much as the forward pass, in natural
    training and in Free-m. It is followed by 5 passes of 4 bytes over the parameters: the
    averaged gradients (1), the momentum (2), the weights (2). A ring sends each byte
    2 (n - 1) / n times over the links of every chip, after the backward pass and not
    beside it.
    """
    images = batch / machine.chips
    arithmetic = 3 * images * cost["forward_flop"] / machine.flop
    moved = 3 * images * cost["traffic"] + 5 * 4 * cost["parameters"]
    memory = moved / machine.memory_bandwidth
    ring = 2 * (machine.chips - 1) / machine.chips
    reducing = ring * cost["all_reduced_bytes"] / machine.link_bandwidth
    seconds = max(arithmetic, memory) + reducing
    return {
        "images_per_chip": images,
        "arithmetic_seconds": arithmetic,
        "memory_seconds": memory,
        "all_reduce_seconds": reducing,
        "seconds": seconds,
        "images_per_second": batch / seconds,
    }


def even_images(machine, cost):
    """Return the images on a chip whose computation takes as long as the all-reduce."""
    reducing = update(machine, cost, machine.chips)["all_reduce_seconds"]
    image = 3 * max(
        cost["forward_flop"] / machine.flop, cost["traffic"] / machine.memory_bandwidth
    )
    return reducing / image


def survivor_passes(version, measured):
    """Return the gradients and the forward passes alone of an image that survives.

    Only the steps of targeted APGD differ from image to image, in version 'quick':
    `measured` passes tell how many it made.
    """
    attacks = cascade(version, norm="linf", epsilon=4 / 255, num_classes=10)
    targets = attacks["apgd-t"].attempts
    forward = 1 + targets + attacks["square"].steps + 1
    if version == "standard":
        fab = attacks["fab-t"]
        forward += fab.attempts * (1 + fab.steps)
    return measured - forward / 3, forward


def evaluation(machine, cost, images, survivors, row):
    """Return passes, seconds and bytes of AutoAttack on a whole set at peak rates.

    A gradient takes two forward passes: nothing is computed for the weights. `survivors`
    is a share, and `row` a version's in the record of benchmarks.quick, whose broken
    images take gradients alone. `row` may have an `audit`: the part of the survivors that
    also takes the passes of another row. Devices exchange nothing but the outcomes.
    """
    share, audited = row.get("audit", (0.0, row))
    work = 0.0
    for part, version in ((1.0, row), (share, audited)):
        gradients, forward = survivor_passes(
            version["version"], version["passes_of_a_survivor"]
        )
        work += survivors * part * (2 * gradients + forward)
    work += (1 - survivors) * 2 * row["passes_of_a_broken_image"]
    each = images / machine.chips * work
    moved = each * cost["traffic"]
    passes = survivors * (
        row["passes_of_a_survivor"] + share * audited["passes_of_a_survivor"]
    )
    passes += (1 - survivors) * row["passes_of_a_broken_image"]
    return {
        "passes_of_an_image": passes,
        "seconds": max(
            each * cost["forward_flop"] / machine.flop, moved / machine.memory_bandwidth
        ),
        "bytes": moved * machine.chips,
    }


def evaluations(costs, measured):
    """Return {machine: {network: {version: its estimate}}}; `measured` is a row of quick."""
    images, rows = measured["images"], {}
    for version in ("standard", "quick"):
        found = measured[version]
        survivor = found["passes_of_a_survivor"] * found["robust"]
        broken = found["passes_of_an_image"] * images - survivor
        rows[version] = {
            "version": version,
            "passes_of_a_survivor": found["passes_of_a_survivor"],
            "passes_of_a_broken_image": broken / max(1, images - found["robust"]),
        }
    # The untargeted APGD, a fortieth of the passes, is not repeated in an audit.
    rows["quick"]["audit"] = SHARE, rows["standard"]
    return {
        name: {
            network: {
                version: evaluation(machine, costs[network], *EVALUATIONS[network], row)
                for version, row in rows.items()
            }
            for network in EVALUATIONS
        }
        for name, machine in MACHINES.items()
    }


def inputs(machine, cost, decoded_per_second):
    """Return by m of Free-m the vCPUs that decode for the chips at their peak rate.

    `share_fed` is the share of that rate that idle hosts can feed; 1 or more means all of
    it.
    """
    fastest = update(machine, cost, max(BATCHES))["images_per_second"]
    busy = {m: fastest / m / decoded_per_second for m in REPLAYS}
    return {
        "images_per_second": fastest,
        "vcpus_busy": busy,
        "share_fed": {m: machine.vcpus / busy[m] for m in REPLAYS},
    }


def decoding(seconds=20.0):
    """Return the images that one core decodes in a second of processor time.

    Random parts of two photographs of 640 x 427 pixels from scikit-learn are decoded and
    resized as in training; ImageNet's images are about as large.
    """
    import tensorflow as tf

    folder = importlib.resources.files("sklearn.datasets.images")
    photographs = [(folder / name).read_bytes() for name in ("china.jpg", "flower.jpg")]
    rng = np.random.default_rng(0)

    def decode(photograph):
        height, width, _ = tf.io.extract_jpeg_shape(photograph).numpy()
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        area = rng.uniform(0.08, 1) * height * width
        h = min(height, round(math.sqrt(area / ratio)))
        w = min(width, round(math.sqrt(area * ratio)))
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        image = tf.io.decode_and_crop_jpeg(photograph, [top, left, h, w], channels=3)
        return tf.cast(tf.image.resize(image, (224, 224)), tf.uint8)

    for photograph in photographs:
        decode(photograph)
    decoded, started = 0, time.process_time()
    while time.process_time() - started < seconds:
        for photograph in photographs:
            decode(photograph)
            decoded += 1
    return {
        "images_per_core_second": decoded / (time.process_time() - started),
        "images": decoded,
        "bytes": [len(photograph) for photograph in photographs],
    }


def memory(dtype):
    """Return the bytes of one step of ResNet-50 on one device, reported by XLA."""
    run = configured_run("resnet-50", dtype=dtype)
    batch = run.config.batch_size
    steps = configured_steps(
        run.config, model=model_of(run), tx=configured_optimizer(run.config)
    ).program
    state = jax.eval_shape(lambda: initial_state_of(run))
    images = jax.ShapeDtypeStruct((batch, *run.image_shape), jnp.uint8)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    minibatch = {"image": images, "label": labels}
    lowered = steps.lower(state, (minibatch,), np.int32(1))
    return {"batch": batch, "replays": 4, **program_memory(lowered.compile())}


def program_memory(compiled):
    """Return the bytes of a compiled step on each device, reported by XLA."""
    analysis = compiled.memory_analysis()
    sizes = {
        "arguments": analysis.argument_size_in_bytes,
        "temporary": analysis.temp_size_in_bytes,
        "results": analysis.output_size_in_bytes,
        "donated": analysis.alias_size_in_bytes,
    }
    return sizes | {"total": sum(sizes.values()) - 2 * sizes["donated"]}


def main(argv):
    parser = Parser("benchmarks.scaling", __doc__)
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the record to write; default: benchmarks/results/scaling.json, or "
        "scaling_evaluation.json beside it",
    )
    parser.add_argument(
        "--evaluation",
        action="store_true",
        help="estimate AutoAttack; default: training",
    )
    options = parser.parse_args(argv[1:])
    kind = "scaling_evaluation" if options.evaluation else "scaling"
    out = options.out or f"benchmarks/results/{kind}.json"
    costs = {name: count(name) for name in NETWORKS}
    if options.evaluation:
        measured = read_json(_QUICK)["results"]["rows"]["free-8"]
        write_record(out, evaluations(costs, measured))
        return
    decoded = decoding()
    results = paper(costs, decoded) | {
        "memory": {dtype: memory(dtype) for dtype in ("float32", "bfloat16")}
    }
    write_record(out, results, packages=("tensorflow-cpu",))


def paper(costs, decoded):
    """Return everything that follows from the counts and the rate of decoding."""
    rate = decoded["images_per_core_second"]
    return {
        "networks": costs,
        "decoding": decoded,
        "machines": {
            name: dataclasses.asdict(machine) for name, machine in MACHINES.items()
        },
        "updates": {
            name: {
                network: {
                    batch: update(machine, costs[network], batch) for batch in BATCHES
                }
                for network in ("resnet-50", "wrn-32-10-madry")
            }
            for name, machine in MACHINES.items()
        },
        "even_images": {
            name: {
                network: even_images(machine, costs[network])
                for network in ("resnet-50", "wrn-32-10-madry")
            }
            for name, machine in MACHINES.items()
        },
        "inputs": {
            name: inputs(machine, costs["resnet-50"], rate)
            for name, machine in MACHINES.items()
        },
    }


if __name__ == "__main__":
    run_command(main)
