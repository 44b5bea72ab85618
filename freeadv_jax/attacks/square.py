"""The Square Attack: random search with squares, which uses only a model's logits."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from freeadv_jax.attacks.attack import (
    FORWARD,
    Batch,
    Count,
    Flag,
    misclassified,
    where,
)
from freeadv_jax.attacks.draws import confirmed, mean_logits
from freeadv_jax.attacks.losses import margin
from freeadv_jax.attacks.runner import BATCH_SIZE, Outcome, run_one
from freeadv_jax.attacks.threat import Real, make_threat
from freeadv_jax.errors import require_choice
from freeadv_jax.pixels import Numbers

Image = Float[Array, "h w c"]

# The queries, out of 10,000, after which squares shrink to half their area.
_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)

# Smaller than the norm of any perturbation that matters.
_TINY = 1e-12


class State(NamedTuple):
    """Hold the best point so far and its margin `loss`, which never falls."""

    adversarial: Float[Array, "b h w c"]
    broken: Bool[Array, " b"]
    loss: Float[Array, " b"]


@dataclasses.dataclass(frozen=True)
class Square:
    """Define the Square Attack (Andriushchenko et al., ECCV 2020); see `square`.

    Algorithms 1 to 3 of the paper, and for L1 the change of Croce & Hein (ICML 2021); the
    defaults are those of Croce & Hein (ICML 2020). A
    square is kept if the margin grows or the image is broken. Where the authors' code
    differs from the paper, this follows the paper: squares reach the last row and column,
    and in L2 each channel keeps its mass. In L1 a window gets the mass once for each channel,
    and the projection takes the excess away, as in the authors' code. With `samples` the model is randomised, see
    `draws`.
    """

    norm: str
    epsilon: Real
    steps: Count = 5000
    restarts: Count = 1
    p_init: Real = 0.8
    rescaled: Flag = True
    samples: Count | None = None

    @property
    def attempts(self):
        """Return the number of restarts."""
        return self.restarts

    def success(self, logits, labels):
        """Return where the image is misclassified."""
        return misclassified(logits, labels)

    def passes(self, num_classes):
        """Return what the start and a step take: a forward pass."""
        query = (self.samples or 1) * FORWARD
        return query, query

    def start(self, logits_fn: Callable, batch: Batch) -> State:
        """Return the state at the stripes (L-inf) or tiles (L2, L1) of the paper."""

        def propose(key, image):
            key = jax.random.fold_in(key, 0)
            return _SEARCHES[self.norm].start(key, image, self.epsilon)

        points = jax.vmap(propose)(batch.keys, batch.images)
        return State(*self._query(logits_fn, batch, points, 0))

    def step(self, logits_fn: Callable, batch: Batch, state: State) -> State:
        """Return the state after one more square."""
        queries = jnp.where(self.rescaled, self.steps, 10_000)

        def propose(key, iteration, image, best):
            key = jax.random.fold_in(key, iteration + 1)
            part = covered_part(self.p_init, iteration, queries)
            side = side_of(self.norm, part, *image.shape[:2])
            change = _SEARCHES[self.norm].change
            return change(key, side, image, best, self.epsilon)

        points = jax.vmap(propose)(
            batch.keys, batch.iteration, batch.images, state.adversarial
        )
        new = State(*self._query(logits_fn, batch, points, batch.iteration + 1))
        return where(new.broken | (new.loss > state.loss), new, state)

    def _query(self, logits_fn, batch, points, number):
        """Return the points inside ball and box, whether they succeed, and their margins."""
        points = make_threat(self.norm, self.epsilon).inside(batch.images, points)
        how = points, batch, number, self.samples
        logits = mean_logits(logits_fn, *how)
        broken = self.success(logits, batch.labels)
        broken = confirmed(broken, self.success, logits_fn, *how)
        return points, broken, margin(logits, batch.labels)


def square(
    logits_fn: Callable,
    images: Numbers,
    labels: Numbers,
    *,
    norm: str = "linf",
    epsilon: Real,
    queries: int = 5000,
    restarts: int = 1,
    p_init: Real = 0.8,
    rescaled: bool = True,
    samples: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Outcome:
    """Attack with the Square Attack (Andriushchenko et al., ECCV 2020).

    Random search with squares; it uses no gradient.

    Args:
        logits_fn: as for `pgd`. It need not be differentiable.
        images: floats [n, h, w, c] in [0, 1].
        labels: n integers, an array or a list.
        norm: 'linf', 'l2' or 'l1'.
        epsilon: the radius of the ball in [0, 1] pixels, such as `8 / 255`.
        queries: the number of squares tried, each one forward pass. The start costs one
            more.
        restarts: the number of random starts; an image is broken if one succeeds.
        p_init: the share of the image that the first squares cover.
        rescaled: stretches the schedule of 10,000 queries, by which squares shrink, to
            `queries`. AutoAttack cuts it off instead.
        samples: as for `pgd`, for a randomised model.
        batch_size: the images attacked at a time. It bounds the memory and does not
            change the result.
        seed: the seed of all random choices.

    Returns:
        An `Outcome`. All devices take part. Inside jax.jit all images are one batch.

    Raises:
        InputError: for unusable images, labels, settings or logits.
    """
    require_choice("norm", norm, _SEARCHES)
    attack = Square(norm, epsilon, queries, restarts, p_init, rescaled, samples)
    options = {"batch_size": batch_size, "seed": seed}
    return run_one("square", attack, logits_fn, images, labels, **options)


def covered_part(p_init: Real, iteration: Count, queries: Count) -> Float[Array, ""]:
    """Return p, the share of the image that the square of this iteration covers."""
    # This is floor(10,000 * iteration / queries) > bound, without overflow of int32.
    past = jnp.asarray(_HALVED_AFTER) + 1
    whole, rest = queries // 10_000, queries % 10_000
    first = past * whole + (past * rest + 9_999) // 10_000
    return jnp.ldexp(jnp.float32(p_init), -jnp.sum(iteration >= first))


def side_of(norm: str, part: Real, height: int, width: int) -> Int[Array, ""]:
    """Return the side of a square over this part of an image, as the norm needs it."""
    side = jnp.round(jnp.sqrt(part * height * width)).astype(jnp.int32)
    side = _SEARCHES[norm].side(side)
    return jnp.clip(side, 1, min(height, width))


def stripes(key: Key[Array, ""], image: Image, epsilon: Real) -> Image:
    """Return the start for L-inf: each column of each channel at one end of the ball."""
    signs = jax.random.rademacher(key, (1, *image.shape[1:]), jnp.float32)
    return image + epsilon * signs


def recolour(
    key: Key[Array, ""], side: Count, image: Image, best: Image, epsilon: Real
) -> Image:
    """Return `best` with a square in which each channel goes to one end of the ball.

    Algorithm 2 adds 2 epsilon and projects. All pixels are at an end of the ball or the
    box already, so the result is the same.
    """
    height, width, channels = image.shape
    place, colour = jax.random.split(key)
    rows, columns = _random_square(place, side, height, width)
    signs = _signs(colour, channels)
    within = _within(rows, columns, side, side)
    return jnp.where(within, image + epsilon * signs, best)


def tiles(key: Key[Array, ""], image: Image, epsilon: Real, norm: str = "l2") -> Image:
    """Return the start for L2 or L1: tiles of a fifth of the side, `eta` of random sign.

    In L1 each tile and channel has size 1; `Square` projects the image onto the ball.
    """
    height, width, channels = image.shape
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    turn, colour = jax.random.split(key)

    rows, columns = _coordinates(side, side)
    upright, lying = (
        eta(*along, side, norm) for along in ((rows, columns), (columns, rows))
    )
    turned = jax.random.bernoulli(turn, shape=(down, 1, across, 1, 1))
    signs = jax.random.rademacher(colour, (down, 1, across, 1, channels), jnp.float32)
    # The axes: rows of tiles, rows in a tile, columns of tiles, columns in a tile,
    # channels.
    delta = signs * jnp.where(turned, lying[None, :, None], upright[None, :, None])
    delta = delta.reshape(down * side, across * side, channels)

    spare = height - down * side, width - across * side
    margins = [(pixels // 2, pixels - pixels // 2) for pixels in spare]
    delta = jnp.pad(delta, [*margins, (0, 0)])
    if norm == "l1":
        return image + delta
    return image + epsilon * delta / jnp.linalg.norm(delta.ravel())


def move(
    key: Key[Array, ""],
    side: Count,
    image: Image,
    best: Image,
    epsilon: Real,
    norm: str = "l2",
) -> Image:
    """Return `best` after Algorithm 3: one square gives its mass, and the mass that the
    ball has left, to another."""
    height, width, channels = image.shape
    nu = best - image
    to, source, turn, colour = jax.random.split(key, 4)

    rows, columns = _random_square(to, side, height, width)
    within = _within(rows, columns, side, side)
    emptied = _within(*_random_square(source, side, height, width), side, side)

    turned = jax.random.bernoulli(turn)
    upright, lying = (
        eta(*along, side, norm) for along in ((rows, columns), (columns, rows))
    )
    pattern = jnp.where(turned, lying, upright)
    signs = _signs(colour, channels)
    direction = signs * pattern + _unit(jnp.where(within, nu, 0), norm)

    given = jnp.where(within | emptied, nu, 0)
    if norm == "l1":
        unused = jnp.maximum(epsilon - jnp.sum(jnp.abs(nu)), 0)
        size = channels * jnp.sum(jnp.abs(given), axis=(0, 1), keepdims=True) + unused
    else:
        unused = jnp.maximum(epsilon**2 - jnp.sum(nu**2), 0)
        mass = jnp.sum(given**2, axis=(0, 1), keepdims=True)
        size = jnp.sqrt(mass + unused / channels)
    content = size * _unit(direction, norm)
    return image + jnp.where(within, content, jnp.where(emptied, 0, nu))


def _signs(key, channels):
    """Return a random sign for each channel, [1, 1, channels]."""
    return jax.random.rademacher(key, (channels,), jnp.float32)[None, None]


class _Search(NamedTuple):
    """Hold what the search does in one norm: its start, its change and its sides."""

    start: Callable
    change: Callable
    side: Callable


def _odd(side):
    """Return an odd side of at least 3: `eta` needs a centre."""
    return jnp.maximum(side, 3) // 2 * 2 + 1


_SEARCHES = {
    "linf": _Search(stripes, recolour, side=lambda side: side),
    "l2": _Search(tiles, move, side=_odd),
    "l1": _Search(
        functools.partial(tiles, norm="l1"),
        functools.partial(move, norm="l1"),
        side=_odd,
    ),
}


def eta(
    rows: Int[Array, "..."], columns: Int[Array, "..."], side: Count, norm: str = "l2"
) -> Float[Array, "h w 1"]:
    """Return two bumps of opposite signs, one above the other, with norm 1 in all.

    Rows [h, 1, 1] and columns [1, w, 1] are counted from the corner of the square; outside
    the square the pattern is 0. Exchanged, they give the transposed pattern.
    """
    half = side // 2
    above = _bump(rows, columns, half, side, norm)
    return _unit(above - _bump(rows - half, columns, side - half, side, norm), norm)


def _bump(rows, columns, height, width, norm):
    """Return the bump of equation (2): at distance d from the centre, the sum of
    1 / (k + 1)^2 from k = d to n, of 1 / (k + 1)^4 in L1."""
    n = jnp.maximum(height, width) // 2
    off = jnp.maximum(abs(rows - height // 2), abs(columns - width // 2))
    # With the tails of the series, tails[d] - tails[n + 1] is the sum.
    longest = max(off.shape) // 2 + 2
    power = 4 if norm == "l1" else 2
    tails = jnp.asarray(np.cumsum(1 / np.arange(longest, 0.0, -1) ** power)[::-1])
    bump = tails[jnp.minimum(off, n)] - tails[n + 1]
    return _unit(jnp.where(_within(rows, columns, height, width), bump, 0), norm)


def _coordinates(height, width):
    """Return rows [h, 1, 1] and columns [1, w, 1], for masks over all channels."""
    return jnp.arange(height)[:, None, None], jnp.arange(width)[None, :, None]


def _random_square(key, side, height, width):
    """Return the coordinates of an image, counted from the corner of a random square."""
    top, left = jax.random.randint(key, (2,), 0, jnp.array([height, width]) - side + 1)
    rows, columns = _coordinates(height, width)
    return rows - top, columns - left


def _within(rows, columns, height, width):
    return (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)


def _unit(delta, norm):
    """Return `delta` scaled to norm 1 over rows and columns; 0 stays 0."""
    if norm == "l1":
        size = jnp.sum(jnp.abs(delta), axis=(0, 1), keepdims=True)
    else:
        size = jnp.sqrt(jnp.sum(delta**2, axis=(0, 1), keepdims=True))
    return delta / jnp.maximum(size, _TINY)
