"""Bounds of every output of a function, and points of a ball, for the tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from freeadv_jax.certify.ball import BALLS
from freeadv_jax.certify.bounds import Bounds
from freeadv_jax.certify.graph import trace


@functools.partial(jax.jit, static_argnums=(0,), static_argnames=("norm", "backward"))
def enclosure(function, images, epsilons, *, norm, backward):
    """Return lower and upper bounds of the outputs [k] for images and their epsilons."""

    def of_one(image, epsilon):
        graph = trace(function, image)
        ball = BALLS[norm](image, epsilon)
        bounds = Bounds(graph, ball, backward=backward, rows=7)
        rows = jnp.eye(graph.output.entries, dtype=image.dtype)
        forward = not backward
        low = bounds.lower(rows, forward=forward)
        high = -bounds.lower(-rows, forward=forward)
        return low, high, bounds.are_finite()

    return jax.vmap(of_one)(images, epsilons)


def points(image, epsilon, *, norm, count, seed):
    """Return points of the ball within [0, 1]: the image, corners, and points between."""
    draw = np.random.default_rng(seed)
    shape = (count, *image.shape)
    shift = draw.uniform(-1, 1, shape)
    shift[::2] = np.sign(shift[::2])
    if norm == "l2":
        shift = draw.normal(size=shape)
        lengths = np.sqrt(np.square(shift).sum((1, 2, 3), keepdims=True))
        shift = shift / lengths * draw.uniform(0.5, 1 - 1e-6, (count, 1, 1, 1))
    shift[0] = 0
    moved = np.clip(np.float64(image) + epsilon * shift, 0, 1).astype(image.dtype)
    if norm == "linf":
        moved = np.clip(moved, image - epsilon, image + epsilon)
    return np.clip(moved, 0, 1)
