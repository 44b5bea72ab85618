"""The fast adaptive boundary attack: the nearest point across the decision boundary."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from freeadv_jax.attacks.attack import (
    FORWARD,
    Batch,
    Count,
    differentiating,
    finite,
    misclassified,
    target_class,
    where,
)
from freeadv_jax.attacks.draws import confirmed, evaluated, mean_logits, over_draws
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

    With `samples` the model is randomised, see `draws`. Each point is then moved along its
    direction to the surface of the ball, and judged and returned there.
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
    samples: Count | None = None

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

    def passes(self, num_classes):
        """Return what the start and a step take, which ends with a look at the logits."""
        draws, targeted = self.samples or 1, self.goal == "multi-target"
        backward = (1 - FORWARD) * (1 if targeted else num_classes - 1)
        return draws * targeted * FORWARD, draws * (FORWARD + backward + FORWARD)

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
            logits = mean_logits(logits_fn, batch.images, batch, 0, self.samples)
            targets = target_class(logits, batch.labels, rank)
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
        number = 3 * batch.iteration + 2
        logits = mean_logits(logits_fn, new, batch, number, self.samples)
        wrong = self.success(logits, batch.labels)
        if self.samples is None:
            near = threat.size(point - clean) <= self.epsilon
            broken, adversarial = wrong & near, new
        else:
            adversarial = self._on_surface(threat, batch.images, new)
            broken = self._confirmed(logits_fn, batch, adversarial, number)
        back = batch.images + self.backward * (new - batch.images)
        adversarial = where(broken, adversarial, batch.images)
        return State(adversarial, broken, where(wrong, back, new), state.targets)

    def _on_surface(self, threat, images, points):
        """Return the points of the ball's surface in the directions of `points`.

        The draws of a randomised model disagree at the boundary itself, where this walk
        ends. Points that lie in front of the surface are moved on, the others back.
        """
        delta = points - images
        size = jnp.maximum(threat.size(_flat(delta)), _LEAST_STEP)
        longer = images + delta * (self.epsilon / size)[:, None, None, None]
        return threat.inside(images, longer)

    def _confirmed(self, logits_fn, batch, point, number):
        """Return where the draws of a randomised model, and fresh ones, fail."""
        how = batch, number + 1, self.samples
        found = self.success(mean_logits(logits_fn, point, *how), batch.labels)
        return confirmed(found, self.success, logits_fn, point, *how)

    def _boundary(self, logits_fn, batch, state):
        """Return f and w: the margin z_t - z_y at the point and its gradient."""
        number = 3 * batch.iteration + 1
        if self.goal == "untargeted":
            return _nearest_boundary(
                logits_fn, batch, state.point, number, self.samples, NORMS[self.norm]
            )

        def margin(logits):
            return targeted_margin(logits, batch.labels, state.targets)

        f, _, w = evaluated(logits_fn, margin, state.point, batch, number, self.samples)
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
    samples: int | None = None,
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
        norm: 'linf', 'l2' or 'l1'.
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
        samples: as for `pgd`, for a randomised model. Points are then judged on the
            surface of the ball, because the draws disagree at the boundary itself.
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
        samples=samples,
    )
    options = {"batch_size": batch_size, "seed": seed}
    return run_one("fab", attack, logits_fn, images, labels, **options)


@differentiating()
def _nearest_boundary(logits_fn, batch, point, number, samples, kind):
    """Return f and w of the other class with the least |f| / dual norm of w."""
    labels = batch.labels
    if samples is None:
        logits, pullback = jax.vjp(logits_fn, point)
    else:
        logits = mean_logits(logits_fn, point, batch, number, samples)

        def pullback(towards):
            def draw(keys):
                return jax.vjp(lambda point: logits_fn(point, keys), point)[1](towards)

            return over_draws(draw, batch, number, samples)

    classes = logits.shape[-1]

    def one_hot(indices):
        return jax.nn.one_hot(indices, classes, dtype=logits.dtype)

    def nearer(offset, best):
        towards = one_hot((labels + offset) % classes) - one_hot(labels)
        # Not the product alone: 0 times the -inf of a masked class is NaN.
        f = jnp.sum(jnp.where(towards == 0, 0, towards * logits), axis=-1)
        w = finite(pullback(towards)[0])
        distance = jnp.abs(f) / (kind.dual_size(w) + _TINY)
        return where(distance < best[0], (distance, f, w), best)

    # One class after another: the gradients of all would not fit in memory.
    nothing = jnp.full_like(logits[:, 0], jnp.inf)
    start = (nothing, jnp.zeros_like(nothing), jnp.zeros_like(point))
    _, f, w = jax.lax.fori_loop(1, classes, nearer, start)
    return f, w


def _flat(images):
    return images.reshape(len(images), -1)
