import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.interpreters import partial_eval

from freeadv_jax.devices import onednn, parallel
from freeadv_jax.devices.parallel import REPLICATED, SPLIT
from freeadv_jax.models.conv import Conv, convolution

needs_onednn = pytest.mark.skipif(
    onednn.unavailable() is not None, reason=f"no oneDNN: {onednn.unavailable()}"
)
SYMMETRICAL = {1: ((0, 0), (0, 0)), 3: ((1, 1), (1, 1)), 7: ((3, 3), (3, 3))}


def plain(images, kernel, stride, padding):
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def operands(height, width, channels, features, size, dtype=jnp.float32):
    rng = np.random.default_rng(height * width + channels + size)
    images = rng.normal(size=(2, height, width, channels))
    kernel = rng.normal(size=(size, size, channels, features))
    return jnp.asarray(images, dtype), jnp.asarray(kernel, dtype)


def value_and_gradients(convolve, images, kernel):
    @jax.jit
    def run(images, kernel):
        outputs, pullback = jax.vjp(convolve, images, kernel)
        cotangent = jnp.cos(jnp.arange(outputs.size, dtype=jnp.float32))
        cotangent = cotangent.reshape(outputs.shape).astype(outputs.dtype)
        return outputs, *pullback(cotangent)

    return run(images, kernel)


def assert_close(actual, expected, tolerance=2e-6):
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        one, other = (np.asarray(array, np.float64) for array in (one, other))
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("padding", ["SAME", "symmetrical", ((2, 0), (0, 1))])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("channels", [3, 6])
def test_values_and_both_gradients_agree_with_lax(channels, size, stride, padding):
    if padding == "symmetrical":
        padding = SYMMETRICAL[size]
    images, kernel = operands(9, 8, channels, 5, size)
    ours = value_and_gradients(
        lambda x, k: convolution(x, k, stride=stride, padding=padding), images, kernel
    )
    theirs = value_and_gradients(
        lambda x, k: plain(x, k, stride, padding), images, kernel
    )
    assert_close(ours, theirs)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_kernel_need_not_be_square(stride):
    images = operands(9, 8, 6, 5, 3)[0]
    kernel = operands(3, 5, 6, 4, 2)[0].reshape(3, 5, 2, 6).swapaxes(2, 3)
    ours = value_and_gradients(
        lambda x, k: convolution(x, k, stride=stride, padding="SAME"), images, kernel
    )
    theirs = value_and_gradients(
        lambda x, k: plain(x, k, stride, "SAME"), images, kernel
    )
    assert_close(ours, theirs)


@pytest.mark.parametrize("channels, stride", [(3, 1), (6, 1), (6, 2)])
def test_gradients_inside_a_scan_equal_those_outside(channels, stride):
    images, kernel = operands(8, 8, channels, 6, 3)

    def convolve(x, k):
        return convolution(x, k, stride=stride, padding="SAME")

    @jax.jit
    def scanned(images, kernel):
        def body(carry, _):
            return carry, value_and_gradients(convolve, images, kernel)

        return lax.scan(body, 0, None, length=2)[1]

    inside = [array[1] for array in scanned(images, kernel)]
    assert_close(inside, value_and_gradients(convolve, images, kernel))


@pytest.mark.parametrize(
    "channels, size, stride", [(3, 3, 1), (6, 3, 1), (6, 3, 2), (6, 1, 2)]
)
def test_bfloat16_gradients_are_bfloat16_and_near_those_of_float32(
    channels, size, stride
):
    images, kernel = operands(8, 8, channels, 6, size, jnp.bfloat16)
    narrow = value_and_gradients(
        lambda x, k: convolution(x, k, stride=stride, padding="SAME"), images, kernel
    )
    wide = value_and_gradients(
        lambda x, k: plain(x, k, stride, "SAME"),
        images.astype(jnp.float32),
        kernel.astype(jnp.float32),
    )
    assert_close(narrow, [array.astype(jnp.bfloat16) for array in wide], tolerance=0.01)


LAYERS = [(3, 3, 1), (6, 3, 1), (6, 3, 2), (6, 1, 1), (6, 1, 2)]


