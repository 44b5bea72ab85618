"""Batch normalisation whose statistics and arithmetic are float32 in every network."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


def batch_norm(
    images: Float[Array, "b h w c"],
    *,
    train: bool,
    epsilon: float,
    dtype: Any,
    axis_name: str | None,
) -> Float[Array, "b h w c"]:
    """A BatchNorm of the calling module (Ioffe & Szegedy 2015), averages' decay 0.9.

    `train` takes the batch's statistics, over all devices of the pmapped `axis_name`
    or, where that is None, over each device's own images. Returns `dtype`.
    """
    # Flax mixes bfloat16 images with float32 statistics, which strict dtype
    # promotion refuses.
    layer = nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=epsilon,
        axis_name=axis_name,
    )
    return layer(images.astype(jnp.float32)).astype(dtype)
