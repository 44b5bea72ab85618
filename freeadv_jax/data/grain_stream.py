"""Turn encoded images into batches on the devices by Grain, without TensorFlow."""

import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from freeadv_jax.data import pillow
from freeadv_jax.data.encoded import as_bytes
from freeadv_jax.data.order import Order
from freeadv_jax.data.sampling import TrainingBatch
from freeadv_jax.data.stream import device_batches
from freeadv_jax.devices import parallel
from freeadv_jax.errors import InputError, one_line

# Grain counts the elements of a run in advance. No run draws this many.
_GROUPS = 2**48
# The images that a thread decodes for one element. With one, and with 16, the rate was up to
# a fifth lower than that of tf.data (`python -m benchmarks.input_rate`).
_MOST_IN_A_GROUP = 4


def import_grain(name: str) -> Any:
    """Return the module; raise InputError naming the extra where it is not installed."""
    try:
        import grain
        import PIL  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{name!r} with data.reader = 'grain' needs Grain and Pillow "
            f"({one_line(error)}); pip install 'freeadv_jax[grain]'"
        ) from error
    return grain


@runtime_checkable
class Examples(Protocol):
    """Hold encoded images with their labels, to be read by their index."""

    def __getitem__(self, index) -> tuple[Any, Any]: ...


def grain_batches(
    examples: Examples,
    *,
    order: Order,
    name: str,
    size: int,
    flip: bool,
    ahead: int,
) -> Callable[[int], Iterator[TrainingBatch]]:
    """Return `batches(first_step)`: batches on the devices, made `ahead` of their use.

    `examples[index]` is an encoded image, bytes or something with `read_bytes()`, and its
    label. Threads read and decode this process's rows of each step of `order`; where they
    are cropped and mirrored is decided by the order's seed and the number of the draw, as
    in `stream`. The batches raise InputError once the data set `name` cannot be read.
    """
    grain = import_grain(name)
    own = parallel.rows(order.batch_size)
    rows = own.stop - own.start

    group = max(n for n in range(1, _MOST_IN_A_GROUP + 1) if rows % n == 0)

    def decoded(drawn):
        crops, labels = [], []
        for index, draw in zip(*drawn, strict=True):
            item, label = examples[index]
            seed = order.seed, int(draw)
            crop = pillow.random_crop(as_bytes(item), seed, size=size, flip=flip)
            crops.append(crop)
            labels.append(np.int32(label))
        return {"image": np.stack(crops), "label": np.stack(labels)}

    def host_batches(first_step):
        threads = grain.ReadOptions(
            num_threads=2 * (os.cpu_count() or 1),
            prefetch_buffer_size=2 * rows // group,
        )
        drawn = grain.MapDataset.source(_Draws(order, own, group))
        groups = drawn[first_step * rows // group :].map(decoded)
        batches = groups.to_iter_dataset(threads).batch(
            rows // group, drop_remainder=True, batch_fn=_joined
        )
        return iter(batches)

    return device_batches(
        host_batches,
        name=name,
        ahead=ahead,
        unreadable=(OSError, pillow.Undecodable),
    )


def _joined(groups):
    """Return the groups of a batch as one."""
    return {name: np.concatenate([each[name] for each in groups]) for name in groups[0]}


class _Draws:
    """The images that this process draws in the whole run, so many in a `group`.

    Grain reads the groups by their number, from several threads.
    """

    def __init__(self, order, own, group):
        self._order, self._own, self._group = order, own, group

    def __len__(self):
        return _GROUPS

    def __getitem__(self, number):
        groups = (self._own.stop - self._own.start) // self._group
        step, first = divmod(number, groups)
        first = self._own.start + first * self._group
        rows = slice(first, first + self._group)
        return self._order.batch(step)[rows], self._order.draws(step)[rows]