def loss(images, kernels):
    for kernel, (_, _, stride) in zip(kernels, LAYERS, strict=True):
        images = convolution(images, kernel, stride=stride, padding="SAME")
    return jnp.sum(images**2)


def live_primitives(function, *arguments):
    """Return the primitive of each equation that is left without dead code."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return [equation.primitive.name for equation in equations(live)]


def live_products(function, *arguments):
    """Count the convolutions and matrix products that are left without dead code."""
    return sum(
        name in ("conv_general_dilated", "dot_general")
        for name in live_primitives(function, *arguments)
    )


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner)


def test_five_convolutions_have_five_products_forward_and_fifteen_with_both_gradients():
    images = operands(8, 8, 3, 6, 3)[0]
    kernels = [operands(8, 8, c, 6, size)[1] for c, size, _ in LAYERS]
    both = jax.grad(loss, argnums=(0, 1))
    assert live_products(loss, images, kernels) == 5
    assert live_products(both, images, kernels) == 15


def test_an_unused_gradient_is_not_computed():
    images = operands(8, 8, 3, 6, 3)[0]
    kernels = [operands(8, 8, c, 6, size)[1] for c, size, _ in LAYERS]
    assert live_products(jax.grad(loss, argnums=0), images, kernels) == 10
    assert live_products(jax.grad(loss, argnums=1), images, kernels) == 14


@pytest.mark.parametrize(
    "channels, size, stride", [(3, 3, 1), (6, 3, 1), (6, 3, 2), (6, 1, 2)]
)
def test_the_gradient_of_images_can_be_differentiated(channels, size, stride):
    """The second gradients agree with those of XLA's convolution in float64."""

    def slope(convolve, images, kernel, direction):
        gradient = jax.grad(lambda x: jnp.sum(jnp.sin(convolve(x, kernel))))(images)
        return jnp.sum(gradient * direction)

    def ours(x, k):
        return convolution(x, k, stride=stride, padding="SAME")

    def theirs(x, k):
        return plain(x, k, stride, "SAME")

    with jax.enable_x64(True):
        images, kernel = operands(9, 8, channels, 5, size, jnp.float64)
        direction = jnp.cos(images)
        found, expected = (
            jax.jit(jax.grad(slope, (1, 2)), static_argnums=0)(
                convolve, images, kernel, direction
            )
            for convolve in (ours, theirs)
        )
    assert_close(found, expected, tolerance=1e-12)


def test_conv_keeps_float32_parameters_named_kernel_and_bias():
    conv = Conv(5, 3, stride=2, use_bias=True, dtype=jnp.bfloat16)
    images = jnp.ones((2, 9, 8, 3))
    outputs, variables = conv.init_with_output(jax.random.key(0), images)
    shapes = jax.tree.map(lambda array: (array.shape, array.dtype), variables["params"])
    assert shapes == {
        "kernel": ((3, 3, 3, 5), jnp.float32),
        "bias": ((5,), jnp.float32),
    }
    assert outputs.shape == (2, 5, 4, 5)
    assert outputs.dtype == jnp.bfloat16


def test_an_integer_padding_is_that_many_pixels_on_every_side():
    images, kernel = operands(8, 8, 3, 5, 3)
    outputs = Conv(5, 3, stride=2, padding=1).apply(
        {"params": {"kernel": kernel}}, images
    )
    np.testing.assert_allclose(
        outputs, plain(images, kernel, 2, SYMMETRICAL[3]), atol=1e-5
    )


def test_kernels_start_normal_with_variance_two_over_fan_out():
    images = jnp.ones((1, 4, 4, 16))
    kernel = Conv(160, 3).init(jax.random.key(0), images)["params"]["kernel"]
    assert np.std(kernel) == pytest.approx((2 / (9 * 160)) ** 0.5, rel=0.02)
    assert np.abs(kernel).max() > 3 * np.std(kernel)


def by_onednn(stride, padding="SAME"):
    """Return the convolution as it is traced for oneDNN's kernels."""
    return onednn.with_kernels(
        "onednn", lambda x, k: convolution(x, k, stride=stride, padding=padding)
    )


