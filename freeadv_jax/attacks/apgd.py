"""Auto-PGD: ascent with momentum whose step size follows from how the loss has risen."""

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
    as_pytree,
    misclassified,
    run_attack,
    target_class,
    value_and_gradient,
    where,
)
from freeadv_jax.attacks.checks import check_call, num_classes_of
from freeadv_jax.attacks.losses import TARGETED, UNTARGETED
from freeadv_jax.attacks.threat import Real, make_threat
from freeadv_jax.errors import require_choice

GOALS = ("untargeted", "multi-target")
MODELS = ("deterministic", "randomized")

# alpha: how much of a step is the gradient's, the rest being the last step's.
_GRADIENT_PART = 0.75


class Look(NamedTuple):
    """What one pass through the model shows at a point."""

    point: Float[Array, "b h w c"]
    loss: Float[Array, " b"]
    gradient: Float[Array, "b h w c"]


class Window(NamedTuple):
    """The steps since an image's last checkpoint, and the `period` to the next.

    `halved` and `best_loss` are as of the last: whether it halved eta, and f_max.
    """

    period: Int[Array, " b"]
    steps: Int[Array, " b"]
    rises: Int[Array, " b"]
    halved: Bool[Array, " b"]
    best_loss: Float[Array, " b"]


class State(NamedTuple):
    """In the paper's letters: `here` is x^(k), `previous` x^(k-1), `best` x_max with
    f_max, `step_size` eta.

    `here.loss` is the last evaluated, also after a return to x_max.
    """

    adversarial: Float[Array, "b h w c"]
    broken: Bool[Array, " b"]
    here: Look
    previous: Float[Array, "b h w c"]
    best: Look
    step_size: Float[Array, " b"]
    window: Window
    targets: Int[Array, " b"]


