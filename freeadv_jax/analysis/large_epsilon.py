"""Draw input gradients, and images attacked far beyond the epsilon of the training.

    python -m freeadv_jax.analysis.large_epsilon MODEL... --out=large_epsilon.png
        [--times=4] [--images=6] [--data=DIR]

For each model the figure shows gradients of the loss in the image, and images attacked
within --times the training's epsilon: away from their class, and towards a chosen one
(Tsipras et al., ICLR 2019). A robust model's gradients follow the shapes in the image,
and its attacked images resemble another class; a natural model's look like noise. The
pictures are kept in MODEL/large_epsilon.npz, so that the same command continues after an
interruption.
"""

import argparse
import math
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from freeadv_jax.analysis.arguments import ModelsParser
from freeadv_jax.analysis.comparison import (
    ComparedModel,
    Examples,
    first_examples,
    open_models,
    threat_text,
)
from freeadv_jax.analysis.plotting import check_figure_path, new_figure, save
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.pgd import PGD
from freeadv_jax.attacks.robustness import epsilon_text
from freeadv_jax.command import count, number, run_command
from freeadv_jax.console import say
from freeadv_jax.devices.compilation import keep_compiled
from freeadv_jax.files import machine_folder
from freeadv_jax.pixels import unit_range
from freeadv_jax.progress import Progress

# The steps add up to 2.5 times the radius, as in Madry et al.'s attacks.
STEPS, _PATH = 100, 2.5
# White and black in the picture of a gradient, in standard deviations (Tsipras et al.
# 2019).
_DEVIATIONS = 3
ROWS = ("gradient", "untargeted", "targeted")
# The images shown are the first of their class among this many test images.
_CHOICE = 200
# Multiple of the training's epsilon, and the radius in [0, 1] pixels that it stays below
# if --times is not given: a ball half as wide as the range of a pixel turns any image
# into flat grey, so that nothing can be seen.
_TIMES, _VISIBLE = 4.0, 0.4
# Images up to this many pixels a side are drawn smoothly.
_SMOOTHED = 16


def one_of_each_class(examples: Examples, images: int) -> Examples:
    """Return the first image of each class, at most `images` in all."""
    _, first = np.unique(examples.labels, return_index=True)
    chosen = np.sort(first)[:images]
    return Examples(
        examples.images[chosen], examples.labels[chosen], examples.class_names
    )


