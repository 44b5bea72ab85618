"""An attack by random points of the ball, which every attack by gradients must beat."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from freeadv_jax.attacks.attack import (
    FORWARD,
    Batch,
    Count,
    misclassified,
    where,
)
from freeadv_jax.attacks.draws import confirmed, mean_logits
from freeadv_jax.attacks.losses import margin
from freeadv_jax.attacks.threat import Real, make_threat


class State(NamedTuple):
    """Hold the point of the largest margin so far, and that margin in `loss`."""

    adversarial: Float[Array, "b h w c"]
    broken: Bool[Array, " b"]
    loss: Float[Array, " b"]


@dataclasses.dataclass(frozen=True)
class Noise:
    """Try `steps` random points of the ball, each one forward pass, and keep the worst.

    The points are those of `Threat.wide_noise`: uniform for L2, which in so many
    dimensions means near the surface, and corners of the ball for L-inf, where uniform
    points are weak. With `samples` the model is randomised, see `draws`.
    """

    norm: str
    epsilon: Real
    steps: Count
    restarts: Count = 1
    samples: Count | None = None

    @property
    def attempts(self):
        """Return the number of restarts."""
        return self.restarts

    def success(self, logits, labels):
        """Return where the image is misclassified."""
        return misclassified(logits, labels)

    def passes(self, num_classes):
        """Return what the start and a step take; the start evaluates nothing."""
        return 0, (self.samples or 1) * FORWARD

    def start(self, logits_fn: Callable, batch: Batch) -> State:
        """Return the state before any point; the model is not evaluated."""
        nothing = jnp.full(batch.labels.shape, -jnp.inf, jnp.float32)
        return State(batch.images, jnp.zeros(batch.labels.shape, bool), nothing)

    def step(self, logits_fn: Callable, batch: Batch, state: State) -> State:
        """Return the state after one more random point."""
        threat = make_threat(self.norm, self.epsilon)
        keys = jax.vmap(jax.random.fold_in)(batch.keys, batch.iteration)
        noise = threat.wide_noise(keys, batch.iteration, batch.images.shape[1:])
        points = threat.inside(batch.images, batch.images + noise)
        how = points, batch, batch.iteration, self.samples
        logits = mean_logits(logits_fn, *how)
        broken = self.success(logits, batch.labels)
        broken = confirmed(broken, self.success, logits_fn, *how)
        loss = margin(logits, batch.labels)
        return where(broken | (loss > state.loss), State(points, broken, loss), state)
