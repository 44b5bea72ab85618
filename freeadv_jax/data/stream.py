"""From encoded images in a tf.data pipeline to batches on the devices, in time."""

import collections
import itertools
from collections.abc import Callable, Iterator

from jaxtyping import Array

from freeadv_jax.data import jpeg
from freeadv_jax.devices import parallel
from freeadv_jax.errors import InputError, one_line


def decoded_batches(examples, *, rows: int, seed: int, size: int, flip: bool):
    """NumPy batches of `rows` images, of a tf.data.Dataset of encoded ones, in order.

    An example is {'image': its bytes, 'label': int32, 'draw': int64}; `draw` counts
    the drawn images of the whole run, and with `seed` it decides on crop and flip.
    """
    import tensorflow as tf

    def decode(example):
        # Also where the draw is the same: another seed, another crop.
        draw = tf.stack([tf.constant(seed, tf.int64), example["draw"]])
        pixels = jpeg.random_crop(example["image"], draw, size=size, flip=flip)
        return {"image": pixels, "label": example["label"]}

    batches = (
        examples.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(rows, drop_remainder=True)
        .prefetch(2)
        .with_options(deterministic_options())
    )
    return batches.as_numpy_iterator()


def deterministic_options():
    """Elements come in the order of their sources, however many threads work."""
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = True
    return options


def device_batches(
    host_batches: Callable[[int], Iterator[dict]], *, name: str, ahead: int
) -> Callable[[int], Iterator[dict[str, Array]]]:
    """`batches(first_step)` on the devices, `ahead` of them before they are asked for.

    `host_batches(first_step)` gives this process's rows of each, endlessly. InputError
    where the data set `name` cannot be read any more.
    """

    def batches(first_step: int) -> Iterator[dict[str, Array]]:
        import tensorflow as tf

        # Looked up now: at the exit of the interpreter it would be gone.
        unreadable = tf.errors.OpError
        try:
            placed = map(parallel.assemble, host_batches(first_step))
            waiting = collections.deque(itertools.islice(placed, ahead))
            for batch in placed:
                waiting.append(batch)
                yield waiting.popleft()
        except unreadable as error:
            raise InputError(
                f"{name!r}: training images cannot be read ({one_line(error)})"
            ) from error

    return batches
