"""The fast adaptive boundary attack: the nearest point across the decision boundary."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from freeadv_jax.attacks.attack import (
    Batch,
    Count,
    differentiating,
    misclassified,
    target_class,
    value_and_gradient,
    where,
)
from freeadv_jax.attacks.losses import targeted_margin
from freeadv_jax.attacks.runner import BATCH_SIZE, Outcome, run_one
from freeadv_jax.attacks.threat import NORMS, Real, make_threat
from freeadv_jax.errors import require_choice
from freeadv_jax.pixels import Numbers

GOALS = ("multi-target", "untargeted")

# The least dual norm that is divided by.
_TINY = 1e-30
# The least length of a step where two steps are weighted by their lengths.
_LEAST_STEP = 1e-8


class State(NamedTuple):
    """Hold the current `point` of the walk; `adversarial` is the image until it is broken."""

    adversarial: Float[Array, "b h w c"]
    broken: Bool[Array, " b"]
    point: Float[Array, "b h w c"]
    targets: Int[Array, " b"]


@dataclasses.dataclass(frozen=True)
class FAB:
    """Define FAB, the attack of least distortion (Croce & Hein, ICML 2020); see `fab`.

    Algorithm 1 of the paper; every step is a projection onto the linearised boundary. The
    walk itself does not depend on epsilon. The first misclassified point whose distance
    in float32 is at most epsilon breaks the image, and exactly that point is returned;
    points farther away are not kept.
    """

    norm: str
    epsilon: Real
    steps: Count = 100
    restarts: Count = 1
    targets: Count = 9
    goal: str = "multi-target"
    alpha_max: Real = 0.1
    overshoot: Real = 1.05
    backward: Real = 0.9

    @property
    def attempts(self):
        """Return the number of restarts times targets."""
        return self.restarts * self._targets

    @property
    def _targets(self):
        return self.targets if self.goal == "multi-target" else 1

    def success(self, logits, labels):
        """Return where the image is misclassified."""
        return misclassified(logits, labels)

    def start(self, logits_fn: Callable, batch: Batch) -> State:
        """Return the state at the image; in later restarts, at half of epsilon from it.

        The paper takes half of the smaller of epsilon and the least distance so far. For
        an image that is not broken, that is half of epsilon.
        """
        threat = make_threat(self.norm, self.epsilon)
        noise = threat.random_direction(batch.keys, batch.images.shape[1:])
        noise = noise.astype(batch.images.dtype)
        random = jnp.clip(batch.images + 0.5 * self.epsilon * noise, 0, 1)
        point = where(batch.attempt // self._targets > 0, random, batch.images)
        targets = batch.labels
        if self.goal == "multi-target":
            rank = batch.attempt % self._targets
            targets = target_class(logits_fn(batch.images), batch.labels, rank)
        return State(batch.images, jnp.zeros(len(point), bool), point, targets)

    def step(self, logits_fn: Callable, batch: Batch, state: State) -> State:
        """Return the state after one projection, drawn towards the image by alpha."""
        threat = make_threat(self.norm, self.epsilon)
        f, w = self._boundary(logits_fn, batch, state)
        clean, point, w = _flat(batch.images), _flat(state.point), _flat(w)

        # b - w.x, computed without b: in float32 a large b would swallow a small f.
        d1 = threat.project_onto_hyperplane(point, w, -f)
        need = -f - jnp.sum(w * (clean - point), axis=-1)
        d2 = threat.project_onto_hyperplane(clean, w, need)

        size1 = jnp.maximum(threat.size(d1), _LEAST_STEP)
        size2 = jnp.maximum(threat.size(d2), _LEAST_STEP)
        alpha = jnp.minimum(size1 / (size1 + size2), self.alpha_max)[:, None]
        ahead = (1 - alpha) * (point + self.overshoot * d1)
        biased = ahead + alpha * (clean + self.overshoot * d2)
        point = jnp.clip(biased, 0, 1)

        new = point.reshape(batch.images.shape)
        wrong = self.success(logits_fn(new), batch.labels)
        broken = wrong & (threat.size(point - clean) <= self.epsilon)
        back = batch.images + self.backward * (new - batch.images)
        adversarial = where(broken, new, batch.images)
        return State(adversarial, broken, where(wrong, back, new), state.targets)

    def _boundary(self, logits_fn, batch, state):
        """Return f and w: the margin z_t - z_y at the point and its gradient."""
        if self.goal == "untargeted":
            return _nearest_boundary(
                logits_fn, batch.labels, state.point, NORMS[self.norm]
            )

        def objective(point):
            logits = logits_fn(point)
            return targeted_margin(logits, batch.labels, state.targets), logits

        f, _, w = value_and_gradient(objective, state.point)
        return f, w


def fab(
    logits_fn: Callable,
    images: Numbers,
    labels: Numbers,
    *,
    norm: str = "linf",
    epsilon: Real,
    steps: int = 100,
    restarts: int = 1,
    goal: str = "multi-target",
    targets: int = 9,
    alpha_max: Real = 0.1,
    overshoot: Real = 1.05,
    backward: Real = 0.9,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Outcome:
    """Attack with the fast adaptive boundary attack (Croce & Hein, ICML 2020).

    FAB looks for the nearest misclassified point; an image is broken if that point is
    within epsilon. Images that are robust are returned unchanged.

    Args:
        logits_fn: as for `pgd`.
        images: floats [n, h, w, c] in [0, 1].
        labels: n integers, an array or a list.
        norm: 'linf' or 'l2'.
        epsilon: the radius of the ball in [0, 1] pixels, such as `8 / 255`.
        steps: the number of steps, each two forward passes and one backward pass.
        restarts: the first starts at the image, the others at random points.
        goal: 'multi-target' (FAB-T) walks to the boundary with each of the `targets`
            likeliest other classes in turn; 'untargeted' walks to the nearest boundary,
            at the price of one backward pass a class and step.
        targets: the number of targets, reduced to the number of other classes.
        alpha_max: the largest weight of the step towards the image itself.
        overshoot: the length of a step as a multiple of the distance to the boundary.
        backward: the share of the distance kept after a misclassified point is found.
        batch_size: the images attacked at a time. It bounds the memory and does not
            change the result.
        seed: the seed of all random choices.

    Returns:
        An `Outcome`. All devices take part. Inside jax.jit all images are one batch.

    Raises:
        InputError: for unusable images, labels, settings or logits.
    """
    require_choice("goal", goal, GOALS)
    attack = FAB(
        norm,
        epsilon,
        steps,
        restarts=restarts,
        targets=targets,
        goal=goal,
        alpha_max=alpha_max,
        overshoot=overshoot,
        backward=backward,
    )
    options = {"batch_size": batch_size, "seed": seed}
    return run_one("fab", attack, logits_fn, images, labels, **options)


@differentiating()
def _nearest_boundary(logits_fn, labels, point, kind):
    """Return f and w of the other class with the least |f| / dual norm of w."""
    logits, pullback = jax.vjp(logits_fn, point)
    classes = logits.shape[-1]

    def one_hot(indices):
        return jax.nn.one_hot(indices, classes, dtype=logits.dtype)

    def nearer(offset, best):
        towards = one_hot((labels + offset) % classes) - one_hot(labels)
        # Not the product alone: 0 times the -inf of a masked class is NaN.
        f = jnp.sum(jnp.where(towards == 0, 0, towards * logits), axis=-1)
        (w,) = pullback(towards)
        distance = jnp.abs(f) / (kind.dual_size(w) + _TINY)
        return where(distance < best[0], (distance, f, w), best)

    # One class after another: the gradients of all would not fit in memory.
    nothing = jnp.full_like(logits[:, 0], jnp.inf)
    start = (nothing, jnp.zeros_like(nothing), jnp.zeros_like(point))
    _, f, w = jax.lax.fori_loop(1, classes, nearer, start)
    return f, w


def _flat(images):
    return images.reshape(len(images), -1)
