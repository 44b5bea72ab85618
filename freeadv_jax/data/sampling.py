"""Batches of a data set that lies on the device: shuffled, cropped and flipped there.

Every batch is a function of (seed, step) alone; the host only dispatches.
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

Batch = dict[str, Array]

# Large, so as not to meet the small numbers others fold into the key of the same seed.
_SHUFFLE = 1_181_783_497
_AUGMENTATION = 2_038_074_743


def steps_per_pass(examples: int, batch_size: int) -> int:
    """The number of whole batches in `examples`; the remainder is dropped.

    InputError if there is none.
    """
    if not 1 <= batch_size <= examples:
        raise InputError(
            f"batch size {batch_size:,} does not fit {examples:,} training images, "
            f"expected 1 to {examples:,}"
        )
    return examples // batch_size


def array_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    pad: int,
    flip: bool,
) -> Callable[[int], Iterator[Batch]]:
    """`batches(first_step)`: the endless training batches of `split` from that step on.

    A batch is {'image': u8[b, h, w, c], 'label': i32[b]} split over the devices, whose
    number does not change a bit of it. Steps count minibatches from 0. Each pass over
    the data draws without replacement in a new order and drops the remainder. Each
    image is cropped at random after `pad` pixels of zeros on each side and, if `flip`,
    mirrored with probability 1/2.

    Every device gets a copy of the arrays here, once. InputError if `batch_size`
    exceeds the number of images or `seed` does not fit 32 bits.
    """
    examples = len(split.labels)
    steps = steps_per_pass(examples, batch_size)
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}, expected 0 to {2**32 - 1}")
    arrays = parallel.place((split.images, split.labels), REPLICATED)
    order_of_pass = jax.jit(
        partial(_order_of_pass, examples=examples),
        out_shardings=parallel.sharding(REPLICATED),
    )
    draw = jax.jit(
        partial(_draw, batch_size=batch_size, steps=steps, pad=pad, flip=flip),
        out_shardings=parallel.sharding(SPLIT),
    )

    def batches(first_step: int) -> Iterator[Batch]:
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
) -> Batch:
    position = step % jnp.uint32(steps) * jnp.uint32(batch_size)
    chosen = jax.lax.dynamic_slice_in_dim(order, position, batch_size)
    key = jax.random.fold_in(jax.random.key(seed), _AUGMENTATION)
    augmented = _augment(
        images[chosen], jax.random.fold_in(key, step), pad=pad, flip=flip
    )
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
