"""How flat the loss is around images: on planes through one, and as two numbers each."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.pgd import projected_ascent
from freeadv_jax.attacks.threat import make_threat

# Grid points in one pass of the network.
_POINTS_A_PASS = 128
# Of the ascents that look for the highest point and for the largest error, the step
# in epsilons: 5 of them in all.
STEPS, _STEP = 50, 0.1


@jax.jit
def loss_grid(
    logits_fn: Callable,
    image: Float[Array, "h w c"],
    label: Int[Array, ""],
    directions: Float[Array, "2 h w c"],
    coordinates: Float[Array, " k"],
) -> Float[Array, "k k"]:
    """Cross-entropy at image + a * directions[0] + b * directions[1], a the row.

    The points of the plane as they are: clipping to the pixel box would bend it. The
    whole grid is one call, in the memory of a hundred images.
    """

    def loss(point):
        shift = jnp.tensordot(point, directions, axes=1)
        return cross_entropy(logits_fn((image + shift)[None]), label[None])[0]

    a, b = jnp.meshgrid(coordinates, coordinates, indexing="ij")
    points = jnp.stack([a.ravel(), b.ravel()], axis=1)
    losses = jax.lax.map(loss, points, batch_size=_POINTS_A_PASS)
    return losses.reshape(a.shape)


@jax.jit(static_argnames=("norm", "epsilon"))
def flatness(
    logits_fn: Callable,
    images: Float[Array, "b h w c"],
    labels: Int[Array, " b"],
    keys: Key[Array, " b"],
    *,
    norm: str,
    epsilon: float,
) -> dict[str, Array]:
    """For each image the 'rise' and the 'error' f32[b], and the 'worst' point's shift.

    The rise is the largest loss in the ball and the pixel box, less that of the image.
    The error is the largest |loss(x + d) - loss(x) - d . gradient(x)| there, gamma of
    Qin et al. (NeurIPS 2019): 0 where the loss is linear. Both are the
    best of two ascents from a random start, one for each, so from below.
    """
    ball = make_threat(norm, epsilon)

    def loss(points):
        return cross_entropy(logits_fn(points), labels)

    def of_image(values):
        return values.sum(axis=(1, 2, 3))

    here = loss(images)
    gradient = jax.grad(lambda points: loss(points).sum())(images)

    def rise(points):
        return loss(points) - here

    def error(points):
        return jnp.abs(rise(points) - of_image((points - images) * gradient))

    start = ball.random_start(keys, images.shape[1:])
    ends = {
        of: projected_ascent(
            objective,
            images,
            start,
            threat=ball,
            steps=STEPS,
            step_size=_STEP * epsilon,
        )
        for of, objective in (("rise", rise), ("error", error))
    }
    return {
        "rise": jnp.maximum(rise(ends["rise"]), rise(ends["error"])),
        "error": jnp.maximum(error(ends["rise"]), error(ends["error"])),
        "worst": ends["rise"] - images,
    }


def random_direction(seed: int, shape, *, norm: str, epsilon: float) -> np.ndarray:
    """A Rademacher direction that reaches the edge of the ball: f32[h, w, c]."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=shape)
    length = 1.0 if norm == "linf" else np.sqrt(signs.size)
    return (epsilon / length * signs).astype(np.float32)
