"""Thermometer encoding: Buckman et al. (ICLR 2018); the gradient is shattered.

Each channel is coded in 8 bits, of which bit k says whether the value is above a threshold.
The code has a gradient of zero. BPDA with a ramp for each threshold breaks it completely
(Athalye et al., ICML 2018): 0 % are left without adversarial training.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.attacks.bpda import bpda
from freeadv_jax.gallery.defence import Defence, Defended, by_pgd
from freeadv_jax.models.interface import logits_functions
from freeadv_jax.models.normalized import NormalizedNetwork

LEVELS = 8


def thermometer(
    images: Float[Array, "b h w c"], levels: int = LEVELS
) -> Float[Array, "b h w bits"]:
    """Return the code of images in [0, 1]: bit k of a value is 1 where it exceeds k / levels."""
    bits = images[..., None] > jnp.arange(levels, dtype=float) / levels
    return bits.reshape(*images.shape[:3], -1).astype(images.dtype)


def ramps(
    images: Float[Array, "b h w c"], levels: int = LEVELS
) -> Float[Array, "b h w bits"]:
    """Return the code with each step replaced by a ramp from its threshold upwards.

    This is the stand-in of Athalye et al.: min(max(x - k / levels, 0), 1).
    """
    rises = jnp.clip(images[..., None] - jnp.arange(levels, dtype=float) / levels, 0, 1)
    return rises.reshape(*images.shape[:3], -1)


def narrow_ramps(
    images: Float[Array, "b h w c"], levels: int = LEVELS
) -> Float[Array, "b h w bits"]:
    """Return the code with each step replaced by a ramp of one level's width around it.

    Only the bit nearest to a value then has a gradient: where epsilon is smaller than a
    level, the others cannot change.
    """
    bits = levels * images[..., None] - jnp.arange(levels, dtype=float)
    return jnp.clip(bits + 0.5, 0, 1).reshape(*images.shape[:3], -1)


class Encoded(nn.Module):
    """Apply `network` to the code of images, in place of a normalisation."""

    network: nn.Module
    encode: Callable

    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b classes"]:
        return self.network(self.encode(images), train=train)


def _build(task):
    def network(encode):
        centred = NormalizedNetwork(task.bare_network(), "mean_std", (0.5,), (0.5,))
        return Encoded(centred, encode)

    trained = task.fit("thermometer", method="natural", model=network(thermometer))

    def through(stand_in):
        smooth = network(bpda(thermometer, stand_in))
        return logits_functions(smooth)(trained.variables)

    return Defended(
        trained.logits_fn,
        {
            "BPDA with ramps": by_pgd(through(ramps)),
            "BPDA with narrow ramps": by_pgd(through(narrow_ramps)),
        },
    )


DEFENCE = Defence(
    name="thermometer",
    title="Thermometer encoding",
    paper="Buckman et al., ICLR 2018",
    kind="shattered gradients",
    parameters=f"{LEVELS} levels",
    broken_by="BPDA with a ramp for each threshold",
    masks=True,
    published=0.0,
    build=_build,
)
