"""The alignment of input gradients, which falls before single-step training collapses.

Where the loss is nearly linear around an image, a step of the attack leaves its gradient
as it was. Training whose attack takes one large step can learn to bend the loss inside
that step: robust accuracy then falls to 0 while the training loss falls too
(Andriushchenko & Flammarion, NeurIPS 2020). Teymourian et al. (SORA, ICML 2026) read the
bend, at no extra pass, from the gradient before a step and the gradient after it.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from freeadv_jax.attacks.threat import L2, Real
from freeadv_jax.training.state import TrainState

# The metric of a step, and its part of the running mean in the state, as in SORA's code.
ALIGNMENT = "alignment"
_WEIGHT = 0.05


def alignment(
    before: Float[Array, "b ..."], after: Float[Array, "b ..."]
) -> Float[Array, ""]:
    """Return the mean over the images of the cosine between two gradients of each.

    A gradient of 0 has the cosine 0 with every other.
    """
    return jnp.sum(L2.direction(before) * L2.direction(after)) / len(before)


def bounded_step(state: TrainState, step_size: Real, misalignment: float):
    """Return the step of the attack: shorter where the gradients are badly aligned.

    With v the running mean of the alignment it is

        step_size * min(1, misalignment / (1 - v))

    For `step_size` = 2 epsilon and `misalignment` = 0.02 this is the step of SORA, whose v
    is another measure of the same bend. With `misalignment` = 0 it is `step_size`.
    """
    if not misalignment:
        return step_size
    bend = 1 - state.alignment["mean"]
    return step_size * misalignment / jnp.maximum(bend, misalignment)


def with_alignment(
    state: TrainState,
    latest: Float[Array, ""],
    *,
    counts: bool | Bool[Array, ""] = True,
) -> TrainState:
    """Return the state with `latest` in its running mean, where it has one and it counts."""
    if not state.alignment:
        return state
    mean = state.alignment["mean"]
    moved = mean + jnp.where(counts, _WEIGHT * (latest - mean), 0.0)
    return state.replace(alignment={"mean": moved})
