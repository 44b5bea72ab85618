"""Projected gradient ascent inside the threat's ball and the pixel box [0, 1]."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from freeadv_jax.attacks.threat import Threat


def pgd(
    objective: Callable[[Float[Array, "b h w c"]], Float[Array, " b"]],
    images: Float[Array, "b h w c"],
    start: Float[Array, "b h w c"],
    *,
    threat: Threat,
    steps: int | Int[Array, ""],
    step_size: float | Float[Array, ""],
) -> Float[Array, "b h w c"]:
    """Adversarial images: the last iterate of `steps` ascents of `objective`.

    Madry et al. (ICLR 2018), section 2.1. `objective` maps images to one loss each,
    `start` is a perturbation inside the ball, `step_size` is in [0, 1] pixels. One
    step of size epsilon from a zero start is FGSM; no step at all gives `start`.
    `steps` may be traced: one compilation then serves any number of them.
    """

    def into_box(delta):
        return jnp.clip(images + delta, 0, 1) - images

    def ascend(_, delta):
        gradient = jax.grad(lambda delta: objective(images + delta).sum())(delta)
        return into_box(threat.ascend(delta, gradient, step_size))

    delta = jax.lax.fori_loop(0, steps, ascend, into_box(start))
    # images + (clip(...) - images) can round to one ulp outside the box.
    return jnp.clip(images + delta, 0, 1)
