"""Projected gradient ascent inside the threat's ball and the pixel box [0, 1]."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from freeadv_jax.attacks.attack import (
    FORWARD,
    Batch,
    Count,
    Flag,
    misclassified,
    target_class,
    where,
)
from freeadv_jax.attacks.draws import confirmed, evaluated, mean_logits
from freeadv_jax.attacks.losses import TARGETED, UNTARGETED, untargeted_loss
from freeadv_jax.attacks.runner import BATCH_SIZE, Outcome, run_one
from freeadv_jax.attacks.sparse_pgd import SparsePGD
from freeadv_jax.attacks.threat import (
    L0,
    NORMS,
    Patch,
    Real,
    Threat,
    as_real,
    make_threat,
)
from freeadv_jax.errors import InputError, require_choice
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
    'given-target', the labels are the classes to reach. With `samples` the model is
    randomised, see `draws`.
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
    samples: Count | None = None

    norms: ClassVar[tuple[str, ...]] = (*NORMS, Patch.norm)

    @property
    def attempts(self):
        """Return the number of restarts times targets; only one goal has targets."""
        return self.restarts * (self.targets if self.goal == "multi-target" else 1)

    def success(self, logits, labels):
        """Return where the goal is reached."""
        wrong = misclassified(logits, labels)
        return ~wrong if self.goal == "given-target" else wrong

    def passes(self, num_classes):
        """Return what the start and a step take; the targets are read from the logits."""
        draws, plain = self.samples or 1, self.goal in ("untargeted", "given-target")
        return draws * (1 if plain else 1 + FORWARD), draws

    def start(self, logits_fn: Callable, batch: Batch) -> State:
        """Return the state at the image, or at a random point of its ball."""
        threat = make_threat(self.norm, self.epsilon)
        noise = threat.random_start(batch.keys, batch.images.shape[1:])
        random = self.random_start & threat.starts_random(batch.attempt)
        start = batch.images + jnp.where(random[:, None, None, None], noise, 0)
        point = threat.inside(batch.images, start)
        targets = self._targets(logits_fn, batch)
        loss, success, gradient = self._evaluate(logits_fn, batch, targets, point, 1)
        broken = success & ~jnp.asarray(self.last_iterate)
        broken = self._confirmed(broken, logits_fn, point, batch, 1)
        return State(point, broken, loss, point, gradient, targets)

    def step(self, logits_fn: Callable, batch: Batch, state: State) -> State:
        """Return the state one ascent further."""
        threat = make_threat(self.norm, self.epsilon)
        climbed = state.point, state.gradient, self.step_size
        point, number = threat.climb(batch.images, *climbed), batch.iteration + 2
        loss, success, gradient = self._evaluate(
            logits_fn, batch, state.targets, point, number
        )
        last = batch.iteration + 1 == self.steps
        broken = success & (last | ~jnp.asarray(self.last_iterate))
        broken = self._confirmed(broken, logits_fn, point, batch, number)
        better = (loss > state.loss) | broken | self.last_iterate
        best, loss = where(better, (point, loss), (state.adversarial, state.loss))
        return State(best, broken, loss, point, gradient, state.targets)

    def _evaluate(self, logits_fn, batch, targets, point, number):
        """Return loss, success and gradient at a point; `number` selects the draws."""

        def loss(logits):
            if self.goal == "untargeted":
                return self._untargeted(logits, batch.labels)
            if self.goal == "given-target":
                return -self._untargeted(logits, batch.labels)
            return TARGETED[self.loss](logits, batch.labels, targets)

        losses, logits, gradient = evaluated(
            logits_fn, loss, point, batch, number, self.samples
        )
        return losses, self.success(logits, batch.labels), gradient

    @property
    def _untargeted(self):
        return untargeted_loss(self.loss, randomized=self.samples is not None)

    def _confirmed(self, found, logits_fn, point, batch, number):
        how = logits_fn, point, batch, number, self.samples
        return confirmed(found, self.success, *how)

    def _targets(self, logits_fn, batch):
        """Return the target class of each image; the label where the goal uses none."""
        if self.goal in ("untargeted", "given-target"):
            return batch.labels
        logits = mean_logits(logits_fn, batch.images, batch, 0, self.samples)
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
    samples: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Outcome:
    """Attack with one step of `epsilon` from the image itself.

    The fast gradient sign method of Goodfellow et al. (ICLR 2015), on the cross-entropy.
    Arguments, result and errors are those of `pgd`.
    """
    attack = PGD(
        norm, epsilon, steps=1, step_size=epsilon, random_start=False, samples=samples
    )
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
    samples: int | None = None,
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
        norm: 'linf', 'l2' or 'l1'; 'patch' for one square anywhere (Brown et al. 2017), of
            any pixel values; 'l0' for few pixels, of any values, by sparse PGD (Zhong et
            al., ICML 2024).
        epsilon: the radius of the ball in [0, 1] pixels, such as `8 / 255`; the side of the
            patch, or the number of pixels with all their channels. Below 1 these are the
            share of the image.
        steps: the number of ascents, each one forward and one backward pass.
        step_size: the length of an ascent in [0, 1] pixels. The default is epsilon / 4,
            the ratio of Madry et al. on CIFAR-10 (2 of 8 levels); 0.1 for patches and
            pixels.
        restarts: the number of random starts; an image is broken if one succeeds. The
            first patch is placed by the gradient at the image, the others at random.
        loss: 'cross-entropy', 'margin' or 'dlr' (see `freeadv_jax.attacks.losses`).
        goal: 'untargeted' wants any other class; 'least-likely' and 'random-target' go
            for one other class, 'multi-target' (Gowal et al. 2019) for the `targets`
            likeliest other classes in turn, and any misclassification counts.
            'given-target' wants exactly the class in `labels`.
        targets: the number of targets, reduced to the number of other classes.
        random_start: starts at a uniform point of the ball, not at the image.
        last_iterate: lets only the last iterate count, as papers before AutoAttack did.
        samples: for a randomised model, a function of images and one key for each of
            them: the draws over which loss and gradient are averaged at every step (EOT,
            Athalye et al., ICML 2018). An image is then broken if the mean of the logits
            is misclassified, and so are 20 means of ten fresh draws each and the mean of
            all 200.
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
    epsilon = as_real(epsilon)
    if step_size is None:
        step_size = make_threat(norm, epsilon).usual_step
    if norm == L0.norm:
        if (goal, targets, random_start, last_iterate) != (
            "untargeted",
            1,
            True,
            False,
        ):
            raise InputError(
                "goal, targets, random_start and last_iterate have no other value than the "
                "default for norm = 'l0'"
            )
        attack: PGD | SparsePGD = SparsePGD(
            epsilon, steps, step_size, restarts=restarts, loss=loss, samples=samples
        )
        options = {"batch_size": batch_size, "seed": seed}
        return run_one("pgd", attack, logits_fn, images, labels, **options)
    attack = PGD(
        norm,
        epsilon,
        steps,
        step_size,
        restarts=restarts,
        targets=targets,
        loss=loss,
        goal=goal,
        random_start=random_start,
        last_iterate=last_iterate,
        samples=samples,
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
    step_size: Real,
) -> Float[Array, "b h w c"]:
    """Return the last iterate of `steps` ascents of any objective, for use in training.

    `objective` maps images to one loss each. `start` is a perturbation inside the ball.
    Without a step, the result is `images + start`, clipped to the box.
    """

    def into_box(delta):
        return jnp.clip(images + delta, 0, 1) - images

    def ascend(_, delta):
        gradient = jax.grad(lambda delta: objective(images + delta).sum())(delta)
        delta = threat.ascend(delta, gradient, step_size, images=images)
        return into_box(delta)

    delta = jax.lax.fori_loop(0, steps, ascend, into_box(start))
    # images + (clip(...) - images) can round to one ulp outside the box.
    return jnp.clip(images + delta, 0, 1)
