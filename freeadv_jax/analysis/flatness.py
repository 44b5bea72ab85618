"""The flatness of the loss around images: on planes through one, and as two numbers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.pgd import projected_ascent
from freeadv_jax.attacks.threat import NORMS, make_threat

# Grid points in one forward pass.
_POINTS_PER_PASS = 128
# The ascents to the highest loss and to the largest error: 50 steps of 0.1 epsilon.
STEPS, _STEP = 50, 0.1


@jax.jit
def loss_grid(
    logits_fn: Callable,
    image: Float[Array, "h w c"],
    label: Int[Array, ""],
    directions: Float[Array, "2 h w c"],
    coordinates: Float[Array, " k"],
) -> Float[Array, "k k"]:
    """Return the cross-entropy at image + a * directions[0] + b * directions[1].

    Rows are a, columns b, both taken from `coordinates`. Points are not clipped to
    [0, 1], which would bend the plane. The whole grid is one call that needs the memory
    of about a hundred images.
    """

    def loss(point):
        shift = jnp.tensordot(point, directions, axes=1)
        return cross_entropy(logits_fn((image + shift)[None]), label[None])[0]

    a, b = jnp.meshgrid(coordinates, coordinates, indexing="ij")
    points = jnp.stack([a.ravel(), b.ravel()], axis=1)
    losses = jax.lax.map(loss, points, batch_size=_POINTS_PER_PASS)
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
    """Return for each image 'rise' and 'error' f32[b], and 'worst' f32[b, h, w, c].

    The rise is the largest loss within the ball and [0, 1], minus the loss of the image.
    The error is the largest |loss(x + d) - loss(x) - d . gradient(x)| there, which is
    gamma of Qin et al. (NeurIPS 2019) and 0 where the loss is linear. Both are lower
    bounds: the better of two ascents from a random start, one for each. `worst` is the
    perturbation where the ascent on the loss ends.
    """
    ball = make_threat(norm, epsilon)

    def loss(points):
        return cross_entropy(logits_fn(points), labels)

    def sum_over_pixels(values):
        return values.sum(axis=(1, 2, 3))

    loss_at_images = loss(images)
    gradient = jax.grad(lambda points: loss(points).sum())(images)

    def rise(points):
        return loss(points) - loss_at_images

    def error(points):
        return jnp.abs(rise(points) - sum_over_pixels((points - images) * gradient))

    start = ball.random_start(keys, images.shape[1:])
    ends = {
        name: projected_ascent(
            objective,
            images,
            start,
            threat=ball,
            steps=STEPS,
            step_size=_STEP * epsilon,
        )
        for name, objective in (("rise", rise), ("error", error))
    }
    return {
        "rise": jnp.maximum(rise(ends["rise"]), rise(ends["error"])),
        "error": jnp.maximum(error(ends["rise"]), error(ends["error"])),
        "worst": ends["rise"] - images,
    }


def random_direction(seed: int, shape, *, norm: str, epsilon: float) -> np.ndarray:
    """Return a Rademacher direction f32[h, w, c] that reaches the edge of the ball."""
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=shape)
    length = NORMS[norm].box_radius(shape)
    return (epsilon / length * signs).astype(np.float32)
