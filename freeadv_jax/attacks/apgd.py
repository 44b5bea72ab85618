"""Auto-PGD: ascent with momentum and a step size that adapts to the rise of the loss."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from freeadv_jax.attacks.attack import (
    Batch,
    Count,
    as_pytree,
    misclassified,
    target_class,
    value_and_gradient,
    where,
)
from freeadv_jax.attacks.losses import TARGETED, UNTARGETED, stable_cross_entropy
from freeadv_jax.attacks.runner import BATCH_SIZE, Outcome, run_one
from freeadv_jax.attacks.threat import Real, make_threat
from freeadv_jax.attacks.user_model import arrays_as_leaves, check_randomized_model
from freeadv_jax.errors import require_choice
from freeadv_jax.pixels import Numbers

GOALS = ("untargeted", "multi-target")
MODELS = ("deterministic", "randomized")

# alpha in the paper: the share of a step that follows the gradient. The rest repeats the
# step before.
_GRADIENT_PART = 0.75
# A success against a randomised model is judged again on this many new means of `eot`
# samples, and all must be misclassified. A hundred steps are as many chances of a
# lucky mean. An image on the boundary passes 20 of them once in a million steps.
_JUDGED_AGAIN = 20
# The first number of the keys for those samples, beyond the number of any step.
_FRESH = 2**30


class Evaluated(NamedTuple):
    """Hold a point with the loss and the gradient there."""

    point: Float[Array, "b h w c"]
    loss: Float[Array, " b"]
    gradient: Float[Array, "b h w c"]


class Window(NamedTuple):
    """Hold the steps since an image's last checkpoint, and the `period` to the next.

    `halved` says whether the last checkpoint halved eta; `best_loss` is f_max there.
    """

    period: Int[Array, " b"]
    steps: Int[Array, " b"]
    rises: Int[Array, " b"]
    halved: Bool[Array, " b"]
    best_loss: Float[Array, " b"]


class State(NamedTuple):
    """Hold the walk. In the paper's letters, `here` is x^(k), `previous` x^(k-1), `best`
    x_max with f_max, and `step_size` eta.

    `here.loss` is the loss evaluated last, also after a return to x_max.
    """

    adversarial: Float[Array, "b h w c"]
    broken: Bool[Array, " b"]
    here: Evaluated
    previous: Float[Array, "b h w c"]
    best: Evaluated
    step_size: Float[Array, " b"]
    window: Window
    targets: Int[Array, " b"]


@dataclasses.dataclass(frozen=True)
class APGD:
    """Define Auto-PGD (Croce & Hein, ICML 2020, Algorithm 1); see `apgd`.

    The periods between checkpoints are those of the authors' fra31/auto-attack. The step
    size is halved after a period in which less than `rho` of the steps raised the loss,
    or none raised the best loss.

    For a `model` that is 'randomized', loss and gradient are means over `eot` samples at
    every step. An image is broken when the mean of their logits is misclassified, and so
    are 20 means of new samples.
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
        """Return the number of restarts times targets."""
        return self.restarts * self.targets

    def success(self, logits, labels):
        """Return where the image is misclassified."""
        return misclassified(logits, labels)

    def start(self, logits_fn: Callable, batch: Batch) -> State:
        """Return the state at a random point at distance epsilon from the image."""
        threat = make_threat(self.norm, self.epsilon)
        noise = threat.random_start(_keys(batch, 0), batch.images.shape[1:])
        noise = self.epsilon * threat.scaled_to_one(noise)
        point = threat.inside(batch.images, batch.images + noise)
        targets = self._targets(logits_fn, batch)
        here, logits = self._evaluate(logits_fn, batch, targets, point, 2)
        broken = self._broken(logits_fn, batch, point, logits, 2)
        eta = jnp.full_like(here.loss, 2 * self.epsilon)
        period = jnp.full_like(batch.iteration, jnp.maximum(22 * self.steps // 100, 1))
        # With `halved` true, only the share of rises can fail the first period.
        window = _window(period, jnp.ones_like(broken), here.loss)
        return State(point, broken, here, point, here, eta, window, targets)

    def step(self, logits_fn: Callable, batch: Batch, state: State) -> State:
        """Return the state one step further, after a checkpoint if one is due."""
        point, number = self._move(batch, state), batch.iteration + 3
        new, logits = self._evaluate(logits_fn, batch, state.targets, point, number)
        broken = self._broken(logits_fn, batch, point, logits, number)
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
        """Return x^(k+1), from the gradient at x^(k) and the step that led there."""
        threat = make_threat(self.norm, self.epsilon)
        x, x_old = state.here.point, state.previous
        eta = state.step_size[:, None, None, None]
        first = (batch.iteration == 0)[:, None, None, None]
        alpha = jnp.where(first, 1.0, _GRADIENT_PART)
        z = threat.inside(batch.images, x + eta * threat.direction(state.here.gradient))
        moved = x + alpha * (z - x) + (1 - alpha) * (x - x_old)
        return threat.inside(batch.images, moved)

    def _should_halve(self, window, best_loss):
        """Return whether condition 1 (too few steps raised the loss) or condition 2
        (neither eta nor f_max changed) holds."""
        rises, steps = (n.astype(jnp.float32) for n in (window.rises, window.steps))
        stuck = ~window.halved & (best_loss == window.best_loss)
        return (rises < self.rho * steps) | stuck

    def _evaluate(self, logits_fn, batch, targets, point, number):
        """Return the evaluated point and its logits; `number` selects the random keys."""

        def objective(point, *keys):
            logits = logits_fn(point, *keys)
            if self.goal == "untargeted":
                return self._untargeted(logits, batch.labels), logits
            return TARGETED[self.loss](logits, batch.labels, targets), logits

        def sample(index):
            keys = jax.vmap(jax.random.fold_in, (0, None))(_keys(batch, number), index)
            return value_and_gradient(lambda point: objective(point, keys), point)

        if self.model == "deterministic":
            loss, logits, gradient = value_and_gradient(objective, point)
        else:
            loss, logits, gradient = _mean(sample, self.eot)
        return Evaluated(point, loss, gradient), logits

    def _broken(self, logits_fn, batch, point, logits, number):
        """Return which images are broken; a randomised model must agree on new samples."""
        broken = self.success(logits, batch.labels)
        if self.model == "deterministic":
            return broken

        keys = _keys(batch, number + _FRESH)

        def judge(carry):
            mean, broken = carry

            def sample(index):
                fresh = jax.vmap(jax.random.fold_in, (0, None))(
                    keys, mean * self.eot + index
                )
                return logits_fn(point, fresh)

            logits = _mean(sample, self.eot)
            return mean + 1, broken & self.success(logits, batch.labels)

        def undecided(carry):
            mean, broken = carry
            return (mean < _JUDGED_AGAIN) & jnp.any(broken)

        return jax.lax.while_loop(undecided, judge, (jnp.int32(0), broken))[1]

    @property
    def _untargeted(self):
        """Return the loss; samples of a randomised model need the cross-entropy itself."""
        if self.model == "randomized" and self.loss == "cross-entropy":
            return stable_cross_entropy
        return UNTARGETED[self.loss]

    def _targets(self, logits_fn, batch):
        """Return the target class of each image; the label where the goal uses none."""
        if self.goal == "untargeted":
            return batch.labels
        keys = () if self.model == "deterministic" else (_keys(batch, 1),)
        logits = logits_fn(batch.images, *keys)
        return target_class(logits, batch.labels, batch.attempt % self.targets)


def apgd(
    logits_fn: Callable,
    images: Numbers,
    labels: Numbers,
    *,
    norm: str = "linf",
    epsilon: Real,
    steps: int = 100,
    restarts: int = 1,
    loss: str = "cross-entropy",
    goal: str = "untargeted",
    targets: int = 1,
    rho: Real = 0.75,
    model: str = "deterministic",
    eot: int = 1,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Outcome:
    """Attack with Auto-PGD (Croce & Hein, ICML 2020, Algorithm 1).

    The step size starts at 2 epsilon and adapts; no step size is to be chosen. The start
    is a random point at distance epsilon.

    Args:
        logits_fn: as for `pgd`. A randomised model takes images f32[b, h, w, c] and one
            key for each of them.
        images: floats [n, h, w, c] in [0, 1].
        labels: n integers, an array or a list.
        norm: 'linf' or 'l2'.
        epsilon: the radius of the ball in [0, 1] pixels, such as `8 / 255`.
        steps: the number of steps, each one forward and one backward pass (times `eot`).
        restarts: the number of random starts; an image is broken if one succeeds.
        loss: 'cross-entropy', 'margin' or 'dlr'.
        goal: 'untargeted', or 'multi-target' for the `targets` likeliest other classes in
            turn. Any misclassification counts.
        targets: the number of targets, reduced to the number of other classes.
        rho: the share of rises below which the step size is halved.
        model: 'deterministic' or 'randomized'.
        eot: the samples of a randomised model that are averaged at every step.
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
    require_choice("model", model, MODELS)
    if model == "randomized":
        logits_fn = randomized(logits_fn, eot)
    attack = APGD(
        norm,
        epsilon,
        steps,
        restarts=restarts,
        targets=targets,
        loss=loss,
        goal=goal,
        rho=rho,
        model=model,
        eot=eot,
    )
    options = {"batch_size": batch_size, "seed": seed}
    return run_one("apgd", attack, logits_fn, images, labels, **options)


def _window(period, halved, best_loss):
    """Return the window that a checkpoint opens."""
    none = jnp.zeros_like(period)
    return Window(period, none, none, halved, best_loss)


def randomized(logits_fn: Callable, eot: Count) -> Callable:
    """Return a model of images and keys as one that also takes images alone.

    Without keys it returns the mean of 20 `eot` samples. Raise InputError for a model
    that takes no keys.
    """
    check_randomized_model(logits_fn)
    return jax.tree_util.Partial(
        _keys_or_mean, as_pytree(arrays_as_leaves(logits_fn)), eot
    )


def _keys_or_mean(logits_fn, eot, images, keys=None):
    """Return the logits of a randomised model; without keys, the mean of 20 eot samples."""
    if keys is not None:
        return logits_fn(images, keys)

    def sample(index):
        key = jax.random.fold_in(jax.random.key(0), index)
        return logits_fn(images, jax.random.split(key, len(images)))

    return _mean(sample, _JUDGED_AGAIN * eot)


def _mean(sample, count):
    """Return the mean of the pytrees `sample(0)` to `sample(count - 1)`."""

    def add(index, sums):
        return jax.tree.map(jnp.add, sums, sample(index))

    shapes = jax.eval_shape(sample, 0)
    zeros = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), shapes)
    sums = jax.lax.fori_loop(0, count, add, zeros)
    return jax.tree.map(lambda total: total / jnp.float32(count), sums)


def _keys(batch, number):
    """Return a key for each image; number 0 is for the noise, 1 for the targets, and the
    others are for the evaluations."""
    number = jnp.broadcast_to(number, batch.keys.shape)
    return jax.vmap(jax.random.fold_in)(batch.keys, number)
