"""Bounds of the margins to train on: functions of the weights that have a gradient.

Inside a training step they are one more function of its arrays, without a check, a program of
their own or an allowance for rounding. `interval` and `crown` certify the model afterwards.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from freeadv_jax.certify.ball import BALLS
from freeadv_jax.certify.bounds import Bounds
from freeadv_jax.certify.graph import trace
from freeadv_jax.certify.rounding import uncounted
from freeadv_jax.devices import onednn
from freeadv_jax.errors import require_choice
from freeadv_jax.models.fast_conv import with_fast_convolutions


class Margins(NamedTuple):
    """Hold lower bounds of the logit of the label minus that of each class, [b, k].

    interval   by interval bound propagation, IBP
    crown_ibp  by CROWN from the intervals of IBP, or None
    """

    interval: Array
    crown_ibp: Array | None


def margins(
    logits_fn: Callable,
    images: Float[Array, "b h w c"],
    labels: Int[Array, " b"],
    *,
    norm: str,
    epsilon: Float[Array, ""] | float,
    crown: bool,
) -> Margins:
    """Return bounds of the margins in the ball around each image.

    `logits_fn` maps images in [0, 1] to logits [b, k], each image by itself; the bounds have
    gradients in the arrays that it closes over. The entry of the label itself is 0.
    `epsilon` may be traced, and `crown_ibp` is computed with `crown`. Raise InputError for a
    primitive without a rule, and for a norm other than 'linf' and 'l2'.
    """
    require_choice("norm", norm, BALLS)

    def of_one(image, label):
        with uncounted():
            graph = trace(logits_fn, image)
            ball = BALLS[norm](image, jnp.asarray(epsilon, image.dtype))
            bounds = Bounds(graph, ball, backward=False, rows=1)
            identity = jnp.eye(graph.output.entries, dtype=graph.output.dtype)
            rows = identity[label] - identity
            by_interval = bounds.lower(rows, forward=True)
            by_crown = bounds.lower(rows, forward=False) if crown else None
            return Margins(by_interval, by_crown)

    def of_all(images, labels):
        # The rules know XLA's convolutions. Those that are chosen take their places below.
        with onednn.kernels(onednn.XLA):
            return jax.vmap(of_one)(images, labels)

    return with_fast_convolutions(of_all, kernels=None)(images, labels)
