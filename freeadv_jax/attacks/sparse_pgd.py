"""Sparse PGD: which pixels change is ascended apart from how they change."""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from freeadv_jax.attacks.attack import Batch, Count, misclassified, where
from freeadv_jax.attacks.draws import confirmed, evaluated
from freeadv_jax.attacks.losses import untargeted_loss
from freeadv_jax.attacks.threat import L0, Real

# The step of the mask, times the square root of the number of pixels; of the paper.
_MASK_STEP = 0.25
# The mask is drawn anew after so many steps in which the same pixels were chosen.
_PATIENCE = 3


class State(NamedTuple):
    """Hold the best point so far in `adversarial`, and the walk.

    `values` are the perturbations of all pixels, inside the box; `scores` choose the
    pixels that take part, and `stuck` counts the steps in which they stayed the same.
    """

    adversarial: Float[Array, "b h w c"]
    broken: Bool[Array, " b"]
    loss: Float[Array, " b"]
    values: Float[Array, "b h w c"]
    scores: Float[Array, "b h w"]
    gradient: Float[Array, "b h w c"]
    stuck: Int[Array, " b"]


@dataclasses.dataclass(frozen=True)
class SparsePGD:
    """Define sparse PGD (Zhong et al., ICML 2024, Algorithm 1); see `pgd`.

    The perturbation is p times a mask of the pixels with the largest scores. p steps by
    `step_size` in the sign of its gradient: of all pixels in even attempts (the paper's
    unprojected gradient), of the chosen ones in odd attempts. The scores ascend by the
    gradient of the mask through a sigmoid, and are drawn anew where three steps choose the
    same pixels. With `samples` the model is randomised, see `draws`.
    """

    epsilon: Real
    steps: Count
    step_size: Real
    restarts: Count = 1
    loss: str = "cross-entropy"
    samples: Count | None = None

    norm: ClassVar[str] = L0.norm
    norms: ClassVar[tuple[str, ...]] = (L0.norm,)
    # Both `pgd` and `attack_by_name` offer no other goal here.
    goal: ClassVar[str] = "untargeted"

    @property
    def attempts(self):
        """Return the number of restarts."""
        return self.restarts

    def success(self, logits, labels):
        """Return where the image is misclassified."""
        return misclassified(logits, labels)

    def passes(self, num_classes):
        """Return what the start and a step take: a pass for each draw."""
        draws = self.samples or 1
        return draws, draws

    def start(self, logits_fn: Callable, batch: Batch) -> State:
        """Return the state at random values of random pixels."""
        shape = batch.images.shape[1:]

        def draw(key):
            return jax.random.uniform(jax.random.fold_in(key, 0), shape)

        values = jax.vmap(draw)(batch.keys) - batch.images
        scores = _scores(batch, 0)
        point = self._point(batch.images, values, scores)
        loss, broken, gradient = self._evaluate(logits_fn, batch, point, 1)
        stuck = jnp.zeros_like(batch.iteration)
        return State(point, broken, loss, values, scores, gradient, stuck)

    def step(self, logits_fn: Callable, batch: Batch, state: State) -> State:
        """Return the state after one step of the values and the scores."""
        images, gradient = batch.images, state.gradient
        mask = L0(self.epsilon).mask(state.scores)
        everywhere = (batch.attempt % 2 == 0)[:, None, None, None]
        ascent = jnp.where(everywhere | mask, jnp.sign(gradient), 0)
        values = state.values + self.step_size * ascent
        values = jnp.clip(values, -images, 1 - images)

        open_part = jax.nn.sigmoid(state.scores)
        slope = jnp.sum(gradient * state.values, axis=-1) * open_part * (1 - open_part)
        # Scaled first: the squares of a confident model's gradient would underflow.
        largest = jnp.max(jnp.abs(slope), axis=(1, 2), keepdims=True)
        slope = slope / jnp.where(largest > 0, largest, 1)
        length = jnp.sqrt(jnp.sum(jnp.square(slope), axis=(1, 2), keepdims=True))
        length = jnp.where(length > 0, length, 1)
        size = _MASK_STEP * math.sqrt(math.prod(images.shape[1:3]))
        scores = state.scores + size * slope / length

        same = jnp.all(L0(self.epsilon).mask(scores) == mask, axis=(1, 2, 3))
        stuck = jnp.where(same, state.stuck + 1, 0)
        again = stuck >= _PATIENCE
        scores = where(again, _scores(batch, batch.iteration + 1), scores)
        stuck = jnp.where(again, 0, stuck)

        point, number = self._point(images, values, scores), batch.iteration + 2
        loss, broken, gradient = self._evaluate(logits_fn, batch, point, number)
        better = broken | (loss > state.loss)
        best, loss = where(better, (point, loss), (state.adversarial, state.loss))
        return State(best, broken, loss, values, scores, gradient, stuck)

    def _point(self, images, values, scores):
        chosen = L0(self.epsilon).mask(scores)
        return jnp.where(chosen, jnp.clip(images + values, 0, 1), images)

    def _evaluate(self, logits_fn, batch, point, number):
        """Return loss, success and gradient at a point; `number` selects the draws."""
        chosen = untargeted_loss(self.loss, randomized=self.samples is not None)
        losses, logits, gradient = evaluated(
            logits_fn,
            lambda logits: chosen(logits, batch.labels),
            point,
            batch,
            number,
            self.samples,
        )
        found = self.success(logits, batch.labels)
        how = logits_fn, point, batch, number, self.samples
        return losses, confirmed(found, self.success, *how), gradient


def _scores(batch, number):
    """Return normal scores for each pixel; each number has draws of its own."""
    number = jnp.broadcast_to(jnp.asarray(number, jnp.int32), batch.keys.shape)

    def draw(key, number):
        key = jax.random.fold_in(jax.random.fold_in(key, 1), number)
        return jax.random.normal(key, batch.images.shape[1:3])

    return jax.vmap(draw)(batch.keys, number)
