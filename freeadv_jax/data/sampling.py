"""Training batches of arrays that stay on the devices, shuffled and augmented there.

Each batch is a function of (seed, step) alone. The host only dispatches.
"""

from collections.abc import Callable, Iterator
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
_AUGMENTATION = 2_038_074_743


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
) -> Callable[[int], Iterator[TrainingBatch]]:
    """Return `batches(first_step)`: the endless training batches from that step on.

    A batch is {'image': [b, h, w, c] in the type of `split`, 'label': i32[b]}, split over
    the devices; their number does not change a bit of it. Steps count minibatches from 0.
    Each pass over the data draws without replacement in a new order and drops the
    remainder. Each image is padded by `pad` zeros on every side and cropped at random;
    with `flip` it is mirrored with probability 1/2. Then `augment(key, images) -> images`
    may change the batch, with images f32[b, h, w, c] in [0, 1].

    This call copies the arrays to every device, once. Raise InputError if `batch_size`
    exceeds the number of images or `seed` does not fit 32 bits.
    """
    examples = len(split.labels)
    steps = steps_per_pass(examples, batch_size)
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}: must be 0 to {2**32 - 1}")
    arrays = parallel.place((split.images, split.labels), REPLICATED)
    order_of_pass = jax.jit(
        partial(_order_of_pass, examples=examples),
        out_shardings=parallel.sharding(REPLICATED),
    )
    draw = jax.jit(
        partial(
            _draw,
            batch_size=batch_size,
            steps=steps,
            pad=pad,
            flip=flip,
            augment=augment,
        ),
        out_shardings=parallel.sharding(SPLIT),
    )

    def batches(first_step: int) -> Iterator[TrainingBatch]:
        pass_number, position = divmod(first_step, steps)
        while True:
            order = order_of_pass(np.uint32(seed), np.uint32(pass_number))
            for step in range(
                pass_number * steps + position, (pass_number + 1) * steps
            ):
                yield draw(*arrays, order, np.uint32(seed), np.uint32(step))
            pass_number, position = pass_number + 1, 0

    return batches


def _order_of_pass(
    seed: UInt32[Array, ""], pass_number: UInt32[Array, ""], *, examples: int
) -> Int32[Array, " n"]:
    key = jax.random.fold_in(jax.random.key(seed), _SHUFFLE)
    return jax.random.permutation(jax.random.fold_in(key, pass_number), examples)


def _draw(
    images: UInt8[Array, "n h w c"] | Float32[Array, "n h w c"],
    labels: Int32[Array, " n"],
    order: Int32[Array, " n"],
    seed: UInt32[Array, ""],
    step: UInt32[Array, ""],
    *,
    batch_size: int,
    steps: int,
    pad: int,
    flip: bool,
    augment: Callable | None,
) -> TrainingBatch:
    position = step % jnp.uint32(steps) * jnp.uint32(batch_size)
    chosen = jax.lax.dynamic_slice_in_dim(order, position, batch_size)
    key = jax.random.fold_in(jax.random.key(seed), _AUGMENTATION)
    key = jax.random.fold_in(key, step)
    augmented = _augment(images[chosen], key, pad=pad, flip=flip)
    if augment is not None:
        # A third key beside those of the crop and the flip.
        key = jax.random.fold_in(key, 2)
        augmented = unit_range(augment(key, unit_range(augmented)))
    return {"image": augmented, "label": labels[chosen]}


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
