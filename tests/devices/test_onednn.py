"""Each oneDNN call runs in its own process, because a refused configuration ends the
process.
"""

import importlib.metadata
import itertools
import json
import os
import platform
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from tiny_run import ROOT

from freeadv_jax.devices import onednn
from freeadv_jax.errors import InputError
from freeadv_jax.runs.provenance import environment

needs_onednn = pytest.mark.skipif(
    onednn.unavailable() is not None, reason=f"no oneDNN: {onednn.unavailable()}"
)
needs_bfloat16 = pytest.mark.skipif(
    not onednn.computes("bfloat16"), reason="no bfloat16 without AVX-512"
)
DTYPES = ["float32", pytest.param("bfloat16", marks=needs_bfloat16)]
# oneDNN as it is, and as on a processor without AVX-512.
HELD = {"as it is": {}, "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}
SHAPES = {"stride": (1, 1), "padding": ((1, 1), (1, 1))}

# Each case is compared with a sum over the kernel's taps in float64.
CHILD = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
from freeadv_jax.devices import onednn

def expected(images, kernel, stride, padding, dilation):
    images = np.pad(images, ((0, 0), *padding, (0, 0)))
    sides = [
        (images.shape[1 + a] - dilation[a] * (kernel.shape[a] - 1) - 1) // stride[a] + 1
        for a in (0, 1)
    ]
    total = 0.0
    for row in range(kernel.shape[0]):
        for column in range(kernel.shape[1]):
            first = row * dilation[0], column * dilation[1]
            last = [first[a] + (sides[a] - 1) * stride[a] + 1 for a in (0, 1)]
            seen = images[:, first[0]:last[0]:stride[0], first[1]:last[1]:stride[1]]
            total = total + seen @ kernel[row, column]
    return total

for number, case in enumerate(json.load(sys.stdin)):
    rng = np.random.default_rng(number)
    images, kernel = (
        jnp.asarray(rng.standard_normal(shape), case["dtype"]) for shape in case["shapes"]
    )
    settings = {
        name: tuple(map(tuple, value)) if name == "padding" else tuple(value)
        for name, value in case["settings"].items()
    }
    print("computing", json.dumps(case), flush=True)
    found = jax.jit(lambda x, k: onednn.convolution(x, k, **settings))(images, kernel)
    wanted = expected(*(np.asarray(x, np.float64) for x in (images, kernel)), **settings)
    assert found.shape == wanted.shape and found.dtype == images.dtype
    scale = max(np.abs(wanted).max(), 1e-30)  # A stride may step over all pixels.
    error = np.abs(np.asarray(found, np.float64) - wanted).max() / scale
    assert error < (1e-5 if case["dtype"] == "float32" else 8e-3), error
print("all right")
"""


def run_child(program, *, content="", **variables):
    """Run the program in a new process and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        input=content,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""} | variables,
        check=False,
    )
    assert done.returncode == 0, (done.stdout[-500:], done.stderr[-1500:])
    return done


def case(
    dtype, images, kernel, stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1)
):
    settings = {"stride": stride, "padding": padding, "dilation": dilation}
    return {"dtype": dtype, "shapes": (images, kernel), "settings": settings}


def grid():
    """Yield odd sizes, kernels, strides, paddings, dilations and channels."""
    sides, sizes = [(1, 9), (8, 8), (15, 32)], [(1, 1), (3, 3), (2, 5), (7, 7)]
    pads = [((3, 3), (3, 3)), ((6, 7), (8, 4))]
    strides, channels = [(1, 1), (2, 2), (3, 1)], [(1, 5), (3, 64), (17, 16)]
    rng = np.random.default_rng(0)
    for dtype, side, size, pad, stride in itertools.product(
        ("float32", "bfloat16"), sides, sizes, pads, strides
    ):
        few, many = channels[rng.integers(3)]
        batch = int(rng.integers(1, 6))
        yield case(dtype, (batch, *side, few), (*size, few, many), stride, pad)
    for dtype, dilation in itertools.product(("float32", "bfloat16"), (2, 3)):
        kernel, pad = (14, 13, 32, 16), ((dilation, 0), (1, dilation + 1))
        images = (6, 14 * dilation, 14 * dilation, 32)
        yield case(dtype, images, kernel, padding=pad, dilation=(dilation, dilation))