def target_classes(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return a target class for each label, half the classes further on."""
    return ((labels + num_classes // 2) % num_classes).astype(np.int32)


def default_times(norm: str, epsilon: float) -> float:
    """Return 4, or less where an L-inf ball would leave nothing of the image to see."""
    return min(_TIMES, max(1.0, _VISIBLE / epsilon)) if norm == "linf" else _TIMES


def radius(norm: str, epsilon: float, *, times: float) -> float:
    """Return `times` epsilon; an L-inf ball beyond 1 holds no further images."""
    return min(times * epsilon, 1.0 if norm == "linf" else math.inf)


def make(
    model: ComparedModel, examples: Examples, *, times: float, campaign: Campaign
) -> dict[str, np.ndarray]:
    """Return a model's pictures f32[n, h, w, c] by the names of ROWS.

    'image logits' f32[n, k] belong to the images, '<row> logits' to the attacked images.
    """
    threat = model.threat
    epsilon = radius(times=times, **threat)
    settings = {"norm": threat["norm"], "epsilon": epsilon, "data": model.data_name}
    settings |= {"examples": len(examples.labels)}
    kept = model.kept_arrays("large_epsilon", settings)
    arrays = kept.arrays
    images = unit_range(examples.images)
    targets = target_classes(examples.labels, len(examples.class_names))
    goals = {
        "untargeted": ("untargeted", examples.labels),
        "targeted": ("given-target", targets),
    }
    if "gradient" not in arrays:
        gradients = input_gradients(model.logits_fn, images, examples.labels)
        arrays["gradient"] = np.asarray(gradients)
        arrays["image logits"] = campaign.logits(model.logits_fn, images)
        kept.save()
    for row, (goal, labels) in goals.items():
        if row in arrays:
            continue
        attack = PGD(
            threat["norm"],
            epsilon,
            steps=STEPS,
            step_size=_PATH * epsilon / STEPS,
            goal=goal,
            random_start=False,
            last_iterate=True,
        )
        progress = Progress(
            f"{model.label}: {row}", total=len(labels), unit="images", write=say
        )
        attacked = images.copy()
        campaign.attack(
            attack,
            model.logits_fn,
            images,
            labels,
            np.ones(len(labels), bool),
            adversarial=attacked,
            watch=lambda done, _, work, progress=progress: progress.show(
                done, work=work
            ),
        )
        arrays[row] = attacked
        arrays[f"{row} logits"] = campaign.logits(model.logits_fn, attacked)
        kept.save()
    return arrays


@jax.jit
def input_gradients(
    logits_fn: Callable, images: Float[Array, "b h w c"], labels: Int[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Return the gradient of each image's cross-entropy in the image."""
    return jax.grad(lambda x: cross_entropy(logits_fn(x), labels).sum())(images)


def gradient_picture(gradient: np.ndarray) -> np.ndarray:
    """Return a gradient as pixels in [0, 1]: 0 is grey, cut at three deviations."""
    scale = max(_DEVIATIONS * float(gradient.std()), 1e-12)
    return 0.5 + 0.5 * np.clip(gradient / scale, -1, 1)


def draw(
    models: list[ComparedModel], made: list[dict], examples: Examples, *, times: float
):
    """Return a matplotlib Figure: a column for each image, three rows for each model."""
    columns, names = len(examples.labels), examples.class_names
    threat = models[0].threat
    targets = target_classes(examples.labels, len(names))
    figure = new_figure(1.3 * columns + 1.5, 1.42 * (3 * len(models) + 1) + 0.8)
    figure.suptitle(title(times=times, **threat), fontsize=9)
    grid = figure.subplots(3 * len(models) + 1, columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    _name_row(grid[0, 0], "test image")
    for axes, image, label in zip(
        grid[0], unit_range(examples.images), examples.labels
    ):
        _show(axes, image, names[label])
    for place, (model, one) in enumerate(zip(models, made)):
        rows = grid[3 * place + 1 : 3 * place + 4]
        _name_row(rows[0, 0], f"{model.label}\ninput gradient")
        _name_row(rows[1, 0], f"{model.label}\nattacked, away\nfrom its class")
        _name_row(rows[2, 0], f"{model.label}\nattacked, towards\nanother class")
        for column in range(columns):
            picture = gradient_picture(one["gradient"][column])
            prediction = _prediction(names, one["image logits"][column])
            _show(rows[0, column], picture, prediction)
            for axes, row in zip(rows[1:, column], ROWS[1:]):
                prediction = _prediction(names, one[f"{row} logits"][column])
                aim = f"to {names[targets[column]]}:\n" if row == "targeted" else ""
                _show(axes, one[row][column], aim + prediction)
    return figure


def title(norm: str, epsilon: float, *, times: float) -> str:
    """Return the figure's title, which says how large the ball of the attacks is."""
    within = radius(norm, epsilon, times=times)
    return (
        "Input gradients, and images attacked by PGD within "
        f"{threat_text(norm, within)}:\n{within / epsilon:.3g} times the epsilon "
        f"{epsilon_text(epsilon)} of the training, where pixels range from 0 to 1.\n"
        "Below each picture: the model's prediction with its probability."
    )


def main(argv):
    given = _parser().parse_args(argv[1:])
    check_figure_path(given.out)
    models = open_models(given.models)
    keep_compiled(machine_folder(models[0].folder))
    times = given.times or default_times(**models[0].threat)
    choice = first_examples(models, data=given.data, examples=_CHOICE)
    examples = one_of_each_class(choice, given.images)
    campaign = Campaign(batch_size=len(examples.labels))
    made = [make(model, examples, times=times, campaign=campaign) for model in models]
    save(draw(models, made, examples, times=times), given.out)
    print(f"written to {given.out}")


def _parser():
    parser = ModelsParser("freeadv_jax.analysis.large_epsilon", __doc__)
    parser.add_argument(
        "--times",
        type=_times,
        metavar="NUMBER",
        help=f"multiple of the training's epsilon, above 0; default: {_TIMES:g}, or less where "
        f"an L-inf ball would exceed {_VISIBLE}",
    )
    parser.add_argument(
        "--images", type=count, default=6, help="test images, each of another class"
    )
    return parser


def _times(text):
    times = number(text)
    if not 0 < times < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0")
    return times


def _name_row(axes, text):
    axes.set_ylabel(text, fontsize=8, rotation=0, ha="right", va="center")


def _show(axes, image, below):
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    # In squares as large as those of 8 x 8 pixels people see no shapes.
    smooth = "bicubic" if max(image.shape[:2]) <= _SMOOTHED else "nearest"
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation=smooth)
    axes.set_xlabel(below.replace("_", " "), fontsize=7, labelpad=2)


def _prediction(names, logits):
    """The likeliest class with its probability."""
    exponentials = np.exp(logits - logits.max())
    label = int(logits.argmax())
    probability = exponentials[label] / exponentials.sum()
    return f"{names[label]} ({100 * probability:.0f} %)"


if __name__ == "__main__":
    run_command(main)
