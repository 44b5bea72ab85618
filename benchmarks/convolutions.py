"""Time each convolution of a training step on a CPU, by XLA, by oneDNN and by PyTorch.

    python -m benchmarks.convolutions [--networks NAME ... [--images=NAME]]
        [--against=pytorch] [--dtype=float32] [--clock=wall] [--batch_size=32]
        [--rounds=7] [--out=FILE]

The record has the GFLOP/s of the forward pass, of the images' gradient and of the kernel's
gradient, for some 3x3 convolutions or for all layers of the networks. The sides take turns
in one process, and the medians count.

Ours has channels last, as in training. With `--against=pytorch` the others are XLA's with
channels first, and PyTorch's (`pip install '.[references]'`) with channels last, which are
oneDNN's. With `--against=onednn` the other is ours with oneDNN's kernels. That record backs
the rule in `freeadv_jax/models/conv.py` that chooses the kernel of each layer.

A turn is many calls without the first one: after a call PyTorch's threads keep the cores
busy for some milliseconds, as long as a call of a small layer takes. On a machine that does
other work, measure the processor's time of one core: `taskset -c 0 python -m
benchmarks.convolutions --clock=processor ...`.
"""

import collections
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax

from benchmarks.contender import IMAGES, configured_run
from benchmarks.record import write_record
from benchmarks.scaling import forward_products
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.devices import onednn, parallel
from freeadv_jax.errors import InputError
from freeadv_jax.models.conv import convolution

