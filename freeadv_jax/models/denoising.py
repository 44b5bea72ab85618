"""Feature denoising blocks: Xie et al. (CVPR 2019)."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Denoising(nn.Module):
    """Add to features `[b, h, w, c]` a denoised copy of them, of the same shape.

    The copy is the non-local mean in its embedded Gaussian form, the authors' choice: for
    features x_i of the n = h * w places of an image

        y_i = sum over j of softmax_j(theta(x_i) . phi(x_j) / sqrt(d)) * x_j
        output_i = x_i + BN(W y_i)

    where theta and phi are 1x1 convolutions to d = c / 2 channels and W is one to c
    channels. The scale of BN begins at 0, and the block as the identity. It takes memory
    for n * n numbers an image.
    """

    conv: Callable[..., nn.Module]
    normalize: Callable[..., Any]

    @nn.compact
    def __call__(self, features: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = features.shape
        embed = nn.initializers.normal(0.01)
        theta, phi = (
            self.conv(c // 2, 1, kernel_init=embed, name=name)(features)
            for name in ("theta", "phi")
        )
        similarity = jnp.einsum(
            "bic,bjc->bij", _places(theta), _places(phi), preferred_element_type=float
        )
        weights = jax.nn.softmax(similarity / (c // 2) ** 0.5, axis=-1)
        places = _places(features)
        mean = jnp.einsum("bij,bjc->bic", weights.astype(places.dtype), places)
        denoised = self.conv(c, 1, name="output")(mean.reshape(b, h, w, c))
        return features + self.normalize(denoised, initial_scale=0.0)


def _places(features):
    """Features [b, h, w, c] as [b, h * w, c]."""
    return features.reshape(features.shape[0], -1, features.shape[-1])
