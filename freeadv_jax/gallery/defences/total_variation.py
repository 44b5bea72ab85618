"""Total variation: Guo et al. (ICLR 2018); the gradient is shattered and random.

Half of the pixels are dropped, and a solver looks for the smoothest image that agrees with
the others. BPDA with the identity, averaged over draws, breaks it completely (Athalye et
al., ICML 2018): 0 % are left. The network is trained on such images, as in the paper.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from freeadv_jax.attacks.bpda import bpda
from freeadv_jax.gallery.defence import Defence, Defended, before, by_pgd

SAMPLES = 10
# The solver. Total variation is rounded off below the last of these numbers.
_STEPS, _RATE, _MOMENTUM, _ROUNDED = 12, 0.25, 0.7, 0.05


def minimise_total_variation(
    images: Float[Array, "b h w c"],
    keys: Key[Array, " b"],
    keep: float = 0.5,
    weight: float = 0.03,
) -> Float[Array, "b h w c"]:
    """Return the smoothest images that agree with the pixels that are kept.

    Each pixel is kept with probability `keep`, drawn with its image's key. The result
    minimises half the squared distance to these pixels plus `weight` times the total
    variation, by gradient descent with momentum. The gradient through the solver is left out.
    """
    return solve(jax.lax.stop_gradient(images), keys, keep, weight)


def solve(
    images: Float[Array, "b h w c"],
    keys: Key[Array, " b"],
    keep: float = 0.5,
    weight: float = 0.03,
) -> Float[Array, "b h w c"]:
    """Return `minimise_total_variation` with the gradient of all steps of the solver."""
    height, width, _ = images.shape[1:]
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, keep, (height, width, 1)))(
        keys
    ).astype(images.dtype)

    def objective(points):
        down = jnp.diff(points, axis=1, append=points[:, -1:])
        right = jnp.diff(points, axis=2, append=points[:, :, -1:])
        variation = jnp.sqrt(down**2 + right**2 + _ROUNDED**2)
        return jnp.sum(0.5 * kept * (points - images) ** 2 + weight * variation)

    def descend(_, carried):
        points, before = carried
        moved = points + _MOMENTUM * (points - before)
        return moved - _RATE * jax.grad(objective)(points), points

    # A dropped pixel begins as the mean of its kept neighbours.
    near, share = (_sum_of_neighbours(values) for values in (kept * images, kept))
    begun = jnp.where(kept > 0, images, near / jnp.maximum(share, 1))
    points, _ = jax.lax.fori_loop(0, _STEPS, descend, (begun, begun))
    return jnp.clip(points, 0, 1)


def _sum_of_neighbours(values):
    return jax.lax.reduce_window(
        values, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME"
    )


def _smoothed(key, images):
    return minimise_total_variation(images, jax.random.split(key, len(images)))


def _build(task):
    network = task.tuned("total-variation", _smoothed).logits_fn
    adaptive = before(bpda(minimise_total_variation), network)
    # Each success on the way would be confirmed by 200 draws, each of them a solution.
    how = {"samples": SAMPLES, "last_iterate": True}
    return Defended(
        before(minimise_total_variation, network),
        {
            f"BPDA and EOT over {SAMPLES} draws": by_pgd(adaptive, **how),
            "EOT through the solver": by_pgd(before(solve, network), **how),
        },
        random=True,
        shown=minimise_total_variation,
    )


DEFENCE = Defence(
    name="total-variation",
    title="Total variation",
    paper="Guo et al., ICLR 2018",
    kind="shattered and random gradients",
    parameters="half of the pixels, weight 0.03",
    broken_by="BPDA with the identity and EOT, or EOT through the solver",
    masks=True,
    published=0.0,
    build=_build,
)