def in_float64(images, kernel, cotangent, stride, padding):
    """Return the convolution and both its gradients, summed over taps by NumPy."""
    images, kernel, cotangent = (
        np.asarray(array, np.float64) for array in (images, kernel, cotangent)
    )
    padded = np.pad(images, ((0, 0), *padding, (0, 0)))
    outputs = np.zeros(cotangent.shape)
    of_images, of_kernel = np.zeros(padded.shape), np.zeros(kernel.shape)
    height, width = ((side - 1) * stride + 1 for side in cotangent.shape[1:3])
    for row, column in np.ndindex(kernel.shape[:2]):
        seen = (
            slice(None),
            slice(row, row + height, stride),
            slice(column, column + width, stride),
        )
        outputs += padded[seen] @ kernel[row, column]
        of_images[seen] += cotangent @ kernel[row, column].T
        of_kernel[row, column] = np.einsum("bhwc,bhwf->cf", padded[seen], cotangent)
    (top, _), (left, _) = padding
    inside = of_images[:, top : top + images.shape[1], left : left + images.shape[2]]
    return outputs, inside, of_kernel


# The numbers of taps, strides, channels and pixels decide on the kernel, and so does a
# batch that can be divided into parts.
CASES = [
    # batch, height, width, channels, features, kernel, stride, padding
    (2, 9, 8, 6, 5, (3, 3), 1, "SAME"),
    (2, 9, 8, 6, 5, (3, 3), 2, "SAME"),
    (2, 9, 8, 3, 5, (3, 3), 1, "SAME"),
    (2, 9, 8, 6, 5, (1, 1), 1, "SAME"),
    (2, 9, 8, 6, 5, (1, 1), 2, "SAME"),
    (2, 9, 8, 5, 6, (1, 1), 2, "SAME"),
    (2, 9, 8, 3, 2, (1, 1), 1, "SAME"),
    (2, 9, 8, 6, 5, (1, 1), 1, ((2, 0), (0, 1))),
    (2, 9, 8, 6, 5, (7, 7), 3, ((3, 3), (3, 3))),
    (2, 7, 8, 6, 5, (2, 3), 2, ((4, 0), (0, 5))),
    (2, 8, 9, 6, 5, (2, 3), 3, ((0, 0), (0, 0))),
    (6, 16, 17, 8, 16, (3, 3), 1, ((1, 1), (1, 1))),
    (48, 18, 20, 8, 16, (2, 3), 1, ((3, 0), (0, 1))),
    (16, 16, 16, 17, 16, (3, 3), 1, ((1, 1), (1, 1))),
    (48, 16, 16, 17, 16, (3, 3), 1, ((1, 1), (1, 1))),
    (64, 8, 8, 17, 16, (3, 3), 1, ((1, 1), (1, 1))),
    (64, 8, 8, 8, 16, (3, 3), 2, ((1, 1), (1, 1))),
    (37, 8, 8, 8, 16, (3, 3), 1, ((1, 1), (1, 1))),
]


@needs_onednn
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 8e-3)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_of_onednn_agree_with_float64(case, dtype, tolerance):
    batch, height, width, channels, features, size, stride, padding = case
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(batch, height, width, channels)), dtype)
    kernel = jnp.asarray(rng.normal(size=(*size, channels, features)), dtype)
    if padding == "SAME":
        pads = lax.padtype_to_pads((height, width), size, (stride, stride), "SAME")
        padding = tuple(tuple(map(int, pair)) for pair in pads)

    def values_and_gradients(images, kernel):
        outputs, pullback = jax.vjp(by_onednn(stride, padding), images, kernel)
        cotangent = jnp.cos(jnp.arange(outputs.size, dtype=jnp.float32))
        cotangent = cotangent.reshape(outputs.shape).astype(outputs.dtype)
        return cotangent, outputs, *pullback(cotangent)

    cotangent, *found = jax.jit(values_and_gradients)(images, kernel)
    wanted = in_float64(images, kernel, cotangent, stride, padding)
    for ours, exact in zip(found, wanted, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(ours, np.float64), exact, atol=tolerance * np.abs(exact).max()
        )


