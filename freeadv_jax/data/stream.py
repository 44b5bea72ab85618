"""Turn encoded images of a tf.data pipeline into batches on the devices, in advance.

`grain_stream` does the same without TensorFlow.
"""

import collections
import itertools
from collections.abc import Callable, Iterator

from freeadv_jax.data import jpeg
from freeadv_jax.data.sampling import TrainingBatch
from freeadv_jax.devices import parallel
from freeadv_jax.errors import InputError, one_line


def decoded_batches(examples, *, rows: int, seed: int, size: int, flip: bool):
    """Return NumPy batches of `rows` decoded images, in the order of `examples`.

    `examples` is a tf.data.Dataset of {'image': bytes, 'label': int32, 'draw': int64}.
    `draw` counts the drawn images of the whole run; together with `seed` it decides crop
    and flip.
    """
    import tensorflow as tf

    def decode(example):
        # Another seed gives another crop to the same draw.
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
    """Return tf.data's options that keep the order, however many threads work."""
    import tensorflow as tf

    options = tf.data.Options()
    options.deterministic = True
    return options


def device_batches(
    host_batches: Callable[[int], Iterator[dict]],
    *,
    name: str,
    ahead: int,
    unreadable: tuple[type[Exception], ...] = (),
) -> Callable[[int], Iterator[TrainingBatch]]:
    """Return `batches(first_step)`: batches on the devices, made `ahead` of their use.

    `host_batches(first_step)` yields this process's rows of each batch, endlessly. The
    batches raise InputError once the data set `name` cannot be read any more, which the
    errors `unreadable` show, by default TensorFlow's.
    """

    def batches(first_step: int) -> Iterator[TrainingBatch]:
        # Looked up here, because at the interpreter's exit the module may be gone.
        errors = unreadable or _errors_of_tensorflow()
        try:
            placed = map(parallel.assemble, host_batches(first_step))
            waiting = collections.deque(itertools.islice(placed, ahead))
            for batch in placed:
                waiting.append(batch)
                yield waiting.popleft()
        except errors as error:
            raise InputError(
                f"{name!r}: training images cannot be read ({one_line(error)})"
            ) from error

    return batches


def _errors_of_tensorflow():
    import tensorflow as tf

    return (tf.errors.OpError,)
