"""Measure how many images a second CROWN certifies, and against auto_LiRPA where it runs.

    python -m benchmarks.certificates --data=DIR [--workdir=DIR] [--images=200]

The model is a residual network of two blocks and 112,006 parameters, trained by Free-4
within 2/255 on CIFAR-10; its weights are kept under --workdir. Only images that it
classifies correctly are bounded. The machine may be shared, so the seconds are those that
the processor spent on this process, and the images a second those of two cores. With
--images=10000 all test images are bounded, right or wrong.
"""

import pathlib
import resource
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import freeadv_jax as fa
from benchmarks.record import write_record
from freeadv_jax.attacks import pgd
from freeadv_jax.certify import crown
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.data.dataset import load_dataset
from freeadv_jax.pixels import unit_range

EPSILON = 2 / 255
TRAINING = {"method": "free", "epsilon": EPSILON, "replays": 4, "seed": 0}
TRAINING |= {"batch_size": 128, "learning_rate": 0.05}
# [height, width, channels in, channels out] of each kernel.
KERNELS = {
    "stem": (3, 3, 3, 8),
    "first": (3, 3, 8, 16),
    "second": (3, 3, 16, 16),
    "shortcut": (1, 1, 8, 16),
    "third": (3, 3, 16, 16),
    "fourth": (3, 3, 16, 16),
    "hidden": (1024, 100),
    "output": (100, 10),
}
CORES = 2


def init(key, image_shape):
    """Return random weights {name: (kernel, bias)} for images of CIFAR-10."""
    assert image_shape == (32, 32, 3), image_shape
    weights = {}
    for number, (name, shape) in enumerate(KERNELS.items()):
        fan_in = np.prod(shape[:-1])
        kernel = jax.random.normal(jax.random.fold_in(key, number), shape)
        weights[name] = kernel * np.float32((2 / fan_in) ** 0.5), jnp.zeros(shape[-1])
    return weights


def apply(weights, images):
    """Return the logits [b, 10] of images [b, 32, 32, 3]."""

    def convolved(x, name, stride=1):
        kernel, bias = weights[name]
        pad = kernel.shape[0] // 2
        pads = ((pad, pad), (pad, pad))
        strides = (stride, stride)
        dimensions = ("NHWC", "HWIO", "NHWC")
        found = lax.conv_general_dilated(
            x, kernel, strides, pads, dimension_numbers=dimensions
        )
        return found + bias

    x = jax.nn.relu(convolved(images, "stem", 2))
    inner = jax.nn.relu(convolved(x, "first", 2))
    x = jax.nn.relu(convolved(inner, "second") + convolved(x, "shortcut", 2))
    inner = jax.nn.relu(convolved(x, "third"))
    x = jax.nn.relu(convolved(inner, "fourth") + x).reshape(len(x), -1)
    for name in ("hidden", "output"):
        kernel, bias = weights[name]
        x = x @ kernel + bias
        x = jax.nn.relu(x) if name == "hidden" else x
    return x


def trained(dataset, workdir, updates, **changes):
    """Return the network's weights, trained for `updates` or read from `workdir`.

    `changes` are settings of `fit` in place of TRAINING's.
    """
    path = workdir / f"weights-{updates}.npz"
    if not path.exists():
        train = dataset.train
        classifier = fa.fit(
            (init, apply),
            train.images,
            train.labels,
            updates=updates,
            **TRAINING | changes,
        )
        workdir.mkdir(parents=True, exist_ok=True)
        arrays = {
            f"{name}/{part}": np.asarray(array)
            for name, pair in classifier.variables["params"].items()
            for part, array in zip(("kernel", "bias"), pair)
        }
        np.savez(path, **arrays)
    with np.load(path) as file:
        return {
            name: (file[f"{name}/kernel"], file[f"{name}/bias"]) for name in KERNELS
        }


def measured(function):
    """Return what a function gives, the seconds it took and the processor's seconds."""
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    found = function()
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return found, time.perf_counter() - begun, spent


def rate(images, spent):
    """Return the images a second on CORES, from the processor's seconds."""
    return CORES * images / spent


def chosen_images(weights, split, images):
    """Return the first test images that are classified correctly, and the natural accuracy.

    All test images are returned where so many are asked for, right or wrong.
    """
    first = slice(4 * images)
    pixels, labels = unit_range(split.images[first]), split.labels[first]
    right = np.asarray(jax.jit(apply)(weights, pixels)).argmax(axis=1) == labels
    asked_for_all = images >= len(split.labels)
    few = np.arange(len(labels)) if asked_for_all else np.flatnonzero(right)[:images]
    return pixels[few], labels[few], float(right.mean())


def measure(weights, split, images, rows):
    """Return the record of CROWN on so many images, and their margins."""
    model = jax.tree_util.Partial(apply, weights)
    pixels, labels, natural = chosen_images(weights, split, images)
    ball = {"norm": "linf", "epsilon": EPSILON}
    how = ball | {"rows": rows}
    _, compiling, spent_compiling = measured(
        lambda: crown(model, pixels[:16], labels[:16], **how)
    )
    found, seconds, spent = measured(lambda: crown(model, pixels, labels, **how))
    broken = pgd(model, pixels, labels, **ball, steps=20).success
    assert not (broken & found.certified).any()
    record = {
        "images": len(labels),
        "rows": rows,
        "natural_accuracy": natural,
        "certified": int(found.certified.sum()),
        "broken_by_pgd_20": int(broken.sum()),
        "seconds": seconds,
        "processor_seconds": spent,
        "images_per_second_on_two_cores": rate(len(labels), spent),
        "first_call": {"seconds": compiling, "processor_seconds": spent_compiling},
    }
    return record, (pixels, labels, found.margins)


