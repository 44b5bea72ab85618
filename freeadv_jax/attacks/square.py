"""The Square Attack: random search with squares, asking a model for nothing but logits."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key

from freeadv_jax.attacks.attack import (
    Adversarial,
    Batch,
    Count,
    Flag,
    misclassified,
    run_attack,
    where,
)
from freeadv_jax.attacks.checks import check_call
from freeadv_jax.attacks.losses import margin
from freeadv_jax.attacks.threat import Real, make_threat

Image = Float[Array, "h w c"]

# Of 10,000 queries, those after which squares shrink to half their area.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

# Below the norm of any perturbation that matters.
_TINY = 1e-12


class State(NamedTuple):
    """`adversarial` is the best point so far and `loss` its margin, which only grows."""

    adversarial: Float[Array, "b h w c"]
    broken: Bool[Array, " b"]
    loss: Float[Array, " b"]


@dataclasses.dataclass(frozen=True)
class Square:
    """`steps` squares, a query each, kept if the margin grows or the image breaks.

    Andriushchenko et al. (ECCV 2020), Algorithms 1 to 3; the defaults are those of
    Croce & Hein (ICML 2020). `p_init` is the part of the image the first squares cover.
    The schedule of 10,000 queries by which they shrink is `rescaled` to `steps`, or is
    cut off there, as AutoAttack does. Where their code and the paper differ this is the
    paper: squares reach the last row and column, and in L2 a channel keeps its mass.
    """

    norm: str
    epsilon: Real
    steps: Count = 5000
    restarts: Count = 1
    p_init: Real = 0.8
    rescaled: Flag = True

    @property
    def attempts(self):
        return self.restarts

    def success(self, logits, labels):
        return misclassified(logits, labels)

    def start(self, logits_fn: Callable, batch: Batch) -> State:
        def propose(key, image):
            return _START[self.norm](jax.random.fold_in(key, 0), image, self.epsilon)

        points = jax.vmap(propose)(batch.keys, batch.images)
        return State(*self._query(logits_fn, batch, points))

    def step(self, logits_fn: Callable, batch: Batch, state: State) -> State:
        queries = jnp.where(self.rescaled, self.steps, 10_000)

        def propose(key, iteration, image, best):
            key = jax.random.fold_in(key, iteration + 1)
            part = covered_part(self.p_init, iteration, queries)
            side = side_of(self.norm, part, *image.shape[:2])
            return _CHANGE[self.norm](key, side, image, best, self.epsilon)

        points = jax.vmap(propose)(
            batch.keys, batch.iteration, batch.images, state.adversarial
        )
        new = State(*self._query(logits_fn, batch, points))
        return where(new.broken | (new.loss > state.loss), new, state)

    def _query(self, logits_fn, batch, points):
        """The points within ball and box, whether they succeed, and their margins."""
        points = make_threat(self.norm, self.epsilon).inside(batch.images, points)
        logits = logits_fn(points)
        broken = self.success(logits, batch.labels)
        return points, broken, margin(logits, batch.labels)


def square(
    logits_fn: Callable,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    norm: str = "linf",
    epsilon: Real,
    queries: int = 5000,
    seed: int = 0,
    **fields,
) -> Adversarial:
    """`Square` on one batch, with its other `fields` by name; see `run_attack`.

    A query is a forward pass; the start costs one more. InputError for images, labels
    or epsilon that cannot be.
    """
    attack = Square(norm, epsilon, steps=queries, **fields)
    check_call(attack, logits_fn, images, labels)
    return run_attack(attack, logits_fn, images, labels, seed=seed)


def covered_part(p_init: Real, iteration: Count, queries: Count) -> Float[Array, ""]:
    """p: the part of the image that the square of this iteration, from 0, covers."""
    # floor(10,000 * iteration / queries) > bound, in numbers that int32 holds.
    past = jnp.asarray(_HALVED_AFTER) + 1
    whole, rest = queries // 10_000, queries % 10_000
    first = past * whole + (past * rest + 9_999) // 10_000
    return jnp.ldexp(jnp.float32(p_init), -jnp.sum(iteration >= first))


def side_of(norm: str, part: Real, height: int, width: int) -> Int[Array, ""]:
    """The side of a square over this part of an image; odd for L2 where that fits."""
    side = jnp.round(jnp.sqrt(part * height * width)).astype(jnp.int32)
    if norm == "l2":
        side = jnp.maximum(side, 3) // 2 * 2 + 1
    return jnp.clip(side, 1, min(height, width))


def stripes(key: Key[Array, ""], image: Image, epsilon: Real) -> Image:
    """The start for L-inf: every column of every channel at one end of the ball."""
    signs = jax.random.rademacher(key, (1, *image.shape[1:]), jnp.float32)
    return image + epsilon * signs


def recolour(
    key: Key[Array, ""], side: Count, image: Image, best: Image, epsilon: Real
) -> Image:
    """Algorithm 2: in a square, every channel goes to one end of the ball.

    All pixels are at an end of the ball, or of the box, already: to add 2 epsilon and
    to project the sum is to go to the end.
    """
    height, width, channels = image.shape
    place, colour = jax.random.split(key)
    rows, columns = _random_square(place, side, height, width)
    signs = jax.random.rademacher(colour, (channels,), jnp.float32)
    within = _within(rows, columns, side, side)
    return jnp.where(within, image + epsilon * signs, best)


def tiles(key: Key[Array, ""], image: Image, epsilon: Real) -> Image:
    """The start for L2: tiles of a fifth of the image, each `eta` of a random sign."""
    height, width, channels = image.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    turn, colour = jax.random.split(key)

    rows, columns = _coordinates(side, side)
    upright, lying = eta(rows, columns, side), eta(columns, rows, side)
    turned = jax.random.bernoulli(turn, shape=(down, 1, across, 1, 1))
    signs = jax.random.rademacher(colour, (down, 1, across, 1, channels), jnp.float32)
    # Rows of tiles, rows in the tile, columns of tiles, columns in the tile, channels.
    delta = signs * jnp.where(turned, lying[:, None], upright[:, None])
    delta = delta.reshape(down * side, across * side, channels)

    spare = height - down * side, width - across * side
    margins = [(pixels // 2, pixels - pixels // 2) for pixels in spare]
    delta = jnp.pad(delta, [*margins, (0, 0)])
    return image + epsilon * delta / jnp.linalg.norm(delta.ravel())


def move(
    key: Key[Array, ""], side: Count, image: Image, best: Image, epsilon: Real
) -> Image:
    """Algorithm 3: mass of one square, and what is left of the ball, goes to another."""
    height, width, channels = image.shape
    nu = best - image
    to, source, turn, colour = jax.random.split(key, 4)

    rows, columns = _random_square(to, side, height, width)
    within = _within(rows, columns, side, side)
    emptied = _within(*_random_square(source, side, height, width), side, side)

    turned = jax.random.bernoulli(turn)
    pattern = jnp.where(turned, eta(columns, rows, side), eta(rows, columns, side))
    signs = jax.random.rademacher(colour, (channels,), jnp.float32)
    direction = signs * pattern + _unit(jnp.where(within, nu, 0))

    unused = jnp.maximum(epsilon**2 - jnp.sum(nu**2), 0)
    mass = jnp.sum(jnp.where(within | emptied, nu, 0) ** 2, axis=(0, 1))
    content = jnp.sqrt(mass + unused / channels) * _unit(direction)
    return image + jnp.where(within, content, jnp.where(emptied, 0, nu))


_START = {"linf": stripes, "l2": tiles}
_CHANGE = {"linf": recolour, "l2": move}


def eta(
    rows: Int[Array, "..."], columns: Int[Array, "..."], side: Count
) -> Float[Array, "h w 1"]:
    """Two bumps of opposite signs, one above the other, in a square; of norm 1.

    Rows [h, 1, 1] and columns [1, w, 1] are counted from the square's corner; outside
    of it all is 0. Exchanged, they give the transposed pattern.
    """
    half = side // 2
    above = _bump(rows, columns, half, side)
    return _unit(above - _bump(rows - half, columns, side - half, side))


def _bump(rows, columns, height, width):
    """Equation (2): the sum of 1 / (k + 1)^2 from k = d to n, d pixels off the centre."""
    n = jnp.maximum(height, width) // 2
    off = jnp.maximum(abs(rows - height // 2), abs(columns - width // 2))
    # The tails of the series: tails[d] - tails[n + 1] is the sum.
    longest = max(off.shape) // 2 + 2
    tails = jnp.asarray(np.cumsum(1 / np.arange(longest, 0.0, -1) ** 2)[::-1])
    bump = tails[jnp.minimum(off, n)] - tails[n + 1]
    return _unit(jnp.where(_within(rows, columns, height, width), bump, 0))


def _coordinates(height, width):
    """Rows [h, 1, 1] and columns [1, w, 1], for masks and patterns of all channels."""
    return jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]


def _random_square(key, side, height, width):
    """The coordinates of an image, counted from the corner of a random square in it."""
    top, left = jax.random.randint(key, (2,), 0, jnp.array([height, width]) - side + 1)
    rows, columns = _coordinates(height, width)
    return rows - top, columns - left


def _within(rows, columns, height, width):
    return (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)


def _unit(delta):
    """Scaled to norm 1 over rows and columns; 0 stays 0."""
    size = jnp.sqrt(jnp.sum(delta**2, axis=(0, 1), keepdims=True))
    return delta / jnp.maximum(size, _TINY)