TURN_SECONDS = 0.2
# Largest differences between the sides, relative to the largest value.
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution of square images, padded alike on all sides."""

    side: int
    channels: int
    features: int
    stride: int = 1
    kernel_size: int = 3

    @property
    def padding(self):
        return self.kernel_size // 2

    @property
    def side_out(self):
        return -(-self.side // self.stride)

    def flop(self, batch_size):
        """Return the figures of the forward pass and of either gradient."""
        pixels = batch_size * self.side_out**2
        return 2 * self.kernel_size**2 * self.channels * self.features * pixels

    def __str__(self):
        kernel = (
            "" if self.kernel_size == 3 else f"{self.kernel_size}x{self.kernel_size}, "
        )
        by_two = " / 2" if self.stride == 2 else ""
        return (
            f"{self.side} x {self.side}, {kernel}{self.channels} -> "
            f"{self.features}{by_two}"
        )


LAYERS = (
    Layer(32, 3, 16),
    Layer(32, 16, 16),
    Layer(16, 32, 32),
    Layer(8, 64, 64),
    Layer(32, 16, 64),
    Layer(32, 64, 64),
    Layer(32, 64, 128, 2),
    Layer(16, 128, 128),
    Layer(16, 128, 256, 2),
    Layer(8, 256, 256),
    Layer(8, 256, 512, 2),
    Layer(4, 512, 512),
)
PASSES = ("forward", "images", "kernel")


def layers_of(run) -> dict[Layer, int]:
    """Return the convolutions of the network, and how many it has of each."""
    found = collections.Counter()
    for equation in forward_products(run):
        if equation.primitive.name == "conv_general_dilated":
            images, kernel = (operand.aval.shape for operand in equation.invars)
            stride = equation.params["window_strides"][0]
            found[Layer(images[1], images[3], kernel[3], stride, kernel[0])] += 1
    return dict(found)


def ours(layer, arrays, *, kernels=onednn.XLA, dtype="float32") -> dict[str, Callable]:
    """Return, for each pass, a function that computes it and waits: NHWC and HWIO."""

    def conv(images, kernel):
        sides = ((layer.padding, layer.padding),) * 2
        with onednn.kernels(kernels):
            return convolution(images, kernel, stride=layer.stride, padding=sides)

    return _passes(conv, *(jnp.asarray(array, dtype) for array in arrays))


def channels_first(layer, arrays) -> dict[str, Callable]:
    """Return the same by XLA with channels first, and the gradients that XLA derives.

    Outside a loop those are as fast as ours.
    """

    def conv(images, kernel):
        return lax.conv_general_dilated(
            images,
            kernel,
            (layer.stride, layer.stride),
            ((layer.padding, layer.padding),) * 2,
            dimension_numbers=("NCHW", "HWIO", "NCHW"),
        )

    images, kernel, cotangent = map(jnp.asarray, arrays)
    images, cotangent = (x.transpose(0, 3, 1, 2) for x in (images, cotangent))
    passes = _passes(conv, images, kernel, cotangent)

    def channels_last(call):
        return lambda: call().transpose(0, 2, 3, 1)

    images_like = {name: channels_last(passes[name]) for name in ("forward", "images")}
    return passes | images_like


def _passes(conv, images, kernel, cotangent):
    def gradient(argument, images, kernel, cotangent):
        return jax.vjp(conv, images, kernel)[1](cotangent)[argument]

    def ready(function, *arguments):
        options = parallel.compiler_options()
        compiled = jax.jit(function, compiler_options=options)
        return lambda: np.asarray(compiled(*arguments))

    return {
        "forward": ready(conv, images, kernel),
        "images": ready(lambda *a: gradient(0, *a), images, kernel, cotangent),
        "kernel": ready(lambda *a: gradient(1, *a), images, kernel, cotangent),
    }


def theirs(layer, arrays) -> dict[str, Callable]:
    """Return the same in PyTorch, with results in our order of axes."""
    images, cotangent = (
        torch.from_numpy(x).permute(0, 3, 1, 2) for x in (arrays[0], arrays[2])
    )
    kernel = torch.from_numpy(arrays[1]).permute(3, 2, 0, 1)
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    stride, padding = [layer.stride] * 2, [layer.padding] * 2

    def gradient(argument):
        wanted = [argument == position for position in range(3)]
        return torch.ops.aten.convolution_backward(
            cotangent, images, kernel, None, stride, padding, [1, 1], False, [0, 0], 1,
            wanted,
        )[argument]  # fmt: skip

    def forward():
        return torch.nn.functional.conv2d(images, kernel, None, stride, padding)

    return {
        "forward": lambda: forward().permute(0, 2, 3, 1).numpy(),
        "images": lambda: gradient(0).permute(0, 2, 3, 1).numpy(),
        "kernel": lambda: gradient(1).permute(2, 3, 1, 0).numpy(),
    }


def example(layer, batch_size):
    """Return images, a kernel and the cotangent of the outputs."""
    rng = np.random.default_rng(0)
    side = layer.side_out
    return tuple(
        rng.standard_normal(shape, np.float32)
        for shape in (
            (batch_size, layer.side, layer.side, layer.channels),
            (layer.kernel_size, layer.kernel_size, layer.channels, layer.features),
            (batch_size, side, side, layer.features),
        )
    )


def turn(call, clock="wall") -> float:
    """Return the median seconds of a call, over a turn of calls."""
    now = time.process_time if clock == "processor" else time.perf_counter
    call()
    taken = []
    while sum(taken) < TURN_SECONDS:
        begun = now()
        call()
        taken.append(now() - begun)
    return statistics.median(taken)


def measure(
    layer, batch_size, rounds, *, against="pytorch", dtype="float32", clock="wall"
):
    """Return GFLOP/s for each pass and side, once all sides have computed the same."""
    arrays = example(layer, batch_size)
    if against == "onednn":
        sides = {
            "ours": ours(layer, arrays, dtype=dtype),
            "onednn": ours(layer, arrays, kernels=onednn.ONEDNN, dtype=dtype),
        }
    else:
        sides = {
            "ours": ours(layer, arrays),
            "channels first": channels_first(layer, arrays),
            "pytorch": theirs(layer, arrays),
        }
    rates = {}
    for name in PASSES:
        expected, *found = (side[name]().astype(np.float32) for side in sides.values())
        for other in found:
            scale = np.abs(expected).max()
            np.testing.assert_allclose(
                expected, other, atol=TOLERANCES[dtype] * scale, rtol=0
            )
        seconds = {who: [] for who in sides}
        for _ in range(rounds):
            for who, side in sides.items():
                seconds[who].append(turn(side[name], clock))
        rates[name] = {
            who: layer.flop(batch_size) / statistics.median(taken) / 1e9
            for who, taken in seconds.items()
        }
    return rates


def measured(layers, options):
    """Return the result of `measure` for each layer, and print it at once."""
    found = {}
    for layer in layers:
        found[str(layer)] = measure(
            layer,
            options.batch_size,
            options.rounds,
            against=options.against,
            dtype=options.dtype,
            clock=options.clock,
        )
        print(
            f"{layer!s:32}",
            *(
                f"{name} {' / '.join(f'{rate:4.0f}' for rate in rates.values())}  "
                for name, rates in found[str(layer)].items()
            ),
            flush=True,
        )
    return found


def main(argv):
    parser = Parser("benchmarks.convolutions", __doc__)
    parser.add_argument(
        "--networks",
        metavar="NAME",
        nargs="+",
        default=(),
        help="networks whose layers are timed; default: some 3x3 convolutions",
    )
    parser.add_argument(
        "--images",
        choices=IMAGES,
        help="images of the networks; default: the usual ones of each",
    )
    parser.add_argument(
        "--batch_size", type=count, default=32, help="images in a batch"
    )
    parser.add_argument("--rounds", type=count, default=7, help="turns to take")
    parser.add_argument(
        "--against",
        choices=("pytorch", "onednn"),
        default="pytorch",
        help="whose convolutions ours are compared with",
    )
    parser.add_argument(
        "--dtype",
        choices=TOLERANCES,
        default="float32",
        help="precision of the arithmetic, bfloat16 only with --against=onednn",
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "processor"),
        default="wall",
        help="wall time, or processor time over all cores",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/convolutions.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    if options.dtype != "float32" and options.against == "pytorch":
        raise InputError("--dtype=bfloat16 goes with --against=onednn")
    layers = {
        network: layers_of(configured_run(network, "natural", images=options.images))
        for network in options.networks
    }
    others = "with channels first / PyTorch's"
    if options.against == "onednn":
        others = "with oneDNN's kernels"
    print(f"GFLOP/s, ours / {others}, batches of {options.batch_size}")
    if not layers:
        results = measured(LAYERS, options)
    else:
        results = {"batch": options.batch_size, "images": options.images}
        results["networks"] = {}
    for network, counts in layers.items():
        print(network)
        rates = measured(counts, options)
        results["networks"][network] = {
            str(layer): {
                "count": number,
                "flop": layer.flop(options.batch_size),
                **rates[str(layer)],
            }
            for layer, number in counts.items()
        }
    write_record(options.out, results, packages=("torch",))


if __name__ == "__main__":
    run_command(main)
