"""What images become under attacks far beyond the training's epsilon, as a figure.

    python -m freeadv_jax.analysis.large_epsilon RUN... --out=large_epsilon.png
        [--times=4] [--images=6] [--data=DIR]

For each model input gradients, and images attacked within --times the epsilon of the
training, away from their class and towards a chosen one (Tsipras et al., ICLR 2019). A
robust model's gradients follow the shapes in the image, and its attacked images look
like another class; a natural model's look like noise. What was made is kept in
RUN/large_epsilon.npz, and the same command goes on where it was cut off.
"""

import argparse
import math
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from freeadv_jax.analysis.command import Parser
from freeadv_jax.analysis.comparison import (
    Examples,
    Subject,
    first_examples,
    number,
    open_subjects,
    threat,
)
from freeadv_jax.analysis.plotting import check_figure_path, new_figure, save
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.pgd import PGD
from freeadv_jax.command import count, run_command
from freeadv_jax.console import say
from freeadv_jax.devices.compilation import keep_compiled
from freeadv_jax.progress import Progress

# The path is 2.5 times the radius, as for Madry et al.'s attacks.
STEPS, _PATH = 100, 2.5
# Brightest and darkest of a gradient, in standard deviations (Tsipras et al. 2019).
_DEVIATIONS = 3
ROWS = ("gradient", "untargeted", "targeted")
# Of the first so many test images, one a class is shown.
_CHOICE = 200


def one_of_each_class(examples: Examples, images: int) -> Examples:
    """So many images of different classes, the first of each."""
    _, first = np.unique(examples.labels, return_index=True)
    chosen = np.sort(first)[:images]
    return Examples(
        examples.images[chosen], examples.labels[chosen], examples.class_names
    )


def target_classes(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The class each image is driven to: the one half way round from its own."""
    return ((labels + num_classes // 2) % num_classes).astype(np.int32)


def radius(norm: str, epsilon: float, *, times: float) -> float:
    """So many times epsilon; beyond 1 an L-inf ball holds no more images."""
    return min(times * epsilon, 1.0 if norm == "linf" else math.inf)


def make(
    subject: Subject, examples: Examples, *, times: float, campaign: Campaign
) -> dict[str, np.ndarray]:
    """By the names of ROWS the pictures f32[n, h, w, c] of a model.

    And the logits of the image itself and of the attacked ones, '<row> logits'.
    """
    config = subject.run.config
    ball = threat(config)
    epsilon = radius(times=times, **ball)
    about = {"norm": ball["norm"], "epsilon": epsilon, "data": config.data.name}
    kept = subject.kept("large_epsilon", about | {"examples": len(examples.labels)})
    arrays = kept.arrays
    images = examples.images.astype(np.float32) / np.float32(255)
    targets = target_classes(examples.labels, len(examples.class_names))
    goals = {
        "untargeted": ("untargeted", examples.labels),
        "targeted": ("given-target", targets),
    }
    if "gradient" not in arrays:
        gradients = input_gradients(subject.logits_fn, images, examples.labels)
        arrays["gradient"] = np.asarray(gradients)
        arrays["image logits"] = campaign.logits(subject.logits_fn, images)
        kept.save()
    for row, (goal, labels) in goals.items():
        if row in arrays:
            continue
        attack = PGD(
            ball["norm"],
            epsilon,
            steps=STEPS,
            step_size=_PATH * epsilon / STEPS,
            goal=goal,
            random_start=False,
            last_iterate=True,
        )
        progress = Progress(
            f"{subject.label}: {row}", total=len(labels), unit="images", write=say
        )
        attacked = images.copy()
        campaign.attack(
            attack,
            subject.logits_fn,
            images,
            labels,
            np.ones(len(labels), bool),
            adversarial=attacked,
            watch=lambda done, _, progress=progress: progress.show(done),
        )
        arrays[row] = attacked
        arrays[f"{row} logits"] = campaign.logits(subject.logits_fn, attacked)
        kept.save()
    return arrays


@jax.jit
def input_gradients(
    logits_fn: Callable, images: Float[Array, "b h w c"], labels: Int[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Of the cross-entropy in each image."""
    return jax.grad(lambda x: cross_entropy(logits_fn(x), labels).sum())(images)


def gradient_picture(gradient: np.ndarray) -> np.ndarray:
    """A gradient as pixels in [0, 1]: 0 is grey, cut at three deviations."""
    scale = max(_DEVIATIONS * float(gradient.std()), 1e-12)
    return 0.5 + 0.5 * np.clip(gradient / scale, -1, 1)


def draw(
    subjects: list[Subject], made: list[dict], examples: Examples, *, times: float
):
    """A matplotlib Figure: a column an image, and below it three rows a model."""
    columns, names = len(examples.labels), examples.class_names
    config = subjects[0].run.config
    within = number(radius(times=times, **threat(config)))
    targets = target_classes(examples.labels, len(names))
    figure = new_figure(1.3 * columns + 1.1, 1.42 * (3 * len(subjects) + 1))
    grid = figure.subplots(3 * len(subjects) + 1, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    images = examples.images.astype(np.float32) / np.float32(255)
    _name_row(grid[0, 0], "test image")
    for axes, image, label in zip(grid[0], images, examples.labels):
        _show(axes, image, names[label])
    for place, (subject, one) in enumerate(zip(subjects, made)):
        rows = grid[3 * place + 1 : 3 * place + 4]
        _name_row(rows[0, 0], f"{subject.label}\ninput gradient")
        _name_row(rows[1, 0], f"{subject.label}\naway, {within}")
        _name_row(rows[2, 0], f"{subject.label}\nto a class, {within}")
        for column in range(columns):
            picture = gradient_picture(one["gradient"][column])
            _show(rows[0, column], picture, _says(names, one["image logits"][column]))
            for axes, row in zip(rows[1:, column], ROWS[1:]):
                said = _says(names, one[f"{row} logits"][column])
                aim = f"to {names[targets[column]]}:\n" if row == "targeted" else ""
                _show(axes, one[row][column], aim + said)
    return figure


def main(argv):
    parser = Parser("freeadv_jax.analysis.large_epsilon", __doc__)
    say = parser.add_argument
    say("--times", type=_times, default=4.0, help="the epsilon of the training")
    say("--images", type=count, default=6, help="of different classes")
    given = parser.parse_args(argv[1:])
    check_figure_path(given.out)
    subjects = open_subjects(given.runs)
    keep_compiled(subjects[0].run.workdir)
    choice = first_examples(subjects, data=given.data, examples=_CHOICE)
    examples = one_of_each_class(choice, given.images)
    campaign = Campaign(batch_size=len(examples.labels))
    made = [
        make(subject, examples, times=given.times, campaign=campaign)
        for subject in subjects
    ]
    save(draw(subjects, made, examples, times=given.times), given.out)
    print(f"written to {given.out}")


def _times(text):
    try:
        times = float(text)
    except ValueError:
        times = math.nan
    if not 0 < times < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0")
    return times


def _name_row(axes, text):
    axes.set_ylabel(text, fontsize=8, rotation=0, ha="right", va="center")


def _show(axes, image, below):
    shown = image[..., 0] if image.shape[-1] == 1 else image
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel(below.replace("_", " "), fontsize=7, labelpad=2)


def _says(names, logits):
    """The likeliest class with its probability."""
    shifted = np.exp(logits - logits.max())
    label = int(logits.argmax())
    return f"{names[label]} ({100 * shifted[label] / shifted.sum():.0f} %)"


if __name__ == "__main__":
    run_command(main)
