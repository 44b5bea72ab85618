"""Bit depth: Guo et al. (ICLR 2018), input transformations; the gradient is shattered.

Rounding has a gradient of zero almost everywhere. BPDA with the identity breaks it
completely (Athalye et al., ICML 2018): 0 % are left.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.attacks.bpda import bpda
from freeadv_jax.gallery.defence import Defence, Defended, before, by_pgd


def reduce_bit_depth(
    images: Float[Array, "b h w c"], bits: int = 3
) -> Float[Array, "b h w c"]:
    """Return images in [0, 1] with each value rounded to one of 2**bits levels."""
    steps = 2**bits - 1
    return jnp.round(images * steps) / steps


def _build(task):
    network = task.natural.logits_fn
    through = before(bpda(reduce_bit_depth), network)
    return Defended(
        before(reduce_bit_depth, network),
        {
            "BPDA": by_pgd(through),
            "BPDA on the margin": by_pgd(through, loss="margin"),
        },
        shown=reduce_bit_depth,
    )


DEFENCE = Defence(
    name="bit-depth",
    title="Bit depth",
    paper="Guo et al., ICLR 2018",
    kind="shattered gradients",
    parameters="3 bits",
    broken_by="BPDA with the identity",
    masks=True,
    published=0.0,
    build=_build,
)