@dataclasses.dataclass(frozen=True)
class APGD:
    """Croce & Hein (ICML 2020), Algorithm 1; periods as in their fra31/auto-attack.

    `loss` is a key of losses.UNTARGETED. Both goals want the image misclassified;
    'multi-target' makes for the `targets` likeliest other classes in turn. A step is
    one forward and one backward pass. Its size is halved after a period of which less
    than `rho` of the steps raised the loss, or all left the best loss where it was.

    A `model` that is 'randomized' maps images and one key for each of them to logits.
    Loss and gradient are then means over `eot` such samples at every step, and an image
    is broken when the mean of their logits is misclassified, not by one lucky sample.
    """

    norm: str
    epsilon: Real
    steps: Count = 100
    restarts: Count = 1
    targets: Count = 1
    loss: str = "cross-entropy"
    goal: str = "untargeted"
    rho: Real = 0.75
    model: str = "deterministic"
    eot: Count = 1

    @property
    def attempts(self):
        return self.restarts * self.targets

    def success(self, logits, labels):
        return misclassified(logits, labels)

    def start(self, logits_fn: Callable, batch: Batch) -> State:
        threat = make_threat(self.norm, self.epsilon)
        noise = threat.random_start(_keys(batch, 0), batch.images.shape[1:])
        noise = self.epsilon * threat.scaled_to_one(noise)
        point = threat.inside(batch.images, batch.images + noise)
        targets = self._targets(logits_fn, batch)
        here, logits = self._look(logits_fn, batch, targets, point, 2)
        broken = self.success(logits, batch.labels)
        eta = jnp.full_like(here.loss, 2 * self.epsilon)
        period = jnp.full_like(batch.iteration, jnp.maximum(22 * self.steps // 100, 1))
        # Called halved, the first period can only fail by its share of rises.
        window = _window(period, jnp.ones_like(broken), here.loss)
        return State(point, broken, here, point, here, eta, window, targets)

    def step(self, logits_fn: Callable, batch: Batch, state: State) -> State:
        point, number = self._move(batch, state), batch.iteration + 3
        new, logits = self._look(logits_fn, batch, state.targets, point, number)
        broken = self.success(logits, batch.labels)
        best = where(new.loss > state.best.loss, new, state.best)
        rose = (new.loss > state.here.loss).astype(jnp.int32)
        window = state.window._replace(
            steps=state.window.steps + 1, rises=state.window.rises + rose
        )

        checkpoint = window.steps == window.period
        halve = checkpoint & self._should_halve(window, best.loss)
        shorter = window.period - jnp.maximum(3 * self.steps // 100, 1)
        period = jnp.maximum(shorter, jnp.maximum(6 * self.steps // 100, 1))
        return State(
            adversarial=where(broken, new.point, best.point),
            broken=broken,
            here=where(halve, best, new)._replace(loss=new.loss),
            previous=state.here.point,
            best=best,
            step_size=jnp.where(halve, state.step_size / 2, state.step_size),
            window=where(checkpoint, _window(period, halve, best.loss), window),
            targets=state.targets,
        )

    def _move(self, batch, state):
        """x^(k+1), from the gradient at x^(k) and the step that led there."""
        threat = make_threat(self.norm, self.epsilon)
        x, x_old = state.here.point, state.previous
        eta = state.step_size[:, None, None, None]
        first = (batch.iteration == 0)[:, None, None, None]
        alpha = jnp.where(first, 1.0, _GRADIENT_PART)
        z = threat.inside(batch.images, x + eta * threat.direction(state.here.gradient))
        moved = x + alpha * (z - x) + (1 - alpha) * (x - x_old)
        return threat.inside(batch.images, moved)

    def _should_halve(self, window, best_loss):
        """Condition 1: too few steps were rises. 2: neither eta nor f_max changed."""
        rises, steps = (n.astype(jnp.float32) for n in (window.rises, window.steps))
        stuck = ~window.halved & (best_loss == window.best_loss)
        return (rises < self.rho * steps) | stuck

    def _look(self, logits_fn, batch, targets, point, number):
        """A Look and the logits; `number` tells the keys of one from another's."""

        def objective(point, *keys):
            logits = logits_fn(point, *keys)
            if self.goal == "untargeted":
                return UNTARGETED[self.loss](logits, batch.labels), logits
            return TARGETED[self.loss](logits, batch.labels, targets), logits

        def sample(index):
            keys = jax.vmap(jax.random.fold_in, (0, None))(_keys(batch, number), index)
            return value_and_gradient(lambda point: objective(point, keys), point)

        if self.model == "deterministic":
            loss, logits, gradient = value_and_gradient(objective, point)
        else:
            loss, logits, gradient = _mean(sample, self.eot)
        return Look(point, loss, gradient), logits

    def _targets(self, logits_fn, batch):
        """The class each image is driven to; the label itself where that is unused."""
        if self.goal == "untargeted":
            return batch.labels
        keys = () if self.model == "deterministic" else (_keys(batch, 1),)
        logits = logits_fn(batch.images, *keys)
        return target_class(logits, batch.labels, batch.attempt % self.targets)


def apgd(
    logits_fn: Callable,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    norm: str = "linf",
    epsilon: Real,
    loss: str = "cross-entropy",
    steps: int = 100,
    seed: int = 0,
    **fields,
) -> Adversarial:
    """`APGD` on one batch, with its other `fields` by name; see `run_attack`.

    Of `targets` there are at most all other classes. InputError for images, labels,
    epsilon, loss, goal or model that cannot be.
    """
    attack = APGD(norm, epsilon, steps, loss=loss, **fields)
    require_choice("loss", attack.loss, UNTARGETED)
    require_choice("goal", attack.goal, GOALS)
    require_choice("model", attack.model, MODELS)
    if attack.model == "randomized":
        logits_fn = jax.tree_util.Partial(
            keys_or_mean, as_pytree(logits_fn), attack.eot
        )
    check_call(attack, logits_fn, images, labels)
    others = num_classes_of(logits_fn, images) - 1
    attack = dataclasses.replace(attack, targets=min(attack.targets, others))
    return run_attack(attack, logits_fn, images, labels, seed=seed)


def _window(period, halved, best_loss):
    """The one that a checkpoint opens."""
    none = jnp.zeros_like(period)
    return Window(period, none, none, halved, best_loss)


def keys_or_mean(logits_fn, eot, images, keys=None):
    """A randomised model that without keys gives the mean of `eot` samples."""
    if keys is not None:
        return logits_fn(images, keys)

    def sample(index):
        key = jax.random.fold_in(jax.random.key(0), index)
        return logits_fn(images, jax.random.split(key, len(images)))

    return _mean(sample, eot)


def _mean(sample, count):
    """The mean of the pytrees `sample(0)` to `sample(count - 1)`."""

    def add(index, sums):
        return jax.tree.map(jnp.add, sums, sample(index))

    shapes = jax.eval_shape(sample, 0)
    zeros = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), shapes)
    sums = jax.lax.fori_loop(0, count, add, zeros)
    return jax.tree.map(lambda total: total / jnp.float32(count), sums)


def _keys(batch, number):
    """A key for each image and use: 0 the noise, 1 the targets, then evaluations."""
    number = jnp.broadcast_to(number, batch.keys.shape)
    return jax.vmap(jax.random.fold_in)(batch.keys, number)
