"""Training batches of arrays that stay on the devices, shuffled and augmented there.

Each batch is a function of (seed, step) alone. The host only dispatches.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Key, UInt8, UInt32

from freeadv_jax.data.split import Split
from freeadv_jax.devices import parallel
from freeadv_jax.devices.parallel import REPLICATED, SPLIT
from freeadv_jax.errors import InputError
from freeadv_jax.pixels import unit_range

# {'image': u8[b, h, w, c] or f32 in [0, 1], 'label': i32[b]}
TrainingBatch = dict[str, Array]

# Large, unlike the small numbers that other modules fold into the key of the same seed.
_SHUFFLE = 1_181_783_497
_SHUFFLE_EXTRA = 1_402_024_253
_AUGMENTATION = 2_038_074_743


@dataclass(frozen=True)
class Extra:
    """Hold images that join the training set, and their `fraction` of every batch.

    The fraction is above 0 and below 1.
    """

    split: Split
    fraction: float

    def rows(self, batch_size: int) -> int:
        """Return how many images of a batch are extra ones: at least one, and not all.

        Raise InputError where the batch is too small for that.
        """
        rows = min(batch_size - 1, int(self.fraction * batch_size + 0.5))
        if rows < 1:
            raise InputError(
                f"a batch of {batch_size} images has no place for extra ones: "
                f"extra_fraction is {self.fraction:g}, and must be 0.5 / batch_size or "
                "more, in batches of 2 or more"
            )
        return rows


def steps_per_pass(examples: int, batch_size: int) -> int:
    """Return the number of whole batches in `examples`; the remainder is dropped.

    Raise InputError if there is no whole batch.
    """
    if not 1 <= batch_size <= examples:
        raise InputError(
            f"batch size is {batch_size:,} for {examples:,} training images: must be 1 "
            f"to {examples:,}"
        )
    return examples // batch_size


def array_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    pad: int,
    flip: bool,
    augment: Callable | None = None,
    extra: Extra | None = None,
) -> Callable[[int], Iterator[TrainingBatch]]:
    """Return `batches(first_step)`: the endless training batches from that step on.

    A batch is {'image': [b, h, w, c] in the type of `split`, 'label': i32[b]}, split over
    the devices; their number does not change a bit of it. Steps count minibatches from 0.
    Each pass over the data draws without replacement in a new order and drops the
    remainder. Each image is padded by `pad` zeros on every side and cropped at random;
    with `flip` it is mirrored with probability 1/2. Then `augment(key, images) -> images`
    may change the batch, with images f32[b, h, w, c] in [0, 1].

    With `extra` a part of each batch comes from other images, which have passes and orders
    of their own. They are spread evenly over the batch, so that each device has its part.

    This call copies the arrays to every device, once. Raise InputError if the images of
    one kind in a batch exceed their number or `seed` does not fit 32 bits.
    """
    extra_rows = extra.rows(batch_size) if extra else 0
    sources = [_Source(split, batch_size - extra_rows, _SHUFFLE)]
    if extra_rows:
        sources.append(_Source(extra.split, extra_rows, _SHUFFLE_EXTRA))
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}: must be 0 to {2**32 - 1}")
    arrays = [source.arrays for source in sources]
    draw = jax.jit(
        partial(
            _draw,
            rows=tuple(source.rows for source in sources),
            steps=tuple(source.steps for source in sources),
            pad=pad,
            flip=flip,
            augment=augment,
        ),
        out_shardings=parallel.sharding(SPLIT),
    )

    def batches(first_step: int) -> Iterator[TrainingBatch]:
        orders = [source.orders(seed, first_step) for source in sources]
        for step in itertools.count(first_step):
            order = [next(each) for each in orders]
            yield draw(arrays, order, np.uint32(seed), np.uint32(step))

    return batches


class _Source:
    """The images of one kind, on the devices, and their order in each pass."""

    def __init__(self, split, rows, stream):
        self.rows = rows
        self.steps = steps_per_pass(len(split.labels), rows)
        self.arrays = parallel.place((split.images, split.labels), REPLICATED)
        self._order_of_pass = jax.jit(
            partial(_order_of_pass, examples=len(split.labels), stream=stream),
            out_shardings=parallel.sharding(REPLICATED),
        )

    def orders(self, seed, first_step):
        """Yield the order of the pass that each step is in, from `first_step` on."""
        pass_number, position = divmod(first_step, self.steps)
        while True:
            order = self._order_of_pass(np.uint32(seed), np.uint32(pass_number))
            yield from itertools.repeat(order, self.steps - position)
            pass_number, position = pass_number + 1, 0


def _order_of_pass(
    seed: UInt32[Array, ""],
    pass_number: UInt32[Array, ""],
    *,
    examples: int,
    stream: int,
) -> Int32[Array, " n"]:
    key = jax.random.fold_in(jax.random.key(seed), stream)
    return jax.random.permutation(jax.random.fold_in(key, pass_number), examples)


def _draw(
    arrays: list[tuple[Array, Array]],
    orders: list[Array],
    seed: UInt32[Array, ""],
    step: UInt32[Array, ""],
    *,
    rows: tuple[int, ...],
    steps: tuple[int, ...],
    pad: int,
    flip: bool,
    augment: Callable | None,
) -> TrainingBatch:
    parts = []
    for order, (images, labels), count, of_pass in zip(
        orders, arrays, rows, steps, strict=True
    ):
        position = step % jnp.uint32(of_pass) * jnp.uint32(count)
        chosen = jax.lax.dynamic_slice_in_dim(order, position, count)
        parts.append((images[chosen], labels[chosen]))
    images, labels = jax.tree.map(partial(_interleaved, rows=rows), *parts)
    key = jax.random.fold_in(jax.random.key(seed), _AUGMENTATION)
    key = jax.random.fold_in(key, step)
    augmented = _augment(images, key, pad=pad, flip=flip)
    if augment is not None:
        # A third key beside those of the crop and the flip.
        key = jax.random.fold_in(key, 2)
        augmented = unit_range(augment(key, unit_range(augmented)))
    return {"image": augmented, "label": labels}


def _interleaved(own, extra=None, *, rows):
    """Spread the rows of `extra` evenly among those of `own`."""
    if extra is None:
        return own
    size = sum(rows)
    places = (np.arange(rows[1]) * 2 + 1) * size // (2 * rows[1])
    is_extra = np.zeros(size, bool)
    is_extra[places] = True
    # The rows of both, one after the other, in the order of the batch.
    order = np.where(
        is_extra, rows[0] + is_extra.cumsum() - 1, (~is_extra).cumsum() - 1
    )
    return jnp.concatenate([own, extra])[order]


def _augment(
    images: UInt8[Array, "b h w c"] | Float32[Array, "b h w c"],
    key: Key[Array, ""],
    *,
    pad: int,
    flip: bool,
) -> UInt8[Array, "b h w c"] | Float32[Array, "b h w c"]:
    crop_key, flip_key = jax.random.split(key)
    if pad:
        shape = images.shape[1:]
        offsets = jax.random.randint(crop_key, (len(images), 2), 0, 2 * pad + 1)
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        images = jax.vmap(
            lambda image, offset: jax.lax.dynamic_slice(
                image, (offset[0], offset[1], 0), shape
            )
        )(padded, offsets)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images
