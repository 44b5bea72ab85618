"""The fast adaptive boundary attack: the nearest point across the decision boundary."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from freeadv_jax.attacks.attack import (
    Adversarial,
    Batch,
    Count,
    misclassified,
    run_attack,
    target_class,
    value_and_gradient,
    where,
)
from freeadv_jax.attacks.checks import check_call, num_classes_of
from freeadv_jax.attacks.losses import targeted_margin
from freeadv_jax.attacks.threat import NORMS, Real, make_threat
from freeadv_jax.errors import require_choice

GOALS = ("multi-target", "untargeted")

# What a gradient or slope is at least where it is divided by.
_TINY = 1e-30
# What a step is at least where two are weighed against each other.
_LEAST_STEP = 1e-8


class State(NamedTuple):
    """`adversarial` is the image itself until broken, `point` where the walk now is."""

    adversarial: Float[Array, "b h w c"]
    broken: Bool[Array, " b"]
    point: Float[Array, "b h w c"]
    targets: Int[Array, " b"]


@dataclasses.dataclass(frozen=True)
class FAB:
    """Least distortion by linearised boundaries: Croce & Hein (ICML 2020), algorithm 1.

    Goal 'multi-target' (FAB-T) walks to the boundary with each of the `targets`
    likeliest other classes in turn, at most one fewer than there are classes;
    'untargeted' to the nearest boundary, at one backward pass a class and step.

    The walk itself knows no epsilon. An image is broken by the first misclassified
    point whose distance, as measured in float32, is at most epsilon; that very point
    is returned, never one moved after the model judged it. So no point further than
    epsilon need be kept, and what withstands is returned as it was.
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
        return self.restarts * self._targets

    @property
    def _targets(self):
        return self.targets if self.goal == "multi-target" else 1

    def success(self, logits, labels):
        return misclassified(logits, labels)

    def start(self, logits_fn: Callable, batch: Batch) -> State:
        """The image itself, but in later restarts a random point half of epsilon off.

        The paper takes half of the smaller of epsilon and the least distance so far,
        which for an image still standing is epsilon.
        """
        threat = make_threat(self.norm, self.epsilon)
        noise = threat.random_direction(batch.keys, batch.images.shape[1:])
        random = jnp.clip(batch.images + 0.5 * self.epsilon * noise, 0, 1)
        point = where(batch.attempt // self._targets > 0, random, batch.images)
        targets = batch.labels
        if self.goal == "multi-target":
            rank = batch.attempt % self._targets
            targets = target_class(logits_fn(batch.images), batch.labels, rank)
        return State(batch.images, jnp.zeros(len(point), bool), point, targets)

    def step(self, logits_fn: Callable, batch: Batch, state: State) -> State:
        threat = make_threat(self.norm, self.epsilon)
        f, w = self._boundary(logits_fn, batch, state)
        clean, point, w = _flat(batch.images), _flat(state.point), _flat(w)

        # b - w.x without b, whose float32 would swallow a small f.
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
        """f and w: the margin z_t - z_y at the point and its gradient."""
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
    images: ArrayLike,
    labels: ArrayLike,
    *,
    norm: str = "linf",
    epsilon: Real,
    steps: int = 100,
    seed: int = 0,
    **fields,
) -> Adversarial:
    """`FAB` on one batch, with its other `fields` by name; see `run_attack`.

    Of `targets` there are at most all other classes. InputError for images, labels,
    epsilon or goal that cannot be.
    """
    attack = FAB(norm, epsilon, steps, **fields)
    check_call(attack, logits_fn, images, labels)
    require_choice("goal", attack.goal, GOALS)
    others = num_classes_of(logits_fn, images) - 1
    attack = dataclasses.replace(attack, targets=min(attack.targets, others))
    return run_attack(attack, logits_fn, images, labels, seed=seed)


def _nearest_boundary(logits_fn, labels, point, kind):
    """f and w of the class other than the label with least |f| / dual norm of w."""
    logits, pullback = jax.vjp(logits_fn, point)
    classes = logits.shape[-1]

    def one_hot(indices):
        return jax.nn.one_hot(indices, classes, dtype=logits.dtype)

    def nearer(offset, best):
        towards = one_hot((labels + offset) % classes) - one_hot(labels)
        f = jnp.sum(towards * logits, axis=-1)
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
