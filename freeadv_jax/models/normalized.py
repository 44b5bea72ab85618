"""A network with its input normalisation: images in [0, 1] in, logits out."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class NormalizedNetwork(nn.Module):
    """Apply `network` to normalised images, so that attacks see pixels in [0, 1].

    'per_image' is TensorFlow's per_image_standardization, as in the paper's CIFAR runs.
    'mean_std' subtracts `mean` and divides by `std`, each one number or one per channel.
    With `remat` only the outputs of convolutions and dense layers are kept for the backward
    pass, which computes the rest again: less memory for a little arithmetic.
    """

    network: nn.Module
    normalization: Literal["per_image", "mean_std"]
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    remat: bool = False

    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b classes"]:
        images = images.astype(jnp.float32)
        if self.normalization == "per_image":
            images = standardize_per_image(images)
        else:
            mean = jnp.asarray(self.mean, jnp.float32)
            images = (images - mean) / jnp.asarray(self.std, jnp.float32)
        if not self.remat:
            return self.network(images, train=train)
        rematerialized = nn.remat(
            lambda network, images: network(images, train=train), policy=_kept
        )
        return rematerialized(self.network, images)


def _convolutions(primitive, *_, **__):
    # XLA's, and oneDNN's with its rules for gradients and vmap.
    return primitive.name in (
        "conv_general_dilated",
        "custom_vjp_call",
        "custom_vmap_call",
    )


# Products with batch axes are those of attention: large, and quickly computed again.
_kept = jax.checkpoint_policies.save_from_both_policies(
    _convolutions, jax.checkpoint_policies.dots_with_no_batch_dims_saveable
)


def standardize_per_image(
    images: Float[Array, "b h w c"],
) -> Float[Array, "b h w c"]:
    """Return (x - mean) / max(std, 1 / sqrt(h * w * c)) of each image.

    `std` is the population's. Source: tf.image.per_image_standardization.
    """
    pixels = images.shape[1] * images.shape[2] * images.shape[3]
    mean = jnp.mean(images, axis=(1, 2, 3), keepdims=True)
    variance = jnp.var(images, axis=(1, 2, 3), keepdims=True)
    # The bound is inside the root: a constant image has variance 0, where the gradient of
    # the root is infinite.
    return (images - mean) / jnp.sqrt(jnp.maximum(variance, 1 / pixels))
