"""Random points of the ball: what an attack must beat that looks at gradients."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from freeadv_jax.attacks.attack import Batch, Count, misclassified, where
from freeadv_jax.attacks.losses import margin
from freeadv_jax.attacks.threat import Real, Threat

# In L-inf a draw is of cells of so many pixels a side.
_CELLS = (1, 2, 4)


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
        threat = Threat(self.norm, self.epsilon)
        keys = jax.vmap(jax.random.fold_in)(batch.keys, batch.iteration)
        if self.norm == "linf":
            noise = self.epsilon * jax.vmap(_corner, (0, 0, None))(
                keys, batch.iteration, batch.images.shape[1:]
            )
        else:
            noise = threat.random_start(keys, batch.images.shape[1:])
        points = threat.inside(batch.images, batch.images + noise)
        logits = logits_fn(points)
        broken = self.success(logits, batch.labels)
        loss = margin(logits, batch.labels)
        return where(broken | (loss > state.loss), State(points, broken, loss), state)


def _corner(
    key: Key[Array, ""], iteration: Count, shape: tuple[int, int, int]
) -> Float[Array, "h w c"]:
    """A corner of the cube [-1, 1], constant over cells of the size that is next."""
    cell = jnp.asarray(_CELLS)[iteration % len(_CELLS)]
    signs = jax.random.rademacher(key, shape, jnp.float32)
    rows, columns = (jnp.arange(side) // cell for side in shape[:2])
    return signs[rows][:, columns]