@needs_onednn
@pytest.mark.parametrize("dtype", DTYPES)
def test_convolutions_of_all_kinds_are_right_and_end_no_process(dtype):
    cases = [case for case in grid() if case["dtype"] == dtype]
    assert len(cases) > 70
    run_child(CHILD, content=json.dumps(cases))


@needs_onednn
def test_convolutions_are_right_and_end_no_process_with_avx2_alone():
    cases = [case for case in grid() if case["dtype"] == "float32"]
    run_child(CHILD, content=json.dumps(cases), **HELD["AVX2"])


@needs_onednn
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_all_kinds_are_right_and_end_no_process(dtype):
    program = f"""
        import itertools
        import jax, jax.numpy as jnp, numpy as np
        from freeadv_jax.devices import onednn

        rng = np.random.default_rng(0)
        sizes = [1, 2, 15, 64, 129]
        dtype = {dtype!r}
        for transposed, inner in itertools.product(
            (None, "left", "right"), (1, 7, 32, 3000)
        ):
            rows, columns = rng.choice(sizes, 2)
            left = rng.standard_normal((rows, inner)).astype(dtype)
            right = rng.standard_normal((inner, columns)).astype(dtype)
            wanted = left.astype(float) @ right.astype(float)
            left = left.T if transposed == "left" else left
            right = right.T if transposed == "right" else right
            print(transposed, rows, inner, columns, flush=True)
            product = lambda x, y: onednn.product(x, y, transposed=transposed)
            found = jax.jit(product)(jnp.asarray(left), jnp.asarray(right))
            assert found.shape == wanted.shape and found.dtype == dtype
            error = np.abs(np.asarray(found, float) - wanted).max()
            bound = 1e-5 if dtype == "float32" else 8e-3
            assert error < bound * np.abs(wanted).max(), error
            several = jax.vmap(product, (0, None))(jnp.stack([left, left]), right)
            assert several.shape == (2, *found.shape)
            assert (several == found).all()
    """
    run_child(program)


@needs_onednn
@pytest.mark.parametrize(
    "left, right, transposed",
    [
        (jnp.ones((2, 3)), jnp.ones((2, 3)), None),
        (jnp.ones((2, 3)), jnp.ones((3, 2)), "left"),
        (jnp.ones((2, 3), jnp.float16), jnp.ones((3, 2), jnp.float16), None),
        (jnp.ones((2, 3)), jnp.ones((3, 2), jnp.bfloat16), None),
        (jnp.ones((0, 3)), jnp.ones((3, 2)), None),
    ],
)
def test_products_that_were_not_tried_raise(left, right, transposed):
    assert not onednn.multiplies(left, right, transposed=transposed)
    with pytest.raises(ValueError, match="not tried"):
        onednn.product(left, right, transposed=transposed)


# ResNet-101 and -152 repeat the shapes of ResNet-50.
NETWORKS = {
    "preact-resnet-18": (16, 32, 32, 3),
    "wrn-16-4": (16, 32, 32, 3),
    "wrn-32-10-madry": (16, 32, 32, 3),
    "resnet-50": (4, 224, 224, 3),
    "small-cnn-bn": (32, 28, 28, 1),
    "small-cnn": (32, 8, 8, 1),
}
LARGE = ("wrn-16-4", "wrn-32-10-madry", "resnet-50")


