"""The convolution of every network, with gradients that stay fast inside loops on CPU."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Padding = tuple[tuple[int, int], tuple[int, int]]

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

# He et al. 2015, untruncated: standard deviation sqrt(2 / (k * k * features)).
he_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def convolution(
    images: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c features"],
    *,
    stride: int,
    padding: Literal["SAME"] | Padding,
) -> Float[Array, "b h2 w2 features"]:
    """Cross-correlation; 'SAME' is TensorFlow's, else ((top, bottom), (left, right)).

    On the CPU backend it can be differentiated in reverse mode only.
    """
    if padding == "SAME":
        pads = lax.padtype_to_pads(
            images.shape[1:3], kernel.shape[:2], (stride, stride), "SAME"
        )
        padding = tuple(tuple(map(int, pair)) for pair in pads)
    # The gradients XLA's CPU backend derives by itself run 20 to 230 times slower
    # inside a loop, where their dimension numbers miss its fast kernel
    # (jax-ml/jax#12868); on GPU and TPU they are the better ones.
    if jax.default_backend() == "cpu":
        return _loop_safe_convolution(images, kernel, stride, padding)
    return _plain_convolution(images, kernel, stride, padding)


def _plain_convolution(images, kernel, stride, padding):
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, dimension_numbers=_DIMENSIONS
    )


_loop_safe_convolution = jax.custom_vjp(_plain_convolution, nondiff_argnums=(2, 3))


def _forward(images, kernel, stride, padding):
    return _plain_convolution(images, kernel, stride, padding), (images, kernel)


def _backward(stride, padding, residuals, cotangent):
    # Two separate expressions: whichever gradient is not used is dead code.
    images, kernel = residuals
    taps = kernel.shape[0] * kernel.shape[1]
    # For 3x3 kernels the matrix product is 1.1 to 4 times faster where channels are
    # few or there is a stride, and 2 to 4 times slower elsewhere; for 7x7 ones it
    # gains nothing and compiles slowly.
    if taps == 1 or taps <= 9 and (images.shape[-1] <= 4 or stride > 1):
        of_images = _images_gradient_by_product
    else:
        of_images = _images_gradient_by_convolution
    if kernel.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)):
        of_kernel = _pointwise_kernel_gradient
    else:
        of_kernel = _kernel_gradient
    return (
        of_images(images.shape, kernel, stride, padding, cotangent),
        of_kernel(images, kernel.shape, stride, padding, cotangent),
    )


_loop_safe_convolution.defvjp(_forward, _backward)


def _images_gradient_by_convolution(shape, kernel, stride, padding, cotangent):
    pads = []
    for axis in (0, 1):
        low = kernel.shape[axis] - 1 - padding[axis][0]
        reach = (cotangent.shape[axis + 1] - 1) * stride + 1
        pads.append((low, shape[axis + 1] - reach - low + kernel.shape[axis] - 1))
    return lax.conv_general_dilated(
        cotangent,
        jnp.transpose(kernel[::-1, ::-1], (0, 1, 3, 2)),
        (1, 1),
        pads,
        lhs_dilation=(stride, stride),
        dimension_numbers=_DIMENSIONS,
    )


def _images_gradient_by_product(shape, kernel, stride, padding, cotangent):
    wide = jnp.float32 if cotangent.dtype.itemsize < 4 else cotangent.dtype
    # [b, h2, w2, kh, kw, c]: what each output pixel sends to each pixel it saw.
    patches = lax.dot_general(
        cotangent, kernel, (((3,), (3,)), ((), ())), preferred_element_type=wide
    )

    def placement(axis, tap):
        low = tap - padding[axis][0]
        reach = (cotangent.shape[axis + 1] - 1) * stride + 1
        return low, shape[axis + 1] - reach - low, stride - 1

    rows, columns = kernel.shape[:2]
    total = sum(
        lax.pad(
            patches[:, :, :, row, column],
            jnp.zeros((), wide),
            ((0, 0, 0), placement(0, row), placement(1, column), (0, 0, 0)),
        )
        for row in range(rows)
        for column in range(columns)
    )
    return total.astype(cotangent.dtype)


def _kernel_gradient(images, shape, stride, padding, cotangent):
    pads = []
    for axis in (0, 1):
        low = padding[axis][0]
        reach = (cotangent.shape[axis + 1] - 1) * stride + shape[axis]
        pads.append((low, reach - images.shape[axis + 1] - low))
    # The channels take the place of the batch, the batch that of the channels.
    gradient = lax.conv_general_dilated(
        jnp.transpose(images, (3, 1, 2, 0)),
        jnp.transpose(cotangent, (1, 2, 0, 3)),
        (1, 1),
        pads,
        rhs_dilation=(stride, stride),
        dimension_numbers=_DIMENSIONS,
    )
    return jnp.transpose(gradient, (1, 2, 0, 3))


def _pointwise_kernel_gradient(images, shape, stride, padding, cotangent):
    seen = images[:, ::stride, ::stride]
    # One axis of pixels, because XLA's CPU backend is up to twice as slow with three.
    rows = (x.reshape(-1, x.shape[-1]) for x in (seen, cotangent))
    return lax.dot_general(*rows, (((0,), (0,)), ((), ()))).reshape(shape)


class Conv(nn.Module):
    """A square convolution `[b, h, w, c] -> [b, h2, w2, features]`, float32 weights."""

    features: int
    kernel_size: int
    stride: int = 1
    padding: Literal["SAME"] | int = "SAME"
    use_bias: bool = False
    dtype: Any = jnp.float32
    kernel_init: Callable[..., Any] = he_normal_fan_out

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        shape = (self.kernel_size, self.kernel_size, images.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        padding = self.padding
        if isinstance(padding, int):
            padding = ((padding, padding), (padding, padding))
        outputs = convolution(
            images.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=padding,
        )
        if self.use_bias:
            bias = self.param(
                "bias", nn.initializers.zeros_init(), (self.features,), jnp.float32
            )
            outputs = outputs + bias.astype(self.dtype)
        return outputs
