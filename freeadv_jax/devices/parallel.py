"""Devices: the only module that counts them, and the only one that maps over them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from freeadv_jax.errors import InputError

AXIS = "devices"

# How an array lies on the devices, as pmap writes its axes: a whole copy on each device,
# or a part of the first axis on each.
REPLICATED, SPLIT = None, 0


def check_batch_size(batch_size: int) -> None:
    """Raise InputError unless the global batch divides evenly over the devices."""
    devices = jax.device_count()
    if batch_size % devices:
        raise InputError(
            f"a global batch of {batch_size} does not divide over {devices} devices: "
            f"batch_size must be a multiple of {devices}"
        )


def sharding(axis: int | None) -> NamedSharding:
    """Return the sharding of a REPLICATED or SPLIT array."""
    return NamedSharding(_mesh(), _spec(axis))


def rows(size: int) -> slice:
    """Return the part of a SPLIT axis of this size on the devices of this process."""
    index, count = jax.process_index(), jax.process_count()
    return slice(size * index // count, size * (index + 1) // count)


def place(tree, layout):
    """Put `tree` on the devices; `layout` is a prefix of it with REPLICATED and SPLIT.

    Every process passes the same arrays; only its own `rows` of a SPLIT array are read.
    """
    return _by_layout(lambda axis, x: _put(x, sharding(axis)), layout, tree)


def assemble(tree):
    """Return arrays split over the devices, made from the `rows` of each process."""
    split = sharding(SPLIT)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(split, x), tree
    )


def fetch(tree):
    """Copy `tree` to the host of every process, safe from a later donation."""
    return jax.tree.map(_whole, tree)


def pmap(function, *, inputs, outputs, donate=(), keep_unused=False, optimised=True):
    """Run `function` on every device, each with its part of the SPLIT arguments.

    `inputs` (a tuple, one entry an argument) and `outputs` are prefixes with REPLICATED
    and SPLIT. Outside, arrays keep their global shapes, whatever the number of devices and
    processes; inside, collectives run over AXIS. REPLICATED outputs must be equal on all
    devices. With `keep_unused` the compiled code names the arguments that it does not use,
    too. Without `optimised`, a CPU compiles several times faster and runs slower.

    This is `jax.shard_map` under `jax.jit`. `jax.pmap` sees only this process's devices
    there, and copies donated arrays elsewhere.
    """

    # Compilations and profiles show this name, whatever the function's.
    def whole(*arguments):
        return mapped(*arguments)

    mapped = jax.shard_map(
        function,
        mesh=_mesh(),
        in_specs=jax.tree.map(_spec, inputs, is_leaf=_is_none),
        out_specs=jax.tree.map(_spec, outputs, is_leaf=_is_none),
        # The caller answers for outputs that are equal on all devices.
        check_vma=False,
    )
    return jax.jit(
        whole,
        donate_argnums=donate,
        keep_unused=keep_unused,
        compiler_options=compiler_options(optimised=optimised),
    )


def compiler_options(*, optimised: bool = True) -> dict | None:
    """Return the compiler options of this backend, besides XLA's defaults.

    On GPU they exclude kernels that add in another order in each run.
    """
    if jax.default_backend() == "gpu":
        return {"xla_gpu_exclude_nondeterministic_ops": True}
    return _cpu_options(optimised) if jax.default_backend() == "cpu" else None


# YNNPACK's kernel gradients are 2 to 4 times slower from 64 channels up (jaxlib 0.10.2 to
# 0.12.0); this keeps convolutions away from it.
_AWAY_FROM_YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": ""}
# LLVM's optimisations take two thirds of a compilation, and the newer emitters half of
# the rest.
_UNOPTIMISED = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}


@functools.cache
def _cpu_options(optimised):
    options = _AWAY_FROM_YNNPACK | ({} if optimised else _UNOPTIMISED)
    accepted = {name: value for name, value in options.items() if _accepts(name, value)}
    return accepted or None


@functools.cache
def _accepts(name, value):
    """Return whether this release has the option; others refuse to compile."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def mean_over_devices(tree, axis_name):
    """Return the mean of each float array over the devices of `axis_name`.

    Return `tree` itself where `axis_name` is None. Arrays of other types, such as
    counters, stay as they are on each device.
    """
    # On a lone device, XLA's CPU backend can take longer to build one vector of many
    # arrays than to compute the gradients themselves.
    if axis_name is None or lax.axis_size(axis_name) == 1:
        return tree
    leaves, structure = jax.tree.flatten(tree)
    is_float = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    floats = [leaf for leaf, chosen in zip(leaves, is_float, strict=True) if chosen]
    means = iter(_means(floats, axis_name))
    return structure.unflatten(
        next(means) if chosen else leaf
        for leaf, chosen in zip(leaves, is_float, strict=True)
    )


def _means(arrays, axis_name):
    # On GPU and TPU, XLA merges the collectives of separate arrays into a few, which run
    # beside the backward pass as soon as their gradients are ready. One vector would cost
    # transposes from the layout of the kernels there.
    if jax.default_backend() != "cpu":
        return lax.pmean(arrays, axis_name)
    # On CPU, XLA merges at most 256 arrays and runs nothing beside them.
    if len({array.dtype for array in arrays}) > 1:
        return [lax.pmean(array, axis_name) for array in arrays]
    vector, unravel = ravel_pytree(arrays)
    return unravel(lax.pmean(vector, axis_name))


def _mesh():
    """Return the mesh of all devices, those of a process side by side."""
    devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
    return Mesh(np.array(devices), (AXIS,))


def _spec(axis):
    return PartitionSpec() if axis is REPLICATED else PartitionSpec(AXIS)


def _put(x, where):
    if where.is_fully_addressable or isinstance(x, jax.Array) and x.sharding == where:
        return jax.device_put(x, where)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])


def _whole(x):
    if isinstance(x, jax.Array) and not (
        x.is_fully_addressable or x.is_fully_replicated
    ):
        return multihost_utils.process_allgather(x, tiled=True)
    return np.array(x)


def _by_layout(function, layout, tree):
    """Map function(axis, array) over `tree`, with the axis from its prefix `layout`."""
    return jax.tree.map(
        lambda axis, part: jax.tree.map(functools.partial(function, axis), part),
        layout,
        tree,
        is_leaf=_is_none,
    )


def _is_none(axis):
    return axis is None


def multiple_of_devices(size: int) -> int:
    """Return the smallest multiple of the number of devices that is at least `size`."""
    devices = jax.device_count()
    return max(1, -(-size // devices)) * devices


def shapes_on_a_device(tree, layout):
    """Return the shapes that one device sees of `tree`; `layout` is a prefix of it."""

    def shape(axis, x):
        kind = jax.typeof(x)
        shape = kind.shape
        if axis is not REPLICATED:
            shape = (shape[0] // jax.device_count(), *shape[1:])
        return jax.ShapeDtypeStruct(shape, kind.dtype, weak_type=kind.weak_type)

    return _by_layout(shape, layout, tree)
