"""The convolution of every network, with gradients that stay fast inside loops on CPU.

On CPU it has two sets of kernels: XLA's (Eigen's) and, inside
`devices.onednn.kernels("onednn")`, oneDNN's where they were measured to be faster
(`python -m benchmarks.convolutions`, docs/performance.md). The results of the two are equal
to rounding.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from freeadv_jax.devices import onednn

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
    """Return the cross-correlation of images and kernel.

    `padding` is 'SAME' as in TensorFlow, or ((top, bottom), (left, right)). On the CPU
    backend only reverse-mode differentiation works.
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
        if onednn.is_chosen(images.dtype):
            return _onednn_convolution(images, kernel, stride, padding)
        return _loop_safe_convolution(images, kernel, stride, padding)
    return _plain_convolution(images, kernel, stride, padding)


def _plain_convolution(images, kernel, stride, padding):
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), padding, dimension_numbers=_DIMENSIONS
    )


_loop_safe_convolution = jax.custom_vjp(_plain_convolution, nondiff_argnums=(2, 3))


def _forward(images, kernel, stride, padding):
    # Not _plain_convolution, whose gradient is slow where this gradient is differentiated.
    outputs = _loop_safe_convolution(images, kernel, stride, padding)
    return outputs, (images, kernel)


def _backward(stride, padding, residuals, cotangent):
    # Two separate expressions: a gradient that is not used is dead code.
    images, kernel = residuals
    return (
        _images_gradient(images.shape, kernel, stride, padding, cotangent),
        _kernel_gradient(images, kernel.shape, stride, padding, cotangent),
    )


_loop_safe_convolution.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 2, 3))
def _images_gradient(shape, kernel, stride, padding, cotangent):
    taps = kernel.shape[0] * kernel.shape[1]
    # For 3x3 kernels the matrix product is 1.1 to 4 times faster where channels are
    # few or there is a stride, and 2 to 4 times slower elsewhere. For 7x7 ones it
    # gains nothing and compiles slowly.
    if taps == 1 or taps <= 9 and (shape[-1] <= 4 or stride > 1):
        gradient = _images_gradient_by_product
    else:
        gradient = _images_gradient_by_convolution
    return gradient(shape, kernel, stride, padding, cotangent)


def _images_gradient_forward(shape, kernel, stride, padding, cotangent):
    gradient = _images_gradient(shape, kernel, stride, padding, cotangent)
    return gradient, (kernel, cotangent)


def _images_gradient_backward(shape, stride, padding, residuals, images):
    # The gradient of a sum over images * _images_gradient(...), which equals the sum over
    # the convolution of these images * cotangent.
    kernel, cotangent = residuals
    return (
        _kernel_gradient(images, kernel.shape, stride, padding, cotangent),
        _loop_safe_convolution(images, kernel, stride, padding),
    )


_images_gradient.defvjp(_images_gradient_forward, _images_gradient_backward)


def _is_product(shape, padding):
    """Return whether a convolution with a kernel of this shape is a matrix product."""
    return shape[:2] == (1, 1) and padding == ((0, 0), (0, 0))


def _kernel_gradient(images, shape, stride, padding, cotangent):
    if _is_product(shape, padding):
        gradient = _pointwise_kernel_gradient
    else:
        gradient = _kernel_gradient_by_convolution
    return gradient(images, shape, stride, padding, cotangent)


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


