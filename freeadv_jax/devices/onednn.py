"""oneDNN's CPU convolution and matrix product, which the released jaxlib contains.

XLA's CPU backend computes convolutions with Eigen. The jaxlib wheels for x86-64 Linux
also hold oneDNN and the thunks that run it, but no flag sends convolutions there. A
custom call can, written as XLA's own rewriting pass would write it (the fields are those of
`xla/service/cpu/onednn_config.proto` in openxla/xla).

A configuration that oneDNN refuses ends the whole process instead of raising. Hence
`unavailable`, which admits only the platforms and releases that were tried, and
`supports`, which admits only operands of the tried kinds.

Programs with these calls cannot be written to JAX's persistent compilation cache
(`std::bad_alloc` in `serialize`, jaxlib 0.10.2 and 0.12.0.1): they are compiled at each
start.
"""

import contextlib
import contextvars
import functools
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import warnings
from collections.abc import Callable, Iterator
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.errors import InputError, require_choice

# The releases whose calls tests/devices/test_onednn.py has passed with.
TRIED = ("0.10.2", "0.12.0.1")
# The instructions that each dtype needs: without AVX-512 oneDNN refuses bfloat16.
_AVX2 = frozenset({"avx2", "fma"})
_INSTRUCTIONS = {
    "float32": _AVX2,
    "bfloat16": _AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
}
# Settings of oneDNN's variable that hold it to fewer instructions than the processor has.
_MOST_INSTRUCTIONS = {
    "SSE41": set(),
    "AVX": set(),
    "AVX2": _AVX2,
    "AVX2_VNNI": _AVX2,
    "AVX2_VNNI_2": _AVX2,
}
# Larger arrays, of 2 GiB in float32, were not tried: some of oneDNN's kernels count bytes
# in 32 bits.
_MOST_NUMBERS = 2**29

# The kernels that `kernels` and the configuration's `model.convolutions` name.
XLA, ONEDNN, AUTO = "xla", "onednn", "auto"
CHOICES = (AUTO, XLA, ONEDNN)
# A training that sees fewer pixels than this, over all its updates, is done in about a
# minute on two cores, and so is an attack whose convolutions take less than this FLOP.
# They gain more from compiled programs kept on disk.
_LONG_TRAINING_PIXELS, _LONG_ATTACK_FLOP = 1e8, 1e13

_chosen = contextvars.ContextVar("kernels", default=XLA)


@functools.cache
def unavailable() -> str | None:
    """Return the reason why oneDNN cannot be called in this process, or None if it can.

    The environment variable FREEADV_ONEDNN=0 turns it off.
    """
    if os.environ.get("FREEADV_ONEDNN") == "0":
        return "FREEADV_ONEDNN=0"
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "only jaxlib for x86-64 Linux contains it"
    version = importlib.metadata.version("jaxlib")
    if version not in TRIED:
        return f"not tried with jaxlib {version} (tried: {', '.join(TRIED)})"
    if jax.default_backend() != "cpu":
        return f"JAX's backend is {jax.default_backend()}"
    if missing := _INSTRUCTIONS["float32"] - instructions():
        return f"the processor lacks {', '.join(sorted(missing))}"
    return None


def computes(dtype) -> bool:
    """Return whether oneDNN can be called in this process for numbers of this dtype."""
    needed = _INSTRUCTIONS.get(jnp.dtype(dtype).name)
    return needed is not None and not unavailable() and needed <= instructions()


@functools.cache
def instructions() -> set[str]:
    """Return the processor's instructions that oneDNN may use in this process.

    Its variable ONEDNN_MAX_CPU_ISA can hold it to fewer than the processor has.
    """
    found = _processor_instructions()
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        if most := os.environ.get(name):
            return found & _MOST_INSTRUCTIONS.get(most.upper(), found)
    return found


def _processor_instructions():
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return set()
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return set(value.split())
    return set()


