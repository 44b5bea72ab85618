"""Random points of the ball: what an attack must beat that looks at gradients."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from freeadv_jax.attacks.attack import Batch, Count, misclassified, where
from freeadv_jax.attacks.losses import margin
from freeadv_jax.attacks.threat import Real, make_threat


class State(NamedTuple):
    """`adversarial` is the point of the largest margin so far, `loss` that margin."""

    adversarial: Float[Array, "b h w c"]
    broken: Bool[Array, " b"]
    loss: Float[Array, " b"]


@dataclasses.dataclass(frozen=True)
class Noise:
    """`steps` random points of the ball, a forward pass each, and the worst of them.

    For L2 they are uniform in the ball, which in so many dimensions is on its surface.
    For L-inf, where uniform points are weak, they are corners of the ball: cells of 1,
    2 or 4 pixels a side in turn, each channel of each at one end.
    """

    norm: str
    epsilon: Real
    steps: Count
    restarts: Count = 1

    @property
    def attempts(self):
        return self.restarts

    def success(self, logits, labels):
        return misclassified(logits, labels)

    def start(self, logits_fn: Callable, batch: Batch) -> State:
        nothing = jnp.full(batch.labels.shape, -jnp.inf, jnp.float32)
        return State(batch.images, jnp.zeros(batch.labels.shape, bool), nothing)

    def step(self, logits_fn: Callable, batch: Batch, state: State) -> State:
        threat = make_threat(self.norm, self.epsilon)
        keys = jax.vmap(jax.random.fold_in)(batch.keys, batch.iteration)
        noise = threat.wide_noise(keys, batch.iteration, batch.images.shape[1:])
        points = threat.inside(batch.images, batch.images + noise)
        logits = logits_fn(points)
        broken = self.success(logits, batch.labels)
        loss = margin(logits, batch.labels)
        return where(broken | (loss > state.loss), State(points, broken, loss), state)