def _kernel_gradient_by_convolution(images, shape, stride, padding, cotangent):
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _onednn_convolution(images, kernel, stride, padding):
    """Return the convolution, by oneDNN where it can compute it and is not behind."""
    settings = {"stride": (stride, stride), "padding": padding}
    pixels = images.shape[0] * images.shape[1] * images.shape[2] // stride**2
    single, widest = kernel.shape[:2] == (1, 1), max(kernel.shape[2:])
    if images.dtype.itemsize >= 4 and (single or widest >= 512 or pixels <= widest):
        # For 1x1 kernels oneDNN is level with Eigen's matrix product, or a little behind.
        # From 512 channels on it is level on one processor and a third behind on another.
        # With few pixels the kernel, which it reorders at each call, takes as long as they.
        return _plain_convolution(images, kernel, stride, padding)
    if _is_product(kernel.shape, padding):
        # As a convolution, up to two times slower where pixels are few.
        seen = images[:, ::stride, ::stride]
        outputs = _onednn_product(
            seen.reshape(-1, seen.shape[3]), kernel.reshape(kernel.shape[2:]), None
        )
        return outputs.reshape(*seen.shape[:3], kernel.shape[3])
    if onednn.supports(images, kernel, **settings):
        return onednn.convolution(images, kernel, **settings)
    return _plain_convolution(images, kernel, stride, padding)


def _onednn_forward(images, kernel, stride, padding):
    outputs = _onednn_convolution(images, kernel, stride, padding)
    return outputs, (images, kernel)


def _onednn_backward(stride, padding, residuals, cotangent):
    images, kernel = residuals
    return (
        _onednn_images_gradient(images.shape, kernel, stride, padding, cotangent),
        _onednn_kernel_gradient(images, kernel.shape, stride, padding, cotangent),
    )


_onednn_convolution.defvjp(_onednn_forward, _onednn_backward)


