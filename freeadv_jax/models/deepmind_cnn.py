"""The three convolutional networks of Gowal et al. (2018), made for interval bounds."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.models.conv import Conv
from freeadv_jax.models.relu import relu

# (features, kernel size, stride) of each convolution, their padding, and the units of each
# dense layer before the last.
_SIZES = {
    "small": (((16, 4, 2), (32, 4, 1)), 0, (100,)),
    "medium": (((32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 4, 2)), 0, (512, 512)),
    "large": (
        ((64, 3, 1), (64, 3, 1), (128, 3, 2), (128, 3, 1), (128, 3, 1)),
        "SAME",
        (512,),
    ),
}


class DeepMindCNN(nn.Module):
    """Apply convolutions and dense layers with biases, and ReLU between them.

    The logits are `[b, classes]`. `size` is 'small', 'medium' or 'large'. Source: table 1 of
    the paper, and the padding of its code, deepmind/interval-bound-propagation. There is
    no normalisation and no pooling.
    """

    num_classes: int
    size: str
    dtype: Any = jnp.float32
    batch_norm_axis: str | None = None

    @nn.compact
    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool
    ) -> Float[Array, "b classes"]:
        convolutions, padding, units = _SIZES[self.size]
        hidden = images
        for features, kernel_size, stride in convolutions:
            hidden = Conv(
                features,
                kernel_size,
                stride,
                padding=padding,
                use_bias=True,
                dtype=self.dtype,
                kernel_init=nn.initializers.lecun_normal(),
            )(hidden)
            hidden = relu(hidden)
        hidden = hidden.reshape(hidden.shape[0], -1)
        for each in units:
            hidden = relu(nn.Dense(each, dtype=self.dtype)(hidden))
        return nn.Dense(self.num_classes)(hidden.astype(jnp.float32))
