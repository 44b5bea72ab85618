"""L1-APGD: sparse steps, of which fewer and fewer pixels take part, in shrinking balls."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from freeadv_jax.attacks.attack import Batch, Count, where
from freeadv_jax.attacks.auto_pgd import AutoPGD, Evaluated
from freeadv_jax.attacks.levels import lowest_level
from freeadv_jax.attacks.threat import L1, Real

# The radii of the three phases, in epsilons.
_RADII = (3.0, 2.0, 1.0)
# The perturbation became sparser if it has less than this percentage of its pixels.
_FEWER = 95
# A step size is divided by the first number, and never by more than the second in all.
_SHORTER, _SHORTEST = 1.5, 10.0


class State(NamedTuple):
    """Hold the walk in the ball of the phase. `adversarial` is the image until the last.

    `step_size` is in radii of the ball, and `pixels` is the number of pixel values that
    `best` changed at the last checkpoint.
    """

    adversarial: Float[Array, "b h w c"]
    broken: Bool[Array, " b"]
    here: Evaluated
    best: Evaluated
    step_size: Float[Array, " b"]
    pixels: Int[Array, " b"]
    targets: Int[Array, " b"]


@dataclasses.dataclass(frozen=True)
class SparseAPGD(AutoPGD):
    """Define L1-APGD (Croce & Hein, ICML 2021, "Mind the box", section 4); see `apgd`.

    A step moves the pixels of the largest gradient equally far, of those that can move
    (the paper also counts pixels at the end of the box), and the projection is that onto
    the intersection of ball and box. The number of pixels follows that of the best
    perturbation. The first 30 % of the steps are made in the ball of 3 epsilon, the next
    30 % in that of 2 epsilon; a phase begins at the best point of the one before,
    projected, which takes a step. A checkpoint follows every 4 % of a phase, as in the
    authors' fra31/auto-attack.
    """

    epsilon: Real
    steps: Count = 100
    restarts: Count = 1
    targets: Count = 1
    loss: str = "cross-entropy"
    goal: str = "untargeted"
    samples: Count | None = None

    norm: ClassVar[str] = L1.norm

    def start(self, logits_fn: Callable, batch: Batch) -> State:
        """Return the state at the point of the first ball that is nearest to noise."""
        phase = self._phase(jnp.full_like(batch.iteration, -1))
        ball = self._ball(phase, batch.images)
        point = ball.far_start(self._start_keys(batch), batch.images)
        targets = self._targets(logits_fn, batch)
        here, logits = self._evaluate(logits_fn, batch, targets, point, 2)
        broken = self._broken(logits_fn, batch, point, logits, 2) & (phase == 2)
        adversarial = where(phase == 2, point, batch.images)
        length, pixels = jnp.ones_like(here.loss), _changed(batch.images, point)
        return State(adversarial, broken, here, here, length, pixels, targets)

    def step(self, logits_fn: Callable, batch: Batch, state: State) -> State:
        """Return the state one step further, after a checkpoint if one is due."""
        phase = self._phase(batch.iteration)
        begins = phase != self._phase(batch.iteration - 1)
        ball = self._ball(phase, batch.images)
        moved = self._ascend(phase, state)
        moved = where(begins, state.best.point, moved)
        point, number = ball.inside(batch.images, moved), batch.iteration + 3
        new, logits = self._evaluate(logits_fn, batch, state.targets, point, number)
        last = phase == 2
        broken = self._broken(logits_fn, batch, point, logits, number) & last
        best = where(begins | (new.loss > state.best.loss), new, state.best)

        pixels = _changed(batch.images, best.point)
        sparser = 100 * pixels < _FEWER * state.pixels
        checkpoint = self._is_checkpoint(phase, batch.iteration) & ~begins
        shorter = jnp.maximum(state.step_size / _SHORTER, 1 / _SHORTEST)
        length = jnp.where(sparser, 1.0, shorter)
        length = jnp.where(checkpoint, length, state.step_size)
        return State(
            adversarial=where(
                broken, point, where(last, best.point, state.adversarial)
            ),
            broken=broken,
            here=where(checkpoint & sparser, best, new),
            best=best,
            step_size=jnp.where(begins, 1.0, length),
            pixels=jnp.where(checkpoint | begins, pixels, state.pixels),
            targets=state.targets,
        )

    def _ascend(self, phase, state):
        """Return the point after a step in the signs of the largest gradients."""
        gradient, point = state.here.gradient, state.here.point
        # A pixel at the end of the box would take a place and not move.
        free = jnp.where(gradient > 0, point < 1, point > 0)
        slope = jnp.where(free, jnp.abs(gradient), 0).reshape(len(gradient), -1)
        # Two thirds of the pixels of the best perturbation, rounded up.
        most = jnp.maximum((2 * state.pixels + 2) // 3, 1)[:, None]

        def few(level):
            chosen = jnp.sum(slope > level, axis=1, keepdims=True, dtype=jnp.int32)
            return chosen < most

        # Pixels of the same gradient as the last one move too.
        moving = (slope >= lowest_level(few, slope[:, :1])) & (slope > 0)
        count = jnp.maximum(jnp.sum(moving, axis=1, dtype=jnp.int32), 1)
        radius = self._radius(phase, gradient)
        length = state.step_size * radius / count.astype(slope.dtype)
        step = jnp.where(moving.reshape(gradient.shape), jnp.sign(gradient), 0)
        return point + length[:, None, None, None] * step

    def _ball(self, phase, images):
        return L1(self._radius(phase, images)[:, None, None, None])

    def _radius(self, phase, like):
        return self.epsilon * jnp.asarray(_RADII, like.dtype)[phase]

    @property
    def _first_steps(self):
        """Return the steps of each of the first two phases; the last has at least one."""
        early = -(-jnp.asarray(self.steps) * 3 // 10)
        return jnp.minimum(early, jnp.maximum(self.steps - 1, 0) // 2)

    def _phase(self, iteration):
        """Return the phase, 0 to 2, in which a step is made; the start is step -1."""
        early, made = self._first_steps, jnp.maximum(iteration, 0)
        return jnp.where(made < early, 0, jnp.where(made < 2 * early, 1, 2))

    def _is_checkpoint(self, phase, iteration):
        early = self._first_steps
        length = jnp.where(phase == 2, self.steps - 2 * early, early)
        made = iteration - phase * early + 1
        return made % jnp.maximum(4 * length // 100, 1) == 0


def _changed(images, points):
    """Return how many pixel values of each image differ."""
    axes = (1, 2, 3)
    return jnp.sum(points != images, axis=axes, dtype=jnp.int32)
