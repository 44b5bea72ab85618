"""Time the training step with and without each of its optimisations, in turns.

    python -m benchmarks.step_changes [--networks ...] [--images=NAME]
        [--batch_sizes ...] [--method=free-2] [--variants ...] [--rounds=5]

Every variant runs in its own process on a single batch. Each one undoes or adds one
optimisation; variants about the CPU's compiler are left out on other devices.
"""

import itertools
import os
import statistics

import flax.linen as nn
import jax
import numpy as np
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from benchmarks.contender import IMAGES, Worker, configured_run, on_one_batch
from benchmarks.record import write_record
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.devices import parallel
from freeadv_jax.models import batch_norm, conv, preact_resnet, resnet
from freeadv_jax.training import optim, state

TURN_SECONDS = 2.0
AS_IT_IS = "as it is"
GATHERED = "a lone device's gradients gathered"
POOLED = "Flax's max pooling"
KEPT = "memory kept from call to call"
NO_PRODUCTS = "images' gradients all by convolutions"
THREE_AXES = "1x1 kernels' gradients over three axes"
_BY_XLA = "convolutions' gradients as XLA derives them"


class _FlaxBatchNorm(nn.Module):
    epsilon: float
    axis_name: str | None
    initial_scale: float = 1.0

    @nn.compact
    def __call__(self, images, *, train):
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=self.epsilon,
            axis_name=self.axis_name,
            scale_init=nn.initializers.constant(self.initial_scale),
        )(images)


def _flax_batch_norm():
    batch_norm.BatchNorm = _FlaxBatchNorm


def _unary_ends():
    def backward(epsilon, axis_name, residuals, cotangents):
        images, mean, inverse, scale = residuals
        cotangent, _ = cotangents
        normal = (images - mean) * inverse
        sums = batch_norm._sums(cotangent * normal), batch_norm._sums(cotangent)
        along, across = batch_norm._means(sums, images, axis_name)
        product = (cotangent - across - normal * along) * (inverse * scale)
        return product, *sums

    batch_norm._normalised.defvjp(batch_norm._forward, backward)
    preact_resnet.relu = nn.relu


def _flax_max_pool():
    def max_pool(images, *, window, stride, padding):
        sides = (padding, padding)
        return nn.max_pool(
            images, (window, window), (stride, stride), padding=(sides, sides)
        )

    resnet.max_pool = max_pool


def _no_products():
    conv._images_gradient_by_product = conv._images_gradient_by_convolution


def _three_axes():
    def gradient(images, shape, stride, padding, cotangent):
        seen, pixels = images[:, ::stride, ::stride], (0, 1, 2)
        found = lax.dot_general(seen, cotangent, ((pixels, pixels), ((), ())))
        return found.reshape(shape)

    conv._pointwise_kernel_gradient = gradient


def _gradients_by_xla():
    conv._loop_safe_convolution = conv._plain_convolution


def _ynnpack():
    parallel.compiler_options = lambda **_: None


def _without_donation():
    pmap = parallel.pmap
    parallel.pmap = lambda *a, **options: pmap(*a, **options | {"donate": ()})


def one_vector_all_reduced():
    """Send gradients and statistics as one vector, even with a single device."""

    def mean_over_devices(tree, axis_name):
        vector, unravel = ravel_pytree(tree)
        return unravel(lax.pmean(vector, axis_name))

    state.mean_over_devices = mean_over_devices


def _one_vector():
    sgd = optim.sgd
    optim.sgd = lambda *arguments, **options: optax.flatten(sgd(*arguments, **options))


def _nothing():
    pass


# By variant, the change to the package that its process makes first.
ON_CPU = {
    "Flax's BatchNorm": _flax_batch_norm,
    "ReLU a maximum, BatchNorm's gradient a product": _unary_ends,
    POOLED: _flax_max_pool,
    NO_PRODUCTS: _no_products,
    THREE_AXES: _three_axes,
    _BY_XLA: _gradients_by_xla,
    "convolutions by YNNPACK": _ynnpack,
    "huge pages": _nothing,
    KEPT: _nothing,
}
VARIANTS = {
    AS_IT_IS: _nothing,
    "state not donated": _without_donation,
    GATHERED: one_vector_all_reduced,
    "optimizer on one vector": _one_vector,
    "bfloat16": _nothing,
    "rematerialisation": _nothing,
}
FIELDS = {
    "bfloat16": {"model.dtype": "bfloat16"},
    "rematerialisation": {"model.remat": True},
}
ENVIRONMENT = {
    "huge pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    KEPT: {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_TRIM_THRESHOLD_": str(2**34),
    },
}


