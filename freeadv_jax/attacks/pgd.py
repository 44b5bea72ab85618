"""Projected gradient ascent inside the threat's ball and the pixel box [0, 1]."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from freeadv_jax.attacks.attack import (
    Batch,
    Count,
    Flag,
    misclassified,
    target_class,
    value_and_gradient,
    where,
)
from freeadv_jax.attacks.losses import TARGETED, UNTARGETED
from freeadv_jax.attacks.runner import BATCH_SIZE, Outcome, run_one
from freeadv_jax.attacks.threat import Real, Threat, make_threat
from freeadv_jax.errors import require_choice
from freeadv_jax.pixels import Numbers

GOALS = ("untargeted", "least-likely", "random-target", "multi-target", "given-target")


class State(NamedTuple):
    """Hold the best point so far in `adversarial`, and the current `point`."""

    adversarial: Float[Array, "b h w c"]
    broken: Bool[Array, " b"]
    loss: Float[Array, " b"]
    point: Float[Array, "b h w c"]
    gradient: Float[Array, "b h w c"]
    targets: Int[Array, " b"]


@dataclasses.dataclass(frozen=True)
class PGD:
    """Define projected gradient descent (Madry et al., ICLR 2018, 2.1); see `pgd`.

    `steps` ascents have the length `step_size`, in [0, 1] pixels. For the goal
    'given-target', the labels are the classes to reach.
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
        """Return the number of restarts times targets."""
        return self.restarts * self.targets

    def success(self, logits, labels):
        """Return where the goal is reached."""
        wrong = misclassified(logits, labels)
        return ~wrong if self.goal == "given-target" else wrong

    def start(self, logits_fn: Callable, batch: Batch) -> State:
        """Return the state at the image, or at a random point of its ball."""
        threat = make_threat(self.norm, self.epsilon)
        noise = threat.random_start(batch.keys, batch.images.shape[1:])
        start = batch.images + jnp.where(self.random_start, noise, 0)
        point = threat.inside(batch.images, start)
        targets = self._targets(logits_fn, batch)
        loss, success, gradient = self._evaluate(logits_fn, batch, targets, point)
        broken = success & ~jnp.asarray(self.last_iterate)
        return State(point, broken, loss, point, gradient, targets)

    def step(self, logits_fn: Callable, batch: Batch, state: State) -> State:
        """Return the state one ascent further."""
        threat = make_threat(self.norm, self.epsilon)
        point = state.point + self.step_size * threat.direction(state.gradient)
        point = threat.inside(batch.images, point)
        loss, success, gradient = self._evaluate(logits_fn, batch, state.targets, point)
        last = batch.iteration + 1 == self.steps
        broken = success & (last | ~jnp.asarray(self.last_iterate))
        better = (loss > state.loss) | broken | self.last_iterate
        best, loss = where(better, (point, loss), (state.adversarial, state.loss))
        return State(best, broken, loss, point, gradient, state.targets)

    def _evaluate(self, logits_fn, batch, targets, point):
        """Return loss, success and gradient at a point."""

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
        """Return the target class of each image; the label where the goal uses none."""
        if self.goal in ("untargeted", "given-target"):
            return batch.labels
        logits = logits_fn(batch.images)
        if self.goal == "least-likely":
            rank = jnp.full_like(batch.attempt, -1)
        elif self.goal == "random-target":
            others = logits.shape[-1] - 1
            rank = jax.vmap(lambda key: jax.random.randint(key, (), 0, others))(
                batch.keys
            )
        else:
            rank = batch.attempt % self.targets
        return target_class(logits, batch.labels, rank)


def fgsm(
    logits_fn: Callable,
    images: Numbers,
    labels: Numbers,
    *,
    norm: str = "linf",
    epsilon: Real,
    batch_size: int = BATCH_SIZE,
) -> Outcome:
    """Attack with one step of `epsilon` from the image itself.

    The fast gradient sign method of Goodfellow et al. (ICLR 2015), on the cross-entropy.
    Arguments, result and errors are those of `pgd`.
    """
    attack = PGD(norm, epsilon, steps=1, step_size=epsilon, random_start=False)
    return run_one("fgsm", attack, logits_fn, images, labels, batch_size=batch_size)