def auto_lirpa():
    """Return why auto_LiRPA does not run beside this PyTorch, or None where it does."""
    tried = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "auto_LiRPA"],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        import auto_LiRPA  # noqa: F401
    except ImportError as fault:
        lines = (tried.stdout + tried.stderr).splitlines()
        conflict = [line.strip() for line in lines if "depends on torch" in line]
        errors = [line for line in lines if line.startswith("ERROR")]
        return {"import": str(fault), "pip": [*conflict, *errors]}
    return None


def beside_auto_lirpa(weights, kept, turns):
    """Return the times of both in turns, and the largest difference of their margins."""
    import torch
    from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm

    pixels, labels, margins = kept
    model = torch_model(weights)
    points = torch.tensor(np.moveaxis(pixels, -1, 1).copy())
    low, high = (points - EPSILON).clamp(0, 1), (points + EPSILON).clamp(0, 1)
    bounded = BoundedModule(model, points[:1])
    rows = torch.eye(10)[torch.tensor(labels, dtype=torch.long)][:, None] - torch.eye(
        10
    )

    def bounds():
        found = []
        for part in torch.arange(len(points)).split(16):
            ball = PerturbationLpNorm(
                norm=np.inf, eps=EPSILON, x_L=low[part], x_U=high[part]
            )
            inputs = BoundedTensor(points[part], ball)
            lower, _ = bounded.compute_bounds(
                x=(inputs,), C=rows[part], method="CROWN", bound_upper=False
            )
            found.append(lower.detach().numpy())
        return np.concatenate(found)

    ours = jax.tree_util.Partial(apply, weights)
    theirs, spent = [], {"ours": [], "auto_LiRPA": []}
    for _ in range(turns):
        call = lambda: crown(ours, pixels, labels, epsilon=EPSILON)
        spent["ours"].append(measured(call)[2])
        theirs, _, seconds = measured(bounds)
        spent["auto_LiRPA"].append(seconds)
    others = np.isfinite(margins)
    return {
        "processor_seconds": spent,
        "largest_difference": float(np.abs(theirs - margins)[others].max()),
    }


def torch_model(weights):
    """Return the same network as a module of PyTorch."""
    import torch
    from torch import nn

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            for name, (kernel, bias) in weights.items():
                if kernel.ndim == 2:
                    layer = nn.Linear(*kernel.shape)
                    array = kernel.T
                    if name == "hidden":  # PyTorch flattens the channels first.
                        array = array.reshape(-1, 8, 8, 16).transpose(0, 3, 1, 2)
                        array = array.reshape(len(array), -1)
                else:
                    side, _, channels, features = kernel.shape
                    stride = 2 if name in ("stem", "first", "shortcut") else 1
                    layer = nn.Conv2d(channels, features, side, stride, side // 2)
                    array = kernel.transpose(3, 2, 0, 1)
                layer.weight.data = torch.tensor(array.copy())
                layer.bias.data = torch.tensor(bias)
                setattr(self, name, layer)

        def forward(self, x):
            x = torch.relu(self.stem(x))
            x = torch.relu(self.second(torch.relu(self.first(x))) + self.shortcut(x))
            x = torch.relu(self.fourth(torch.relu(self.third(x))) + x)
            return self.output(torch.relu(self.hidden(torch.flatten(x, 1))))

    return Network()


def main(argv):
    options = _parser().parse_args(argv[1:])
    dataset = load_dataset(
        name="cifar10",
        dir=options.data,
        manual_dir="",
        validation_examples=0,
        pad=4,
        flip=True,
        image_size=32,
        prefetch=2,
        max_corrupt=0.0,
    )
    weights = trained(dataset, options.workdir, options.updates)
    record, kept = measure(weights, dataset.test, options.images, options.rows)
    sizes = sum(array.size for pair in weights.values() for array in pair)
    results = {"parameters": sizes, "updates": options.updates, "crown": record}
    why = auto_lirpa()
    if why:
        results["auto_LiRPA"] = {"runs": False} | why
    else:
        results["auto_LiRPA"] = beside_auto_lirpa(weights, kept, options.turns)
    print(record)
    write_record(options.out, results)


def _parser():
    parser = Parser("benchmarks.certificates", __doc__)
    add = parser.add_argument
    add("--data", metavar="DIR", required=True, help="the folder that holds CIFAR-10")
    add(
        "--workdir",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/benchmark-certificates",
        help="the folder of the weights",
    )
    add("--images", type=count, default=200, help="the images bounded")
    add("--updates", type=count, default=600, help="the updates of the training")
    add("--rows", type=count, default=64, help="the entries bounded at a time")
    add("--turns", type=count, default=3, help="the turns with auto_LiRPA")
    add(
        "--out",
        metavar="FILE",
        default="benchmarks/results/certificates.json",
        help="the record to write",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