@needs_onednn
@pytest.mark.parametrize(
    "dtype, held",
    [("float32", "as it is"), ("bfloat16", "as it is"), ("float32", "AVX2")],
)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else [])
        for name in NETWORKS
    ],
)
def test_every_call_of_every_network_ends_no_process(name, dtype, held):
    if not onednn.computes(dtype):
        pytest.skip("no bfloat16 without AVX-512")
    program = f"""
        import json
        import jax, jax.extend, jax.numpy as jnp
        from freeadv_jax.devices import onednn
        from freeadv_jax.models import build_model

        shape = {NETWORKS[name]}
        model = build_model(
            {name!r}, num_classes=10, image_shape=shape[1:], normalization="per_image",
            mean=(0.0,), std=(1.0,), dtype={dtype!r}, batch_norm_axis=None,
        )
        images = jax.ShapeDtypeStruct(shape, jnp.float32)
        key = jax.random.key(0)
        variables = jax.eval_shape(lambda x: model.init(key, x, train=False), images)

        def loss(variables, images):
            logits, _ = model.apply(variables, images, train=True, mutable="batch_stats")
            return jnp.sum(logits**2)

        def calls(jaxpr):
            for equation in jaxpr.eqns:
                if equation.primitive.name == "ffi_call":
                    yield equation
                for inner in jax.extend.core.jaxprs_in_params(equation.params):
                    yield from calls(inner)

        gradients = jax.grad(loss, argnums=(0, 1), allow_int=True)
        with onednn.kernels("onednn"):
            jaxpr = jax.make_jaxpr(gradients)(variables, images).jaxpr
        different = {{
            (str(equation.params), *(str(v.aval) for v in equation.invars)): equation
            for equation in calls(jaxpr)
        }}
        assert different
        for equation in different.values():
            arguments = [jnp.ones(v.aval.shape, v.aval.dtype) for v in equation.invars]
            call = lambda *x, e=equation: e.primitive.bind(*x, **e.params)
            (found,) = jax.jit(call)(*arguments)
            # With images and kernels of ones, each output counts its pixels and channels.
            settings = json.loads(equation.params["legacy_backend_config"])
            if product := settings.get("onednn_matmul_config"):
                # Each output counts the axis that the operands share.
                most = arguments[1].shape[product["transpose_b"]]
                assert float(found.min()) >= 0.99 * most
            else:
                most = arguments[1][..., 0].size
            assert 0 <= float(found.min()) and 0 < float(found.max()) <= 1.01 * most
    """
    run_child(program)


@needs_onednn
def test_all_devices_and_several_threads_may_call_at_once():
    program = """
        import threading
        import jax, jax.numpy as jnp, numpy as np
        from jax import lax
        from freeadv_jax.devices import onednn, parallel
        from freeadv_jax.devices.parallel import REPLICATED, SPLIT

        assert jax.device_count() == 8
        rng = np.random.default_rng(0)
        images = rng.standard_normal((16, 9, 8, 6)).astype(np.float32)
        kernel = rng.standard_normal((3, 3, 6, 5)).astype(np.float32)
        settings = {"stride": (1, 1), "padding": ((1, 1), (1, 1))}
        convolve = lambda x, k: onednn.convolution(x, k, **settings)
        dimensions = ("NHWC", "HWIO", "NHWC")
        wanted = lax.conv_general_dilated(
            images, kernel, (1, 1), settings["padding"], dimension_numbers=dimensions
        )
        mapped = parallel.pmap(convolve, inputs=(SPLIT, REPLICATED), outputs=SPLIT)
        found = [mapped(images, kernel) for _ in range(20)]
        single = jax.jit(convolve)

        def work():
            found.extend(single(images, kernel) for _ in range(50))

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 320
        for each in found:
            np.testing.assert_allclose(each, wanted, atol=1e-5)
    """
    run_child(program, XLA_FLAGS="--xla_force_host_platform_device_count=8")