def build(variant, network, images, method, batch_size, *, per_call=None):
    """Make a variant's contender; it runs in its own process, which it may change."""
    (VARIANTS | ON_CPU)[variant]()
    run = configured_run(network, method, images=images, batch_size=batch_size)
    run.config.update_from_flattened_dict(FIELDS.get(variant, {}))
    return on_one_batch(run, per_call=per_call)


def worker(variant, *arguments):
    """Return the process of a variant, with its own environment variables."""
    before = os.environ.copy()
    os.environ.update(ENVIRONMENT.get(variant, {}))
    try:
        return Worker(build, variant, *arguments)
    finally:
        os.environ.clear()
        os.environ.update(before)


def measure(variants, rounds, *how):
    """Return by variant the seconds of an update, the ratio to ours, and the memory.

    `how` are the arguments of `build` after the variant.
    """
    workers, calls = {}, {}
    try:
        for name in variants:
            workers[name] = worker(name, *how)
            calls[name] = workers[name].ask("calls_in", TURN_SECONDS)
        seconds = {name: [] for name in variants}
        for _ in range(rounds):
            for name, contender in workers.items():
                turn = contender.ask("take", calls[name])
                seconds[name].append(turn["seconds_per_update"])
        costs = {name: contender.ask("costs") for name, contender in workers.items()}
    finally:
        for contender in workers.values():
            contender.close()
    return {
        name: {
            "seconds_per_update": statistics.median(taken),
            "all_seconds_per_update": taken,
            "/ as it is": float(np.median(np.divide(taken, seconds[AS_IT_IS]))),
            **costs[name],
        }
        for name, taken in seconds.items()
    }


def main(argv):
    parser = Parser("benchmarks.step_changes", __doc__)
    parser.add_argument(
        "--networks",
        metavar="NAME",
        nargs="+",
        default=("wrn-10-1", "wrn-16-4"),
        help="networks to time",
    )
    parser.add_argument(
        "--images",
        choices=IMAGES,
        help="images to train on; default: the usual ones of each network",
    )
    parser.add_argument(
        "--batch_sizes",
        nargs="+",
        type=count,
        default=(32, 128),
        help="images in a batch",
    )
    parser.add_argument(
        "--method",
        metavar="NAME",
        default="free-2",
        help="natural, free-<m> or <K>-pgd",
    )
    on_cpu = jax.default_backend() == "cpu"
    known = [*VARIANTS, *(ON_CPU if on_cpu else ())]
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=known,
        metavar="NAME",
        help=f"variants beside {AS_IT_IS!r}; default: all",
    )
    parser.add_argument("--rounds", type=count, default=5, help="turns to take")
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/step_changes.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    variants = [
        each for each in known if each in (AS_IT_IS, *(options.variants or known))
    ]
    results = {}
    for network, size in itertools.product(options.networks, options.batch_sizes):
        images = f" on {options.images}" if options.images else ""
        name = f"{network}{images}, batches of {size}"
        # On anything larger an update takes minutes.
        small = (network, size) == ("wrn-10-1", 32)
        where = {_BY_XLA: small, POOLED: network.startswith("resnet")}
        tried = [each for each in variants if where.get(each, True)]
        how = network, options.images, options.method, size
        results[name] = measure(tried, options.rounds, *how)
        print(f"\n{name}, {options.method}")
        for variant, row in results[name].items():
            print(
                f"  {variant:48}{1000 * row['seconds_per_update']:9.1f} ms "
                f"{row['/ as it is']:6.2f}{row['peak_memory']['bytes'] / 1e6:8.0f} MB",
                flush=True,
            )
    write_record(options.out, results)


if __name__ == "__main__":
    run_command(main)
