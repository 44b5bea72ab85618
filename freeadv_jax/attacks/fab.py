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
from freeadv_jax.attacks.threat import Real
from freeadv_jax.errors import require_choice

GOALS = ("multi-target", "untargeted")

# Newton's climbs of a projection: 3 to 6 are usual, 19 were the most in trials with
# all but 0.01 % of the room used up.
_MOST_CLIMBS = 50
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
        noise = _noise(batch.keys, batch.images.shape[1:], self.norm)
        random = jnp.clip(batch.images + 0.5 * self.epsilon * noise, 0, 1)
        point = where(batch.attempt // self._targets > 0, random, batch.images)
        targets = batch.labels
        if self.goal == "multi-target":
            rank = batch.attempt % self._targets
            targets = target_class(logits_fn(batch.images), batch.labels, rank)
        return State(batch.images, jnp.zeros(len(point), bool), point, targets)

    def step(self, logits_fn: Callable, batch: Batch, state: State) -> State:
        f, w = self._boundary(logits_fn, batch, state)
        clean, point, w = _flat(batch.images), _flat(state.point), _flat(w)

        # b - w.x without b, whose float32 would swallow a small f.
        d1 = project_onto_hyperplane(point, w, -f, norm=self.norm)
        need = -f - jnp.sum(w * (clean - point), axis=-1)
        d2 = project_onto_hyperplane(clean, w, need, norm=self.norm)

        size1 = jnp.maximum(_size(d1, self.norm), _LEAST_STEP)
        size2 = jnp.maximum(_size(d2, self.norm), _LEAST_STEP)
        alpha = jnp.minimum(size1 / (size1 + size2), self.alpha_max)[:, None]
        ahead = (1 - alpha) * (point + self.overshoot * d1)
        biased = ahead + alpha * (clean + self.overshoot * d2)
        point = jnp.clip(biased, 0, 1)

        new = point.reshape(batch.images.shape)
        wrong = self.success(logits_fn(new), batch.labels)
        broken = wrong & (_size(point - clean, self.norm) <= self.epsilon)
        back = batch.images + self.backward * (new - batch.images)
        adversarial = where(broken, new, batch.images)
        return State(adversarial, broken, where(wrong, back, new), state.targets)

    def _boundary(self, logits_fn, batch, state):
        """f and w: the margin z_t - z_y at the point and its gradient."""
        if self.goal == "untargeted":
            return _nearest_boundary(logits_fn, batch.labels, state.point, self.norm)

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


def project_onto_hyperplane(
    points: Float[Array, "b n"],
    w: Float[Array, "b n"],
    need: Float[Array, " b"],
    *,
    norm: str,
) -> Float[Array, "b n"]:
    """The smallest d in the norm with w . d = need and points + d in [0, 1].

    Where there is none, all the room in the direction of the hyperplane. Pixel i moves
    min(level, reach_i), for L2 times |w_i|, with one level for all, at which the sum of
    cost_i * min(level, reach_i) is |need|. That sum is concave in the level, so that
    Newton's method from 0 climbs to the root and never past it: no sort is needed.
    """
    scale = jnp.max(jnp.abs(w), axis=-1, keepdims=True)
    scale = jnp.where(scale > 0, scale, 1.0)
    slant, need = jnp.abs(w) / scale, need[:, None] / scale
    direction = jnp.sign(w) * jnp.sign(need)
    room = jnp.where(direction > 0, 1 - points, points)
    pace = jnp.ones_like(slant) if norm == "linf" else slant
    cost = slant * pace
    reach = room / jnp.maximum(pace, _TINY)
    highest = jnp.max(reach, axis=-1, keepdims=True)

    def climb(carry):
        climbs, _, level = carry
        found = jnp.sum(cost * jnp.minimum(level, reach), axis=-1, keepdims=True)
        slope = jnp.sum(jnp.where(reach > level, cost, 0.0), axis=-1, keepdims=True)
        missing = jnp.maximum(jnp.abs(need) - found, 0)
        higher = level + missing / jnp.maximum(slope, _TINY)
        return climbs + 1, level, jnp.minimum(higher, highest)

    def unfinished(carry):
        climbs, before, level = carry
        return (climbs < _MOST_CLIMBS) & jnp.any(level > before)

    ground = jnp.zeros_like(highest)
    _, _, level = jax.lax.while_loop(unfinished, climb, climb((0, ground, ground)))
    return direction * pace * jnp.minimum(level, reach)


def _nearest_boundary(logits_fn, labels, point, norm):
    """f and w of the class other than the label with least |f| / dual norm of w."""
    logits, pullback = jax.vjp(logits_fn, point)
    classes = logits.shape[-1]

    def one_hot(indices):
        return jax.nn.one_hot(indices, classes, dtype=logits.dtype)

    def nearer(offset, best):
        towards = one_hot((labels + offset) % classes) - one_hot(labels)
        f = jnp.sum(towards * logits, axis=-1)
        (w,) = pullback(towards)
        distance = jnp.abs(f) / (_dual_size(_flat(w), norm) + _TINY)
        return where(distance < best[0], (distance, f, w), best)

    # One class after another: the gradients of all would not fit in memory.
    nothing = jnp.full_like(logits[:, 0], jnp.inf)
    start = (nothing, jnp.zeros_like(nothing), jnp.zeros_like(point))
    _, f, w = jax.lax.fori_loop(1, classes, nearer, start)
    return f, w


def _noise(keys, image_shape, norm):
    """A random perturbation of size 1 for each image, from that image's own key."""
    draw = jax.random.uniform if norm == "linf" else jax.random.normal
    bounds = {"minval": -1.0, "maxval": 1.0} if norm == "linf" else {}
    noise = jax.vmap(lambda key: draw(key, image_shape, **bounds))(keys)
    return noise / _size(_flat(noise), norm)[:, None, None, None]


def _flat(images):
    return images.reshape(len(images), -1)


def _size(delta, norm):
    order = {"linf": jnp.inf, "l2": 2}[norm]
    return jnp.linalg.norm(delta, order, axis=-1)


def _dual_size(w, norm):
    order = {"linf": 1, "l2": 2}[norm]
    return jnp.linalg.norm(w, order, axis=-1)