@needs_onednn
def test_no_warning_of_the_compilation_cache_reaches_the_user(tmp_path):
    program = """
        import jax, jax.numpy as jnp
        from freeadv_jax.devices import onednn
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        settings = {"stride": (1, 1), "padding": ((0, 0), (0, 0))}
        convolve = jax.jit(lambda x, k: onednn.convolution(x, k, **settings))
        convolve(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)))
    """
    done = run_child(program, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert done.stderr == ""


@needs_onednn
def test_no_warning_reaches_the_user_of_fit_and_of_a_program_compiled_later(tmp_path):
    program = """
        import warnings
        import flax.linen as nn, jax, jax.numpy as jnp, numpy as np
        import freeadv_jax as fa
        from freeadv_jax.devices import onednn

        warnings.simplefilter("always", UserWarning)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

        class Network(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.Dense(3)(nn.Conv(4, (3, 3))(x).mean(axis=(1, 2)))

        images, labels = np.ones((16, 6, 6, 1), np.float32), np.arange(16) % 3
        how = {"convolutions": "onednn", "epsilon": 0.1}
        classifier = fa.fit(
            Network(), images, labels, updates=4, replays=2, batch_size=8, **how
        )
        fa.robust_accuracy(classifier, images, labels, attacks="pgd-2", **how)

        warnings.resetwarnings()
        call = onednn.with_kernels(onednn.choose("onednn"), classifier.logits_fn)
        with warnings.catch_warnings():
            lowered = jax.jit(lambda x: 2 * call(x)).lower(jnp.asarray(images))
        lowered.compile()
    """
    done = run_child(program, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
    assert "bad_alloc" not in done.stderr + done.stdout


@needs_onednn
@pytest.mark.parametrize("batched", [(0, None), (None, 0), (0, 0)])
def test_vmap_calls_once_for_each_element(batched):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.standard_normal((3, 2, 6, 5, 4)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 3, 4, 7)), jnp.float32)
    arguments = [
        array if axis == 0 else array[0]
        for array, axis in zip((images, kernel), batched, strict=True)
    ]

    def convolve(x, k):
        return onednn.convolution(x, k, **SHAPES)

    def plain(x, k):
        return lax.conv_general_dilated(
            x, k, (1, 1), SHAPES["padding"], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    found = jax.jit(jax.vmap(convolve, batched))(*arguments)
    wanted = jax.vmap(plain, batched)(*arguments)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize(
    "images, kernel, settings",
    [
        (jnp.ones((1, 4, 4, 2), jnp.float16), jnp.ones((3, 3, 2, 2), jnp.float16), {}),
        (jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2), jnp.bfloat16), {}),
        (jnp.ones((0, 4, 4, 2)), jnp.ones((3, 3, 2, 2)), {}),
        (jnp.ones((1, 4, 4, 2)), jnp.ones((7, 7, 2, 2)), {}),
        (jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)), {"stride": (0, 1)}),
        (
            jnp.ones((1, 4, 4, 2)),
            jnp.ones((1, 1, 2, 2)),
            {"padding": ((-1, 0), (0, 0))},
        ),
    ],
)
def test_operands_of_untested_kinds_raise(images, kernel, settings):
    settings = SHAPES | settings
    assert not onednn.supports(images, kernel, **settings)
    with pytest.raises(ValueError, match="not tried"):
        onednn.convolution(images, kernel, **settings)


@pytest.fixture
def fresh():
    """Forget what oneDNN can do here, before the test and after it."""
    for known in (onednn.unavailable, onednn.instructions):
        known.cache_clear()
    yield
    for known in (onednn.unavailable, onednn.instructions):
        known.cache_clear()


def test_an_environment_variable_turns_it_off(monkeypatch, fresh):
    monkeypatch.setenv("FREEADV_ONEDNN", "0")
    assert onednn.unavailable() == "FREEADV_ONEDNN=0"
    assert onednn.choose("auto") == "xla"
    with pytest.raises(InputError, match="unavailable: FREEADV_ONEDNN=0"):
        onednn.choose("onednn")


def test_an_untested_jaxlib_is_not_used(monkeypatch, fresh):
    monkeypatch.delenv("FREEADV_ONEDNN", raising=False)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.99.0")
    assert onednn.unavailable() is not None
    assert onednn.choose("auto") == "xla"


