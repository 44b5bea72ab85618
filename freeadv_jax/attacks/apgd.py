"""Auto-PGD: ascent with momentum and a step size that adapts to the rise of the loss."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from freeadv_jax.attacks.apgd_l1 import SparseAPGD
from freeadv_jax.attacks.attack import Batch, Count, where
from freeadv_jax.attacks.auto_pgd import GOALS, AutoPGD, Evaluated
from freeadv_jax.attacks.losses import UNTARGETED
from freeadv_jax.attacks.runner import BATCH_SIZE, Outcome, run_one
from freeadv_jax.attacks.threat import Real, make_threat
from freeadv_jax.errors import require_choice
from freeadv_jax.pixels import Numbers

# alpha in the paper: the share of a step that follows the gradient. The rest repeats the
# step before.
_GRADIENT_PART = 0.75


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
    given_up: Bool[Array, " b"]


@dataclasses.dataclass(frozen=True)
class APGD(AutoPGD):
    """Define Auto-PGD (Croce & Hein, ICML 2020, Algorithm 1); see `apgd`.

    The periods between checkpoints are those of the authors' fra31/auto-attack. The step
    size is halved after a period in which less than `rho` of the steps raised the loss,
    or none raised the best loss.

    With `samples` the model is randomised, see `draws`. With `reach` an attempt is given up
    at a checkpoint if its best loss is farther below 0, where a margin changes sides, than
    `reach` times the rise in the period before.
    """

    norm: str
    epsilon: Real
    steps: Count = 100
    restarts: Count = 1
    targets: Count = 1
    loss: str = "cross-entropy"
    goal: str = "untargeted"
    rho: Real = 0.75
    samples: Count | None = None
    reach: Real | None = None

    def start(self, logits_fn: Callable, batch: Batch) -> State:
        """Return the state at a random point at distance epsilon from the image."""
        threat = make_threat(self.norm, self.epsilon)
        point = threat.far_start(self._start_keys(batch), batch.images)
        targets = self._targets(logits_fn, batch)
        here, logits = self._evaluate(logits_fn, batch, targets, point, 2)
        broken = self._broken(logits_fn, batch, point, logits, 2)
        eta = jnp.full_like(here.loss, 2 * self.epsilon)
        period = jnp.full_like(batch.iteration, jnp.maximum(22 * self.steps // 100, 1))
        # With `halved` true, only the share of rises can fail the first period.
        window = _window(period, jnp.ones_like(broken), here.loss)
        given_up = jnp.zeros_like(broken)
        return State(point, broken, here, point, here, eta, window, targets, given_up)

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
            given_up=checkpoint & ~broken & self._is_hopeless(window, best.loss),
        )

    def _move(self, batch, state):
        """Return x^(k+1), from the gradient at x^(k) and the step that led there."""
        threat = make_threat(self.norm, self.epsilon)
        x, x_old = state.here.point, state.previous
        eta = state.step_size[:, None, None, None]
        first = (batch.iteration == 0)[:, None, None, None]
        alpha = jnp.where(first, 1.0, _GRADIENT_PART)
        z = threat.inside(batch.images, threat.advance(x, state.here.gradient, eta))
        moved = x + alpha * (z - x) + (1 - alpha) * (x - x_old)
        return threat.inside(batch.images, moved)

    def _should_halve(self, window, best_loss):
        """Return whether condition 1 (too few steps raised the loss) or condition 2
        (neither eta nor f_max changed) holds."""
        rises, steps = (n.astype(jnp.float32) for n in (window.rises, window.steps))
        stuck = ~window.halved & (best_loss == window.best_loss)
        return (rises < self.rho * steps) | stuck

    def _is_hopeless(self, window, best_loss):
        """Return whether the boundary is too far for what the rises to come can add."""
        if self.reach is None:
            return jnp.zeros_like(window.halved)
        return -best_loss > self.reach * (best_loss - window.best_loss)


def auto_pgd(norm: str, *, rho: Real = 0.75, **fields) -> APGD | SparseAPGD:
    """Return the Auto-PGD of a norm; L1 has one of its own, without `rho`."""
    if norm == SparseAPGD.norm:
        return SparseAPGD(**fields)
    return APGD(norm, rho=rho, **fields)


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
    samples: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Outcome:
    """Attack with Auto-PGD (Croce & Hein, ICML 2020, Algorithm 1).

    The step size starts at 2 epsilon and adapts; no step size is to be chosen. The start
    is a random point at distance epsilon. In L1 this is L1-APGD (Croce & Hein, ICML 2021):
    sparse steps in balls of 3, 2 and 1 epsilon.

    Args:
        logits_fn: as for `pgd`.
        images: floats [n, h, w, c] in [0, 1].
        labels: n integers, an array or a list.
        norm: 'linf', 'l2' or 'l1'.
        epsilon: the radius of the ball in [0, 1] pixels, such as `8 / 255`.
        steps: the number of steps, each one forward and one backward pass.
        restarts: the number of random starts; an image is broken if one succeeds.
        loss: 'cross-entropy', 'margin' or 'dlr'.
        goal: 'untargeted', or 'multi-target' for the `targets` likeliest other classes in
            turn. Any misclassification counts.
        targets: the number of targets, reduced to the number of other classes.
        rho: the share of rises below which the step size is halved; not used in L1.
        samples: as for `pgd`, for a randomised model.
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
    attack = auto_pgd(
        norm,
        epsilon=epsilon,
        steps=steps,
        restarts=restarts,
        targets=targets,
        loss=loss,
        goal=goal,
        rho=rho,
        samples=samples,
    )
    options = {"batch_size": batch_size, "seed": seed}
    return run_one("apgd", attack, logits_fn, images, labels, **options)


def _window(period, halved, best_loss):
    """Return the window that a checkpoint opens."""
    none = jnp.zeros_like(period)
    return Window(period, none, none, halved, best_loss)