@needs_onednn
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_onednn_work_inside_a_scan_and_on_all_devices(stride, dtype):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(128, 8, 8, 6)), dtype)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 6, 8)), dtype)

    def gradients(images, kernel):
        def loss(images, kernel):
            outputs = by_onednn(stride)(images, kernel)
            return jnp.sum(outputs.astype(jnp.float32) ** 2)

        def body(kernel, _):
            return kernel, jax.grad(loss, argnums=(0, 1))(images, kernel)

        of_images, of_kernel = lax.scan(body, kernel, None, length=2)[1]
        return of_images[1], lax.psum(of_kernel[1].astype(jnp.float32), parallel.AXIS)

    mapped = parallel.pmap(
        gradients, inputs=(SPLIT, REPLICATED), outputs=(SPLIT, REPLICATED)
    )
    outputs = plain(images, kernel, stride, "SAME")
    cotangent = 2 * outputs.astype(jnp.float32)
    padding = lax.padtype_to_pads((8, 8), (3, 3), (stride, stride), "SAME")
    _, *wanted = in_float64(images, kernel, cotangent, stride, padding)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for ours, exact in zip(mapped(images, kernel), wanted, strict=True):
        np.testing.assert_allclose(
            np.asarray(ours, np.float64), exact, atol=tolerance * np.abs(exact).max()
        )


@needs_onednn
def test_the_gradient_of_onednn_can_be_differentiated():
    images, kernel = operands(8, 8, 6, 6, 3)
    images = jnp.tile(images, (16, 1, 1, 1))

    def slope(kernel, convolve):
        gradients = jax.grad(lambda x, k: jnp.sum(jnp.sin(convolve(x, k))), (0, 1))
        return sum(jnp.sum(each**2) for each in gradients(images, kernel))

    def by_lax(x, k):
        return plain(x, k, 1, "SAME")

    ours, theirs = (
        jax.jit(jax.grad(lambda kernel, which=which: slope(kernel, which)))(kernel)
        for which in (by_onednn(1), by_lax)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * jnp.abs(theirs).max())


@needs_onednn
def test_convolutions_use_onednn_only_inside_kernels():
    images, kernel = operands(8, 8, 6, 6, 3)

    def primitives(function):
        jaxpr = jax.make_jaxpr(function)(images, kernel).jaxpr
        return {equation.primitive.name for equation in equations(jaxpr)}

    def ours(x, k):
        return convolution(x, k, stride=1, padding="SAME")

    assert "ffi_call" in primitives(by_onednn(1))
    assert "conv_general_dilated" not in primitives(by_onednn(1))
    assert "ffi_call" not in primitives(ours)


# (batch, side, channels, features): the passes in which oneDNN is not behind XLA's kernels
# on any processor tried, see docs/performance.md.
BY_ONEDNN = {
    (32, 32, 64, 64): {"forward", "images"},
    (128, 32, 64, 64): {"forward", "images"},
    (32, 8, 64, 64): {"forward", "images", "kernel"},
    (128, 16, 128, 128): {"forward", "images"},
    (128, 8, 256, 256): {"forward", "images"},
    (128, 4, 512, 512): set(),
}


@needs_onednn
@pytest.mark.parametrize("shape", BY_ONEDNN)
def test_float32_takes_onednn_where_it_was_measured_to_be_ahead(shape):
    batch, side, channels, features = shape
    images = jnp.zeros((batch, side, side, channels))
    kernel = jnp.zeros((3, 3, channels, features))
    outputs = jnp.zeros((batch, side, side, features))
    convolve = by_onednn(1)
    passes = {
        "forward": lambda x, k, g: convolve(x, k),
        "images": lambda x, k, g: jax.vjp(lambda x: convolve(x, k), x)[1](g),
        "kernel": lambda x, k, g: jax.vjp(lambda k: convolve(x, k), k)[1](g),
    }
    taken = {
        name
        for name, function in passes.items()
        if "ffi_call" in live_primitives(function, images, kernel, outputs)
    }
    assert taken == BY_ONEDNN[shape]
