"""FMN: the nearest misclassified point, by a ball that shrinks and grows."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from freeadv_jax.attacks.attack import (
    Batch,
    Count,
    Flag,
    misclassified,
    where,
)
from freeadv_jax.attacks.draws import confirmed, evaluated
from freeadv_jax.attacks.losses import log_odds_against, margin
from freeadv_jax.attacks.runner import BATCH_SIZE, Outcome, run_one
from freeadv_jax.attacks.threat import L2, NORMS, Linf, Real
from freeadv_jax.errors import require_choice
from freeadv_jax.pixels import Numbers

# The first and last values of alpha, the length of a step in radii of the ball, and of
# gamma, by which the ball grows and shrinks.
_STEP, _LAST_STEP = 2.0, 2e-2
_CHANGE, _LAST_CHANGE = 0.05, 1e-3
# The least dual norm that is divided by.
_TINY = 1e-30


class State(NamedTuple):
    """Hold the walk. In the paper's letters, `radius` is epsilon_k and `least` the size
    of the smallest misclassified perturbation so far.

    `adversarial` is the image until the attack succeeds; `nearest` is the point of `least`.
    """

    adversarial: Float[Array, "b h w c"]
    broken: Bool[Array, " b"]
    point: Float[Array, "b h w c"]
    nearest: Float[Array, "b h w c"]
    radius: Float[Array, " b"]
    least: Float[Array, " b"]


@dataclasses.dataclass(frozen=True)
class FMN:
    """Define the fast minimum-norm attack (Pintor et al., NeurIPS 2021); see `fmn`.

    Algorithm 1 of the paper: the ball around the image shrinks while the point is
    misclassified and grows while it is not. Before the first misclassified point, its
    radius is the distance to the linearised boundary. Three things differ. A step is as
    long as the ball is wide, where the paper has a length for each norm, so that nothing
    depends on the size of images. The first radius is a little longer than that distance,
    which a walk may else approach for ever. The first quarter of the steps ascends the log
    odds against the label, as DDN (Rony et al., CVPR 2019) does, and the others the margin:
    early on, the likeliest other class is not always the nearest.

    The first misclassified point within epsilon breaks the image; with `nearest`, all steps
    are made and the nearest misclassified point within epsilon is returned.

    With `samples` the model is randomised, see `draws`.
    """

    norm: str
    epsilon: Real
    steps: Count = 100
    nearest: Flag = False
    samples: Count | None = None

    @property
    def attempts(self):
        """Return 1: the walk has no randomness."""
        return 1

    def success(self, logits, labels):
        """Return where the image is misclassified."""
        return misclassified(logits, labels)

    def passes(self, num_classes):
        """Return what the start and a step take; the start evaluates nothing."""
        return 0, self.samples or 1

    def start(self, logits_fn: Callable, batch: Batch) -> State:
        """Return the state at the image; the model is not evaluated."""
        none = jnp.full(batch.labels.shape, jnp.inf, batch.images.dtype)
        unbroken = jnp.zeros(batch.labels.shape, bool)
        images = batch.images
        return State(images, unbroken, images, images, none, none)

    def step(self, logits_fn: Callable, batch: Batch, state: State) -> State:
        """Return the state after the point is judged and moved on."""
        number = batch.iteration + 1
        dtype = state.radius.dtype
        last = jnp.asarray(jnp.maximum(self.steps - 1, 1), dtype)
        part = batch.iteration.astype(dtype) / last

        def loss(logits):
            losses = log_odds_against, margin
            return jnp.where(part < 0.25, *(of(logits, batch.labels) for of in losses))

        _, logits, gradient = evaluated(
            logits_fn, loss, state.point, batch, number, self.samples
        )
        f = margin(logits, batch.labels)
        wrong = self.success(logits, batch.labels)
        how = logits_fn, state.point, batch, number, self.samples
        wrong = confirmed(wrong, self.success, *how)
        kind = NORMS[self.norm]
        size = kind.size(state.point - batch.images)
        nearer = wrong & (size < state.least)
        nearest = where(nearer, state.point, state.nearest)
        least = jnp.where(nearer, size, state.least)

        gamma = _annealed(_CHANGE, _LAST_CHANGE, part)
        boundary = size + jnp.abs(f) / (kind.dual_size(gradient) + _TINY)
        found = ~jnp.isinf(least)
        gamma_first = jnp.where(found, gamma, _CHANGE)
        grown = jnp.where(found, state.radius, boundary) * (1 + gamma_first)
        shrunk = jnp.minimum(state.radius * (1 - gamma), least)
        radius = jnp.where(wrong, shrunk, grown)

        # No two images are farther apart than the box is wide.
        wide = jnp.minimum(radius, kind.box_radius(batch.images.shape[1:]))
        alpha = _annealed(_STEP, _LAST_STEP, part) * wide
        if self.norm == Linf.norm:
            # The corners of this ball are so much farther away in L2.
            alpha *= math.sqrt(math.prod(batch.images.shape[1:]))
        ascent = alpha[:, None, None, None] * L2.direction(gradient)
        ball = kind(radius[:, None, None, None])
        point = ball.inside(batch.images, state.point + ascent)

        near = least <= self.epsilon
        done = batch.iteration + 1 >= self.steps
        broken = near & (done | ~jnp.asarray(self.nearest))
        adversarial = where(broken, nearest, batch.images)
        return State(adversarial, broken, point, nearest, radius, least)


def fmn(
    logits_fn: Callable,
    images: Numbers,
    labels: Numbers,
    *,
    norm: str = "l2",
    epsilon: Real | None = None,
    steps: int = 100,
    samples: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Outcome:
    """Attack with the fast minimum-norm attack (Pintor et al., NeurIPS 2021).

    FMN looks for the nearest misclassified point of each image. Images without success are
    returned unchanged.

    Args:
        logits_fn: as for `pgd`.
        images: floats [n, h, w, c] in [0, 1].
        labels: n integers, an array or a list.
        norm: 'linf', 'l2' or 'l1'.
        epsilon: the radius of the ball in [0, 1] pixels, such as `8 / 255`: an image is
            broken at the first misclassified point inside. None means any distance:
            `images - Outcome.images` is then the smallest perturbation found.
        steps: the number of steps, each one forward and one backward pass.
        samples: as for `pgd`, for a randomised model.
        batch_size: the images attacked at a time. It bounds the memory and does not
            change the result.
        seed: the seed of a randomised model's draws; the attack itself has none.

    Returns:
        An `Outcome`. All devices take part. Inside jax.jit all images are one batch.

    Raises:
        InputError: for unusable images, labels, settings or logits.
    """
    require_choice("norm", norm, NORMS)
    nearest = epsilon is None
    if epsilon is None:
        # No two images are farther apart.
        epsilon = NORMS[norm].box_radius(jnp.shape(images)[1:])
    attack = FMN(norm, epsilon, steps, nearest, samples)
    options = {"batch_size": batch_size, "seed": seed}
    return run_one("fmn", attack, logits_fn, images, labels, **options)


def _annealed(first, last, part):
    """Return the value of a cosine between two numbers, after a part of the steps."""
    return last + (first - last) * (1 + jnp.cos(jnp.pi * part)) / 2