@pytest.mark.parametrize("name", [("Darwin", "x86_64"), ("Linux", "aarch64")])
def test_other_platforms_are_left_alone(name, monkeypatch, fresh):
    monkeypatch.delenv("FREEADV_ONEDNN", raising=False)
    monkeypatch.setattr(platform, "system", lambda: name[0])
    monkeypatch.setattr(platform, "machine", lambda: name[1])
    assert onednn.unavailable() == "only jaxlib for x86-64 Linux contains it"
    assert onednn.choose("auto") == "xla"


@pytest.fixture
def processor(monkeypatch, fresh):
    """Return a function that sets the processor's instructions."""
    for name in ("FREEADV_ONEDNN", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: onednn.TRIED[0])

    def has(*instructions):
        flags = set(instructions)
        monkeypatch.setattr(onednn, "_processor_instructions", lambda: flags)

    return has


AVX512 = ("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl")


def test_a_processor_without_avx2_is_left_alone(processor):
    processor("avx", "sse4_1")
    assert onednn.unavailable() == "the processor lacks avx2, fma"
    assert onednn.choose("auto") == "xla"
    assert not onednn.computes("float32")


def test_a_processor_with_avx2_alone_computes_float32(processor):
    processor("avx2", "fma")
    assert onednn.choose("auto") == "onednn"
    assert onednn.computes("float32") and not onednn.computes("bfloat16")
    with onednn.kernels("onednn"):
        assert onednn.is_chosen("float32") and not onednn.is_chosen("bfloat16")
    numbers = jnp.ones((1, 4, 4, 2), jnp.bfloat16)
    kernel = jnp.ones((3, 3, 2, 2), jnp.bfloat16)
    assert not onednn.supports(numbers, kernel, **SHAPES)
    assert not onednn.multiplies(kernel[0, 0], kernel[0, 0], transposed=None)


def test_a_processor_with_avx512_computes_bfloat16_and_no_other_dtype(processor):
    processor(*AVX512)
    assert onednn.computes("float32") and onednn.computes("bfloat16")
    assert not onednn.computes("float16") and not onednn.computes("float64")


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_onednn_held_to_fewer_instructions_is_taken_at_its_word(
    name, processor, monkeypatch
):
    processor(*AVX512)
    monkeypatch.setenv(name, "avx2")
    assert onednn.computes("float32") and not onednn.computes("bfloat16")


def test_onednn_held_to_avx_is_left_alone(processor, monkeypatch):
    processor(*AVX512)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX")
    assert onednn.unavailable() == "the processor lacks avx2, fma"


def test_the_reason_is_in_the_environment_of_the_results(monkeypatch, fresh):
    monkeypatch.setenv("FREEADV_ONEDNN", "0")
    assert environment()["onednn"] == "FREEADV_ONEDNN=0"


def test_an_unknown_choice_names_those_allowed():
    with pytest.raises(InputError, match="allowed: auto, xla, onednn"):
        onednn.choose("mkl")


@needs_onednn
def test_short_trainings_use_xla_and_long_ones_onednn():
    digits = 4000 * 128 * 8 * 8
    cifar10 = 31_200 * 128 * 32 * 32
    assert onednn.choose("auto", training_pixels=digits) == "xla"
    assert onednn.choose("auto", training_pixels=cifar10) == "onednn"
    assert onednn.choose("onednn", training_pixels=digits) == "onednn"


@needs_onednn
def test_kernels_applies_inside_its_with_block_and_to_functions_it_wraps():
    assert not onednn.is_chosen("float32")
    with onednn.kernels("onednn"):
        assert onednn.is_chosen("float32")
        with onednn.kernels("xla"):
            assert not onednn.is_chosen("float32")
        assert onednn.is_chosen("float32")
    assert onednn.with_kernels("onednn", onednn.is_chosen)("float32")
    assert not onednn.is_chosen("float32")
