"""Purifier: PixelDefend of Song et al. (ICLR 2018); the gradient vanishes.

An autoregressive model of the images moves each pixel to the likeliest level near it,
before the network sees it. BPDA with the identity breaks it: Athalye et al. (ICML 2018) left
9 % on CIFAR-10. The model here is a small one of digits, whose pixels have 17 levels: it
sees the twelve pixels before each in a window of five.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from freeadv_jax.attacks.bpda import bpda
from freeadv_jax.gallery.defence import (
    Defence,
    Defended,
    before,
    by_pgd,
    by_square,
    by_targeted_apgd,
)

LEVELS, REACH = 17, 0.2
_HIDDEN, _UPDATES, _BATCH = 64, 800, 64
# Rows and columns from a pixel to those before it, in raster order.
_BEFORE = [(row, column) for row in (-2, -1, 0) for column in range(-2, 3)]
_BEFORE = _BEFORE[:12]


def fit_pixels(images: Float[np.ndarray, "n h w 1"], *, seed: int = 0):
    """Return the weights of a model of each pixel given those before it.

    `images` are in [0, 1]. RMSprop minimises the cross-entropy of the pixels' levels.
    """
    keys = jax.random.split(jax.random.key(seed), 3)
    sizes = [len(_BEFORE) + 2, _HIDDEN, _HIDDEN, LEVELS]
    weights = [
        (jax.random.normal(key, (rows, columns)) / rows**0.5, jnp.zeros(columns))
        for key, rows, columns in zip(keys, sizes, sizes[1:])
    ]
    tx = optax.rmsprop(3e-3, momentum=0.9)

    def loss(weights, images):
        logits = _logits(weights, _contexts(images))
        levels = jnp.round(images[..., 0] * (LEVELS - 1)).astype(jnp.int32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, levels).mean()

    def update(number, carried):
        weights, state = carried
        key = jax.random.fold_in(jax.random.key(seed + 1), number)
        batch = jnp.asarray(images)[jax.random.randint(key, (_BATCH,), 0, len(images))]
        changes, state = tx.update(jax.grad(loss)(weights, batch), state, weights)
        return optax.apply_updates(weights, changes), state

    run = jax.jit(lambda carried: jax.lax.fori_loop(0, _UPDATES, update, carried))
    return run((weights, tx.init(weights)))[0]


def purify(
    weights, images: Float[Array, "b h w 1"], reach: float = REACH
) -> Float[Array, "b h w 1"]:
    """Return images with each pixel moved to the likeliest level within `reach`, in turn.

    `weights` are those of `fit_pixels`; `reach` is in [0, 1] pixels. A pixel is judged by
    those before it that were moved already. The gradient is zero.
    """
    height, width = images.shape[1:3]
    levels = jnp.arange(LEVELS, dtype=float) / (LEVELS - 1)

    def move(number, moved):
        row, column = number // width, number % width
        context = _contexts(moved)[:, row, column]
        pixel = images[:, row, column]
        # The nearest level is always within reach.
        far = jnp.abs(levels - pixel) > jnp.maximum(reach, 0.5 / (LEVELS - 1))
        likely = jnp.where(far, -jnp.inf, _logits(weights, context))
        chosen = levels[likely.argmax(axis=-1)].astype(moved.dtype)
        return moved.at[:, row, column, 0].set(chosen)

    images = jax.lax.stop_gradient(images)
    return jax.lax.fori_loop(0, height * width, move, images)


def _contexts(images):
    """The pixels before each pixel, zeros outside, and the place: [b, h, w, 14]."""
    height, width = images.shape[1:3]
    padded = jnp.pad(images[..., 0], ((0, 0), (2, 0), (2, 2)))
    before = [
        padded[:, 2 + row : 2 + row + height, 2 + column : 2 + column + width]
        for row, column in _BEFORE
    ]
    rows, columns = jnp.meshgrid(
        jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width), indexing="ij"
    )
    places = [jnp.broadcast_to(place, images.shape[:3]) for place in (rows, columns)]
    return jnp.stack([*before, *places], axis=-1)


def _logits(weights, contexts):
    hidden = contexts
    for matrix, bias in weights[:-1]:
        hidden = jax.nn.relu(hidden @ matrix + bias)
    matrix, bias = weights[-1]
    return hidden @ matrix + bias


def _build(task):
    network = task.natural.logits_fn
    weights = fit_pixels(
        task.train.images.astype(np.float32) / np.float32(255), seed=task.seed
    )
    pure = functools.partial(purify, weights)
    through = before(bpda(pure), network)
    return Defended(
        before(pure, network),
        {
            "BPDA": by_pgd(through),
            # The purifier undoes single steps: more starts and targets get past it.
            "BPDA, 100 steps from 20 starts": by_pgd(through, steps=100, restarts=20),
            "BPDA on the margin, 100 steps from 20 starts": by_pgd(
                through, loss="margin", steps=100, restarts=20
            ),
            "BPDA, APGD on each target from 3 starts": by_targeted_apgd(
                through, restarts=3
            ),
            # Square needs no gradient at all.
            "Square from 2 starts": by_square(before(pure, network), restarts=2),
        },
        shown=pure,
    )


DEFENCE = Defence(
    name="purifier",
    title="Purifier (PixelDefend)",
    paper="Song et al., ICLR 2018",
    kind="vanishing gradients",
    parameters=f"12 pixels before each, reach {REACH}",
    broken_by="BPDA with the identity, and Square",
    masks=True,
    published=0.09,
    data="digits",
    build=_build,
)