def pgd(
    logits_fn: Callable,
    images: Numbers,
    labels: Numbers,
    *,
    norm: str = "linf",
    epsilon: Real,
    steps: int = 20,
    step_size: Real | None = None,
    restarts: int = 1,
    loss: str = "cross-entropy",
    goal: str = "untargeted",
    targets: int = 1,
    random_start: bool = True,
    last_iterate: bool = False,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Outcome:
    """Attack with projected gradient descent (Madry et al., ICLR 2018, 2.1).

    Args:
        logits_fn: maps images f32[b, h, w, c] in [0, 1] to logits [b, k], normalisation
            included; -inf masks a class. A callable pytree such as jax.tree_util.Partial
            hands over its arrays; a second call with the same structure and shapes
            compiles nothing.
        images: floats [n, h, w, c] in [0, 1].
        labels: n integers, an array or a list. For the goal 'given-target' they are the classes to reach.
        norm: 'linf' or 'l2'.
        epsilon: the radius of the ball in [0, 1] pixels, such as `8 / 255`.
        steps: the number of ascents, each one forward and one backward pass.
        step_size: the length of an ascent in [0, 1] pixels. The default is epsilon / 4,
            the ratio of Madry et al. on CIFAR-10 (2 of 8 levels).
        restarts: the number of random starts; an image is broken if one succeeds.
        loss: 'cross-entropy', 'margin' or 'dlr' (see `freeadv_jax.attacks.losses`).
        goal: 'untargeted' wants any other class; 'least-likely' and 'random-target' go
            for one other class, 'multi-target' (Gowal et al. 2019) for the `targets`
            likeliest other classes in turn, and any misclassification counts.
            'given-target' wants exactly the class in `labels`.
        targets: the number of targets, reduced to the number of other classes.
        random_start: starts at a uniform point of the ball, not at the image.
        last_iterate: lets only the last iterate count, as papers before AutoAttack did.
        batch_size: the images attacked at a time. It bounds the memory and does not
            change the result.
        seed: the seed of all random choices.

    Returns:
        An `Outcome`. All devices take part. Inside jax.jit all images are one batch.

    Raises:
        InputError: for unusable images, labels, settings or logits.
    """
    require_choice("loss", loss, UNTARGETED)
    require_choice("goal", goal, GOALS)
    attack = PGD(
        norm,
        epsilon,
        steps,
        epsilon / 4 if step_size is None else step_size,
        restarts=restarts,
        targets=targets,
        loss=loss,
        goal=goal,
        random_start=random_start,
        last_iterate=last_iterate,
    )
    options = {"batch_size": batch_size, "seed": seed}
    return run_one("pgd", attack, logits_fn, images, labels, **options)


def projected_ascent(
    objective: Callable[[Float[Array, "b h w c"]], Float[Array, " b"]],
    images: Float[Array, "b h w c"],
    start: Float[Array, "b h w c"],
    *,
    threat: Threat,
    steps: int,
    step_size: float,
) -> Float[Array, "b h w c"]:
    """Return the last iterate of `steps` ascents of any objective, for use in training.

    `objective` maps images to one loss each. `start` is a perturbation inside the ball.
    Without a step, the result is `images + start`, clipped to the box.
    """

    def into_box(delta):
        return jnp.clip(images + delta, 0, 1) - images

    def ascend(_, delta):
        gradient = jax.grad(lambda delta: objective(images + delta).sum())(delta)
        return into_box(threat.ascend(delta, gradient, step_size))

    delta = jax.lax.fori_loop(0, steps, ascend, into_box(start))
    # images + (clip(...) - images) can round to one ulp outside the box.
    return jnp.clip(images + delta, 0, 1)
