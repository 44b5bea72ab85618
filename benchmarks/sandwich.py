"""Draw certified <= robust <= attacked against epsilon, for several ways of training.

    python -m benchmarks.sandwich [--images=100] [--out=FILE] [--picture=FILE.png]

A small network is trained on digits naturally, by Free-8 and by IBP. CROWN and PGD then
evaluate it at every epsilon. The pictures are those of the report, and the record has
their numbers.
"""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import freeadv_jax as fa
from benchmarks.record import write_record
from freeadv_jax.analysis.plotting import SERIES, new_figure, save
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.report.certified_tables import PARTS
from freeadv_jax.report.figures import draw_sandwich

# In [0, 1] pixels.
RADII = (0.01, 0.02, 0.04, 0.07, 0.1)
EPSILON = 0.1
ATTACKS = ("natural", "pgd-50", "crown")
LAYERS = (64, 64, 64, 10)
COMMON = {"batch_size": 64, "learning_rate": 0.05, "epsilon": EPSILON, "seed": 0}
TRAININGS = {
    "natural": {"method": "natural", "updates": 800},
    "Free-8": {"method": "free", "replays": 8, "updates": 3_200},
    "IBP": {"method": "ibp", "updates": 3_200},
}


def init(key, image_shape):
    """Return random weights of a dense network of LAYERS."""
    weights = []
    for number, (inputs, outputs) in enumerate(itertools.pairwise(LAYERS)):
        kernel = jax.random.normal(jax.random.fold_in(key, number), (inputs, outputs))
        weights.append((kernel * np.float32((2 / inputs) ** 0.5), jnp.zeros(outputs)))
    return {"layers": weights}


def apply(weights, images):
    """Return the logits [b, 10] of digits [b, 8, 8, 1]."""
    x = images.reshape(len(images), -1)
    *hidden, (kernel, bias) = weights["layers"]
    for each, shift in hidden:
        x = jax.nn.relu(x @ each + shift)
    return x @ kernel + bias


def measure(images):
    """Return by training the shares of PARTS by epsilon, and the rows they are made of."""
    digits = load_arrays("digits", "", validation_examples=0)
    few = digits.test.images[:images], digits.test.labels[:images]
    found = {}
    for name, settings in TRAININGS.items():
        train = digits.train.images, digits.train.labels
        classifier = fa.fit((init, apply), *train, **COMMON | settings)
        by_epsilon = {}
        for epsilon in RADII:
            table = fa.robust_accuracy(
                classifier, *few, epsilon=epsilon, attacks=ATTACKS, red_flags=False
            )
            both = table.sandwich
            assert not both["violations"], both["text"]
            by_epsilon[epsilon] = {
                **{part: both[part] / both["examples"] for part in PARTS},
                "attacked": table.rows["pgd-50"]["accuracy"],
                **{
                    f"certified_by_{each}": row["accuracy"]
                    for each, row in table.certified_rows.items()
                },
            }
            print(f"{name} at {epsilon}: {both['text']}", flush=True)
        natural = table.rows["natural"]["accuracy"]
        found[name] = {
            "training": settings,
            "natural": natural,
            "images": len(few[1]),
            "by_epsilon": by_epsilon,
        }
    return found


def draw(results, path):
    """Write the picture: a plot for each training, side by side."""
    figure = new_figure(3.1 * len(results), 2.9)
    for axes, colour, (name, result) in zip(
        np.atleast_1d(figure.subplots(1, len(results), sharey=True)),
        SERIES,
        results.items(),
    ):
        right = result["natural"]
        shares = {0.0: {"certified": right, "open": 0.0, "broken": 1 - right}}
        draw_sandwich(axes, shares | result["by_epsilon"], colour)
        axes.set(title=name, xlabel="epsilon, pixels range from 0 to 1")
        axes.legend(fontsize=8, loc="lower left", frameon=True)
    save(figure, path)


def main(argv):
    options = _parser().parse_args(argv[1:])
    results = measure(options.images)
    draw(results, options.picture)
    write_record(options.out, results)


def _parser():
    parser = Parser("benchmarks.sandwich", __doc__)
    add = parser.add_argument
    add("--images", type=count, default=100, help="the test images evaluated")
    add(
        "--picture",
        metavar="FILE",
        type=pathlib.Path,
        default="docs/sandwich.png",
        help="the picture to write",
    )
    add(
        "--out",
        metavar="FILE",
        default="benchmarks/results/sandwich.json",
        help="the record to write",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
