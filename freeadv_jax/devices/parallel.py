"""Devices: the only module that knows how many there are, and the only pmap."""

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

# How an argument or a result lies on the devices, as pmap writes its axes: a whole
# copy on each, or a part of the first axis on each.
REPLICATED, SPLIT = None, 0


def check_batch_size(batch_size: int) -> None:
    """InputError unless the global batch is divided evenly by the devices."""
    devices = jax.device_count()
    if batch_size % devices:
        raise InputError(
            f"a global batch of {batch_size} does not divide over {devices} devices: "
            f"batch_size must be a multiple of {devices}"
        )


def sharding(axis: int | None) -> NamedSharding:
    """Where a REPLICATED or SPLIT array lies."""
    return NamedSharding(_mesh(), _spec(axis))


def rows(size: int) -> slice:
    """The part of a SPLIT axis of this size that lies on this process's devices."""
    index, count = jax.process_index(), jax.process_count()
    return slice(size * index // count, size * (index + 1) // count)


def place(tree, layout):
    """`tree` on the devices; `layout` is a prefix of it with REPLICATED and SPLIT.

    Every process hands over the same; of what is SPLIT, only its `rows` are read.
    """
    return _by_layout(lambda axis, x: _put(x, sharding(axis)), layout, tree)


def assemble(tree):
    """Arrays split over the devices, from each process's `rows` of them."""
    split = sharding(SPLIT)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(split, x), tree
    )


def fetch(tree):
    """A copy of `tree` on the host of every process, safe from a later donation."""
    return jax.tree.map(_whole, tree)


def spmd(function, *, inputs, outputs, donate=()):
    """`function` on every device at once, each with its part of the SPLIT arguments.

    `inputs` (a tuple, one entry an argument) and `outputs` are prefixes with
    REPLICATED and SPLIT. Outside, arrays keep their global shapes, whatever the
    number of devices; inside, collectives run over AXIS. What is REPLICATED in the
    outputs must be equal on all devices.
    """
    devices = jax.device_count()

    def split(axis, x):
        return x if axis is REPLICATED else x.reshape(devices, -1, *x.shape[1:])

    def join(axis, x):
        return x if axis is REPLICATED else x.reshape(-1, *x.shape[2:])

    mapped = jax.pmap(function, AXIS, in_axes=inputs, out_axes=outputs)

    def whole(*arguments):
        results = mapped(*_by_layout(split, inputs, arguments))
        return _by_layout(join, outputs, results)

    if jax.process_count() > 1:
        # Inside jit, pmap takes this process's devices alone (jax 0.10 to 0.12), and
        # outside it copies what is donated. This is what it stands for.
        whole = jax.shard_map(
            function,
            mesh=_mesh(),
            in_specs=jax.tree.map(_spec, inputs, is_leaf=_is_none),
            out_specs=jax.tree.map(_spec, outputs, is_leaf=_is_none),
            check_vma=False,
        )
    return jax.jit(whole, donate_argnums=donate, compiler_options=compiler_options())


def compiler_options() -> dict | None:
    """What programs are compiled with on this backend, besides XLA's defaults.

    On GPU, no kernels that add in an order of their own in each run.
    """
    if jax.default_backend() == "gpu":
        return {"xla_gpu_exclude_nondeterministic_ops": True}
    return _away_from_ynnpack() if jax.default_backend() == "cpu" else None


@functools.cache
def _away_from_ynnpack():
    """On CPU, convolutions kept away from YNNPACK, where the compiler knows how.

    Its kernel gradients are 2 to 4 times slower from 64 channels up (jaxlib 0.10.2
    to 0.12.0). Releases without the option refuse it, so it is tried out first.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


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
    """All devices, those of a process side by side."""
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
    """function(axis, array) over `tree`, with the axis its prefix `layout` gives."""
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
        shape, dtype = jax.typeof(x).shape, jax.typeof(x).dtype
        if axis is not REPLICATED:
            shape = (shape[0] // jax.device_count(), *shape[1:])
        return jax.ShapeDtypeStruct(shape, dtype)

    return _by_layout(shape, layout, tree)