def choose(
    choice: str,
    *,
    training_pixels: float = math.inf,
    attack_flop: Callable[[], float] = lambda: math.inf,
) -> str:
    """Return "xla" or "onednn" for a `choice` among CHOICES.

    "auto" takes oneDNN where it is available, unless the work is short:
    `training_pixels` is updates times batch size times height times width, and
    `attack_flop` returns the FLOP of the convolutions of an attack, asked only where it
    matters. Raise InputError for "onednn" where it is unavailable.
    """
    require_choice("convolutions", choice, CHOICES)
    if choice == ONEDNN and (reason := unavailable()):
        raise InputError(
            f"convolutions 'onednn' are unavailable: {reason}; allowed: auto, xla"
        )
    if choice == XLA:
        return XLA
    if choice == AUTO and (
        unavailable()
        or training_pixels < _LONG_TRAINING_PIXELS
        or attack_flop() < _LONG_ATTACK_FLOP
    ):
        return XLA
    # Here as well as at each call: a filter set while tracing may be gone when XLA compiles.
    _silence_the_cache()
    return ONEDNN


def choose_again(recorded: str) -> str:
    """Return a choice made before, or "xla" where oneDNN is unavailable."""
    return XLA if unavailable() else recorded


@contextlib.contextmanager
def kernels(name: str) -> Iterator[None]:
    """Trace the package's convolutions inside the `with` for "xla" or "onednn".

    The name counts where a function is traced; a compiled program keeps its kernels. A
    new thread begins with "xla". Raise InputError for "onednn" where it is unavailable.
    """
    token = _chosen.set(choose(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def with_kernels(name: str, function: Callable) -> Callable:
    """Return `function`, traced inside `kernels(name)` wherever it is called."""

    @functools.wraps(function)
    def traced(*arguments, **keywords):
        with kernels(name):
            return function(*arguments, **keywords)

    return traced


def is_chosen(dtype) -> bool:
    """Return whether convolutions of this dtype traced now may be oneDNN's."""
    return _chosen.get() == ONEDNN and computes(dtype)


def supports(images, kernel, *, stride, padding, dilation=(1, 1)) -> bool:
    """Return whether `convolution` can be called with these operands."""
    if images.dtype != kernel.dtype or not computes(images.dtype):
        return False
    if images.ndim != 4 or kernel.ndim != 4:
        return False
    if images.shape[3] != kernel.shape[2] or min(*stride, *dilation) < 1:
        return False
    if min(*images.shape, *kernel.shape) < 1 or min(*padding[0], *padding[1]) < 0:
        return False
    shape = _result_shape(images.shape, kernel.shape, stride, padding, dilation)
    largest = max(map(math.prod, (images.shape, kernel.shape, shape)))
    return min(shape) >= 1 and largest <= _MOST_NUMBERS


def convolution(
    images: Float[Array, "b h w c"],
    kernel: Float[Array, "kh kw c features"],
    *,
    stride: tuple[int, int],
    padding: tuple[tuple[int, int], tuple[int, int]],
    dilation: tuple[int, int] = (1, 1),
) -> Float[Array, "b h2 w2 features"]:
    """Return the cross-correlation that oneDNN computes, without a gradient.

    `padding` is ((top, bottom), (left, right)) and `dilation` the kernel's. Operands are
    both float32 or both bfloat16, accumulated in float32. Raise ValueError where
    `supports` is false.
    """
    settings = {"stride": stride, "padding": padding, "dilation": dilation}
    if not supports(images, kernel, **settings):
        raise ValueError(
            f"oneDNN was not tried with {images.dtype}{list(images.shape)} * "
            f"{kernel.dtype}{list(kernel.shape)}, {settings}"
        )
    _silence_the_cache()
    return _convolution(stride, padding, dilation)(images, kernel)


@functools.cache
def _convolution(stride, padding, dilation):
    @jax.custom_batching.custom_vmap
    def call(images, kernel):
        shape = _result_shape(images.shape, kernel.shape, stride, padding, dilation)
        return jax.ffi.ffi_call(
            "__onednn$convolution",
            jax.ShapeDtypeStruct(shape, images.dtype),
            custom_call_api_version=2,
            legacy_backend_config=_configuration(
                kernel.shape, stride, padding, dilation
            ),
        )(images, kernel)

    @call.def_vmap
    def vmapped(size, in_batched, images, kernel):
        of_images, of_kernel = in_batched
        if of_kernel:
            if not of_images:
                images = jnp.broadcast_to(images, (size, *images.shape))
            return jax.lax.map(lambda pair: call(*pair), (images, kernel)), True
        # One call with a larger batch.
        merged = call(images.reshape(-1, *images.shape[2:]), kernel)
        return merged.reshape(size, -1, *merged.shape[1:]), True

    return call


def multiplies(left, right, *, transposed: Literal["left", "right"] | None) -> bool:
    """Return whether `product` can be called with these operands."""
    if left.dtype != right.dtype or not computes(left.dtype):
        return False
    if left.ndim != 2 or right.ndim != 2 or min(*left.shape, *right.shape) < 1:
        return False
    rows, inner = left.shape[::-1] if transposed == "left" else left.shape
    other, columns = right.shape[::-1] if transposed == "right" else right.shape
    return (
        inner == other and max(left.size, right.size, rows * columns) <= _MOST_NUMBERS
    )


def product(
    left: Float[Array, "_ _"],
    right: Float[Array, "_ _"],
    *,
    transposed: Literal["left", "right"] | None = None,
) -> Float[Array, "_ _"]:
    """Return the matrix product that oneDNN computes, with one operand `transposed`.

    It has no gradient. Operands are both float32 or both bfloat16, accumulated in float32.
    Raise ValueError where `multiplies` is false.
    """
    if not multiplies(left, right, transposed=transposed):
        raise ValueError(
            f"oneDNN was not tried with {left.dtype}{list(left.shape)} @ "
            f"{right.dtype}{list(right.shape)}, transposed: {transposed}"
        )
    _silence_the_cache()
    return _product(transposed)(left, right)


@functools.cache
def _product(transposed):
    flags = {"transpose_a": transposed == "left", "transpose_b": transposed == "right"}
    configuration = json.dumps({"onednn_matmul_config": flags})

    @jax.custom_batching.sequential_vmap
    def call(left, right):
        rows = left.shape[transposed == "left"]
        columns = right.shape[transposed != "right"]
        return jax.ffi.ffi_call(
            "__onednn$matmul",
            jax.ShapeDtypeStruct((rows, columns), left.dtype),
            custom_call_api_version=2,
            legacy_backend_config=configuration,
        )(left, right)

    return call


def _result_shape(images, kernel, stride, padding, dilation):
    sides = (
        (
            images[axis + 1]
            + sum(padding[axis])
            - dilation[axis] * (kernel[axis] - 1)
            - 1
        )
        // stride[axis]
        + 1
        for axis in (0, 1)
    )
    return (images[0], *sides, kernel[3])


def _configuration(shape, stride, padding, dilation):
    def text(numbers):
        return [str(int(number)) for number in numbers]

    images = {
        "dims": "4",
        "data": {"batch_dim": "0", "feature_dim": "3", "spatial_dims": ["1", "2"]},
    }
    kernel = {
        "input_feature_dim": "2",
        "output_feature_dim": "3",
        "spatial_dims": ["0", "1"],
        "shape": text(shape),
    }
    window = {
        "size": text(shape[:2]),
        "strides": text(stride),
        "window_dilations": text(dilation),
        "pad_left": text(low for low, _ in padding),
        "pad_right": text(high for _, high in padding),
    }
    return json.dumps(
        {
            "onednn_conv_config": {
                "dims": "4",
                "input": images,
                "output": images,
                "kernel": {"dims": "4", "filter": kernel},
                "window": window,
                "feature_groups": "1",
            }
        }
    )


def _silence_the_cache():
    """Hide JAX's warning that a program with these calls was not kept on disk.

    Nobody can act on it: the attempt ends within a millisecond and allocates nothing.
    """
    warnings.filterwarnings(
        "ignore",
        r"Error writing persistent compilation cache entry for .*std::bad_alloc",
        UserWarning,
    )
