"""Projected gradient ascent inside the threat's ball and the pixel box [0, 1]."""

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
    Flag,
    misclassified,
    run_attack,
    target_class,
    value_and_gradient,
    where,
)
from freeadv_jax.attacks.checks import check_call, num_classes_of
from freeadv_jax.attacks.losses import TARGETED, UNTARGETED
from freeadv_jax.attacks.threat import Real, Threat, make_threat
from freeadv_jax.errors import require_choice

GOALS = ("untargeted", "least-likely", "random-target", "multi-target", "given-target")


class State(NamedTuple):
    """`adversarial` is the best point so far, `point` where the ascent now is."""

    adversarial: Float[Array, "b h w c"]
    broken: Bool[Array, " b"]
    loss: Float[Array, " b"]
    point: Float[Array, "b h w c"]
    gradient: Float[Array, "b h w c"]
    targets: Int[Array, " b"]


@dataclasses.dataclass(frozen=True)
class PGD:
    """`steps` ascents of `step_size` in [0, 1] pixels: Madry et al. (ICLR 2018), 2.1.

    `loss` is a key of losses.UNTARGETED. Every goal but 'given-target' wants the image
    misclassified; least-likely and random-target make for one other class, multi-target
    (Gowal et al. 2019) for the `targets` likeliest other classes in turn. For
    'given-target' labels are the classes to reach. An image is broken by any iterate,
    or with `last_iterate` only by the last, as the papers before AutoAttack counted.
    """

    norm: str
    epsilon: Real
    steps: Count
    step_size: Real
    restarts: Count = 1
    targets: Count = 1
    loss: str = "cross-entropy"
    goal: str = "untargeted"
    random_start: Flag = True
    last_iterate: Flag = False

    @property
    def attempts(self):
        return self.restarts * self.targets

    def success(self, logits, labels):
        wrong = misclassified(logits, labels)
        return ~wrong if self.goal == "given-target" else wrong

    def start(self, logits_fn: Callable, batch: Batch) -> State:
        threat = make_threat(self.norm, self.epsilon)
        noise = threat.random_start(batch.keys, batch.images.shape[1:])
        start = batch.images + jnp.where(self.random_start, noise, 0)
        point = threat.inside(batch.images, start)
        targets = self._targets(logits_fn, batch)
        loss, success, gradient = self._look(logits_fn, batch, targets, point)
        broken = success & ~jnp.asarray(self.last_iterate)
        return State(point, broken, loss, point, gradient, targets)

    def step(self, logits_fn: Callable, batch: Batch, state: State) -> State:
        threat = make_threat(self.norm, self.epsilon)
        point = state.point + self.step_size * threat.direction(state.gradient)
        point = threat.inside(batch.images, point)
        loss, success, gradient = self._look(logits_fn, batch, state.targets, point)
        last = batch.iteration + 1 == self.steps
        broken = success & (last | ~jnp.asarray(self.last_iterate))
        better = (loss > state.loss) | broken | self.last_iterate
        best, loss = where(better, (point, loss), (state.adversarial, state.loss))
        return State(best, broken, loss, point, gradient, state.targets)

    def _look(self, logits_fn, batch, targets, point):
        """Loss, success and gradient at a point."""

        def objective(point):
            logits = logits_fn(point)
            if self.goal == "untargeted":
                return UNTARGETED[self.loss](logits, batch.labels), logits
            if self.goal == "given-target":
                return -UNTARGETED[self.loss](logits, batch.labels), logits
            return TARGETED[self.loss](logits, batch.labels, targets), logits

        losses, logits, gradient = value_and_gradient(objective, point)
        return losses, self.success(logits, batch.labels), gradient

    def _targets(self, logits_fn, batch):
        """The class each image is driven to; the label itself where that is unused."""
        if self.goal in ("untargeted", "given-target"):
            return batch.labels
        logits = logits_fn(batch.images)
        others = logits.shape[-1] - 1
        if self.goal == "least-likely":
            rank = jnp.full_like(batch.attempt, others - 1)
        elif self.goal == "random-target":
            rank = jax.vmap(lambda key: jax.random.randint(key, (), 0, others))(
                batch.keys
            )
        else:
            rank = batch.attempt % self.targets
        return target_class(logits, batch.labels, rank)


def fgsm(
    logits_fn: Callable,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    norm: str = "linf",
    epsilon: Real,
) -> Adversarial:
    """One step of `epsilon` from the images themselves (Goodfellow et al., ICLR 2015)."""
    attack = PGD(norm, epsilon, steps=1, step_size=epsilon, random_start=False)
    check_call(attack, logits_fn, images, labels)
    return run_attack(attack, logits_fn, images, labels)


def pgd(
    logits_fn: Callable,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    norm: str = "linf",
    epsilon: Real,
    steps: int,
    step_size: Real,
    seed: int = 0,
    **fields,
) -> Adversarial:
    """`PGD` on one batch, with its other `fields` by name; see `run_attack`.

    Of `targets` there are at most all other classes. InputError for images, labels, epsilon, loss or goal that cannot be.
    """
    attack = PGD(norm, epsilon, steps, step_size, **fields)
    require_choice("loss", attack.loss, UNTARGETED)
    require_choice("goal", attack.goal, GOALS)
    check_call(attack, logits_fn, images, labels)
    others = num_classes_of(logits_fn, images) - 1
    attack = dataclasses.replace(attack, targets=min(attack.targets, others))
    return run_attack(attack, logits_fn, images, labels, seed=seed)


def projected_ascent(
    objective: Callable[[Float[Array, "b h w c"]], Float[Array, " b"]],
    images: Float[Array, "b h w c"],
    start: Float[Array, "b h w c"],
    *,
    threat: Threat,
    steps: int,
    step_size: float,
) -> Float[Array, "b h w c"]:
    """The last iterate of `steps` ascents of any `objective`: the attack in training.

    `objective` maps images to one loss each; `start` is a perturbation inside the
    ball. No step at all gives `start`, clipped to the box.
    """

    def into_box(delta):
        return jnp.clip(images + delta, 0, 1) - images

    def ascend(_, delta):
        gradient = jax.grad(lambda delta: objective(images + delta).sum())(delta)
        return into_box(threat.ascend(delta, gradient, step_size))

    delta = jax.lax.fori_loop(0, steps, ascend, into_box(start))
    # images + (clip(...) - images) can round to one ulp outside the box.
    return jnp.clip(images + delta, 0, 1)
