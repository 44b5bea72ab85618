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

# Grain counts the images of a run in advance. No run draws this many.
_IMAGES = 2**48


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

    def decoded(drawn):
        index, draw = drawn
        item, label = examples[index]
        seed = order.seed, int(draw)
        crop = pillow.random_crop(as_bytes(item), seed, size=size, flip=flip)
        return {"image": crop, "label": np.int32(label)}

    def host_batches(first_step):
        source = _Draws(order, own)
        threads = grain.ReadOptions(
            num_threads=2 * (os.cpu_count() or 1), prefetch_buffer_size=2 * rows
        )
        drawn = grain.MapDataset.source(source)[first_step * rows :]
        images = drawn.map(decoded).to_iter_dataset(threads)
        return iter(images.batch(rows, drop_remainder=True))

    return device_batches(
        host_batches,
        name=name,
        ahead=ahead,
        unreadable=(OSError, pillow.Undecodable),
    )


class _Draws:
    """The images that this process draws in the whole run, one after the other.

    Grain reads them by their number, from several threads.
    """

    def __init__(self, order, own):
        self._order, self._own = order, own

    def __len__(self):
        return _IMAGES

    def __getitem__(self, number):
        rows = self._own.stop - self._own.start
        step, row = divmod(number, rows)
        row += self._own.start
        return self._order.batch(step)[row], self._order.draws(step)[row]