def _onednn_images_gradient(shape, kernel, stride, padding, cotangent):
    narrow = cotangent.dtype.itemsize < 4
    # In float32 Eigen's product is level with oneDNN where there is a stride, and one and
    # a half times to four times faster where channels are few.
    single = kernel.shape[:2] == (1, 1)
    if (stride > 1 or single) and not narrow or shape[-1] <= 4:
        return _images_gradient(shape, kernel, stride, padding, cotangent)
    if stride == 1 and _is_product(kernel.shape, padding):
        rows = cotangent.reshape(-1, cotangent.shape[3])
        matrix = kernel.reshape(kernel.shape[2:])
        return _onednn_product(rows, matrix, "right").reshape(shape)
    # One convolution for each of the stride * stride places that a pixel of the images has
    # within a step of the window; it reads only the taps that meet such pixels.
    sides = [-(-size // stride) for size in shape[1:3]]
    places = [
        [
            _onednn_images_gradient_at(place, sides, kernel, stride, padding, cotangent)
            for place in ((row, column) for column in range(stride))
        ]
        for row in range(stride)
    ]
    if stride == 1:
        return places[0][0]
    interleaved = jnp.stack([jnp.stack(row, axis=3) for row in places], axis=2)
    height, width = (side * stride for side in sides)
    interleaved = interleaved.reshape(shape[0], height, width, shape[-1])
    return interleaved[:, : shape[1], : shape[2]]


def _onednn_images_gradient_at(place, sides, kernel, stride, padding, cotangent):
    """Return the images' gradient at every `stride`-th pixel, from `place` on."""
    kernel = jnp.transpose(kernel, (0, 1, 3, 2))
    pads = []
    for axis, (first, side) in enumerate(zip(place, sides, strict=True)):
        offset, tap = divmod(first + padding[axis][0], stride)
        kernel = lax.rev(
            lax.slice_in_dim(kernel, min(tap, kernel.shape[axis]), None, stride, axis),
            (axis,),
        )
        taps = kernel.shape[axis]
        low = taps - 1 - offset
        high = side - cotangent.shape[axis + 1] - low + taps - 1
        cotangent, pad = _cropped(cotangent, axis + 1, low, high)
        pads.append(pad)
    if not kernel.size or not cotangent.size:
        shape = (cotangent.shape[0], *sides, kernel.shape[3])
        return jnp.zeros(shape, cotangent.dtype)
    return _onednn_convolution(cotangent, kernel, 1, tuple(pads))


def _cropped(array, axis, low, high):
    """Return `array` without what negative padding cuts off, and the padding left."""
    size = array.shape[axis]
    begin, end = max(0, -low), size - max(0, -high)
    array = lax.slice_in_dim(array, min(begin, size), max(begin, end), axis=axis)
    return array, (max(0, low), max(0, high))


def _onednn_kernel_gradient(images, shape, stride, padding, cotangent):
    arguments = images, shape, stride, padding, cotangent
    channels, features = shape[2:]
    narrow = cotangent.dtype.itemsize < 4
    # In float32 Eigen is ahead by up to a seventh where the result is wide.
    if _is_product(shape, padding) and (narrow or 4 < channels >= features):
        seen = images[:, ::stride, ::stride]
        rows = (x.reshape(-1, x.shape[3]) for x in (seen, cotangent))
        return _onednn_product(*rows, "left").reshape(shape)
    if shape[0] * shape[1] == 1 or channels <= 4:
        return _kernel_gradient(*arguments)
    pixels = cotangent.shape[1] * cotangent.shape[2]
    batch = images.shape[0]
    if batch < 8 and (not narrow or batch * pixels <= 4096):
        # As a convolution the images are its channels, too few of them.
        return _kernel_gradient_by_taps(*arguments)
    if narrow:
        # No loop over the parts: XLA is slow to transpose the slices of one in bfloat16.
        return _kernel_gradient_in_parts(
            *arguments, parts=(4, 32), loop=False, of_part=_kernel_gradient_of_part
        )
    widest = max(channels, features)
    if stride > 1 or pixels < 64 or widest > 64 or channels <= 16 < features:
        return _kernel_gradient(*arguments)
    if widest <= 16 and pixels >= 256:
        # Some 2048 pixels at a time, whose shifted copies fit the second-level cache.
        parts = (1, max(1, 2048 // pixels))
        return _kernel_gradient_in_parts(
            *arguments, parts=parts, loop=True, of_part=_kernel_gradient_by_shifts
        )
    # The images of a part are the channels of oneDNN's convolution, whose kernel is as large
    # as the part's cotangent: on larger images it is up to three times slower than Eigen,
    # and with fewer than 16 channels registers stay empty.
    if pixels >= 256:
        return _kernel_gradient(*arguments)
    return _kernel_gradient_in_parts(
        *arguments, parts=(16, 32), loop=True, of_part=_kernel_gradient_of_part
    )


def _kernel_gradient_in_parts(
    images, shape, stride, padding, cotangent, *, parts, loop, of_part
):
    """Return the sum of the gradients of equal parts of the batch, summed in float32.

    `parts` is (least, most) images of a part. A batch that cannot be divided into such
    parts goes to XLA whole.
    """
    batch, (least, most) = images.shape[0], parts
    size = max(size for size in range(1, most + 1) if batch % size == 0)
    gradient = functools.partial(of_part, shape=shape, stride=stride, padding=padding)
    if size < least:
        return _kernel_gradient(images, shape, stride, padding, cotangent)
    if size == batch:
        return gradient(images, cotangent)
    if not loop:
        parts = (slice(first, first + size) for first in range(0, batch, size))
        total = sum(
            gradient(images[each], cotangent[each]).astype(jnp.float32)
            for each in parts
        )
        return total.astype(cotangent.dtype)

    def add(total, part):
        return total + gradient(*part), None

    parts = (x.reshape(-1, size, *x.shape[1:]) for x in (images, cotangent))
    return lax.scan(add, jnp.zeros(shape, cotangent.dtype), tuple(parts))[0]


def _kernel_gradient_by_shifts(images, cotangent, *, shape, stride, padding):
    """Return the gradient, stride 1, as one matrix product for all taps.

    The images shifted along a row, side by side, are multiplied by the cotangents shifted
    along a column: with few channels a product for each tap would be too small.
    """
    rows, columns, channels, features = shape
    (top, _), (left, right) = padding
    height, width = images.shape[1], cotangent.shape[2]
    zero = jnp.zeros((), images.dtype)
    none = (0, 0, 0)
    images = lax.pad(images, zero, (none, none, (left, right, 0), none))
    low = rows - 1 - top
    high = height + top - cotangent.shape[1]
    cotangent = lax.pad(cotangent, zero, (none, (low, high, 0), none, none))
    images = [images[:, :, column : column + width] for column in range(columns)]
    cotangents = [
        cotangent[:, rows - 1 - row : rows - 1 - row + height] for row in range(rows)
    ]
    factors = (
        jnp.concatenate(parts, axis=-1).reshape(-1, len(parts) * parts[0].shape[-1])
        for parts in (images, cotangents)
    )
    product = lax.dot_general(*factors, (((0,), (0,)), ((), ())))
    product = product.reshape(columns, channels, rows, features)
    return jnp.transpose(product, (2, 0, 1, 3))


def _kernel_gradient_by_taps(images, shape, stride, padding, cotangent):
    """Return the gradient as one matrix product by oneDNN for each tap."""
    rows, columns, channels, features = shape
    zero = jnp.zeros((), images.dtype)
    images = lax.pad(images, zero, ((0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)))
    height, width = ((side - 1) * stride + 1 for side in cotangent.shape[1:3])
    flat = cotangent.reshape(-1, features)
    products = [
        _onednn_product(
            images[
                :, row : row + height : stride, column : column + width : stride
            ].reshape(-1, channels),
            flat,
            "left",
        )
        for row in range(rows)
        for column in range(columns)
    ]
    return jnp.stack(products).reshape(shape)


def _kernel_gradient_of_part(images, cotangent, *, shape, stride, padding):
    pads = []
    for axis in (0, 1):
        low = padding[axis][0]
        reach = (cotangent.shape[axis + 1] - 1) * stride + shape[axis]
        high = reach - images.shape[axis + 1] - low
        images, pad = _cropped(images, axis + 1, low, high)
        pads.append(pad)
    # The channels take the place of the batch, the batch that of the channels.
    gradient = _onednn_dilated(
        jnp.transpose(images, (3, 1, 2, 0)),
        jnp.transpose(cotangent, (1, 2, 0, 3)),
        stride,
        tuple(pads),
    )
    return jnp.transpose(gradient, (1, 2, 0, 3))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _onednn_dilated(images, kernel, dilation, padding):
    settings = {"dilation": (dilation, dilation), "padding": padding}
    if onednn.supports(images, kernel, stride=(1, 1), **settings):
        return onednn.convolution(images, kernel, stride=(1, 1), **settings)
    return _plain_dilated(images, kernel, dilation, padding)


def _plain_dilated(images, kernel, dilation, padding):
    return lax.conv_general_dilated(
        images,
        kernel,
        (1, 1),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=_DIMENSIONS,
    )


def _dilated_forward(images, kernel, dilation, padding):
    return _onednn_dilated(images, kernel, dilation, padding), (images, kernel)


def _dilated_backward(dilation, padding, residuals, cotangent):
    # A gradient of a gradient, which nothing here needs to be fast.
    def plain(images, kernel):
        return _plain_dilated(images, kernel, dilation, padding)

    return jax.vjp(plain, *residuals)[1](cotangent)


_onednn_dilated.defvjp(_dilated_forward, _dilated_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _onednn_product(left, right, transposed):
    """Return the matrix product, by oneDNN where it can compute it."""
    if onednn.multiplies(left, right, transposed=transposed):
        return onednn.product(left, right, transposed=transposed)
    return _plain_product(left, right, transposed)


def _plain_product(left, right, transposed):
    axes = ((0 if transposed == "left" else 1,), (1 if transposed == "right" else 0,))
    return lax.dot_general(left, right, (axes, ((), ())))


def _product_forward(left, right, transposed):
    return _onednn_product(left, right, transposed), (left, right)


def _product_backward(transposed, residuals, cotangent):
    # A gradient of a gradient, which nothing here needs to be fast.
    def plain(left, right):
        return _plain_product(left, right, transposed)

    return jax.vjp(plain, *residuals)[1](cotangent)


_onednn_product.defvjp(_product_forward, _product_backward)


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
