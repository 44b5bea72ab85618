"""Draw the loss around a test image, and measure its flatness on many images.

    python -m freeadv_jax.analysis.loss_surface MODEL... --out=loss_surface.png
        [--image=3] [--examples=100] [--points=41] [--data=DIR]

The figure shows each model's loss on grids around one test image, by default the first
that all models classify correctly. One grid spans an adversarial and a random direction,
the other two random ones. Two numbers are means over the first --examples images: the
largest rise of the loss within the ball, and the local linearity error. They go to a JSON
file beside the figure. Measurements are kept in MODEL/loss_surface.npz, so that the same
command continues after an interruption.
"""

import jax.numpy as jnp
import numpy as np

from freeadv_jax.analysis.arguments import ModelsParser, image_number
from freeadv_jax.analysis.comparison import (
    ComparedModel,
    Examples,
    first_examples,
    open_models,
)
from freeadv_jax.analysis.flatness import flatness, loss_grid, random_direction
from freeadv_jax.analysis.plotting import INK, check_figure_path, new_figure, save
from freeadv_jax.attacks.attack import attack_keys
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.robustness import epsilon_text
from freeadv_jax.command import run_command, several
from freeadv_jax.console import say
from freeadv_jax.devices.compilation import keep_compiled
from freeadv_jax.errors import InputError
from freeadv_jax.files import machine_folder, write_json
from freeadv_jax.pixels import unit_range
from freeadv_jax.progress import Progress

# The grids reach a little beyond the ball, whose edge is at 1.
_WIDTH = 1.5
_TICKS = (-1, 0, 1)
_BATCH_SIZE = 50
PLANES = ("adversarial", "random")


def measure(
    model: ComparedModel, examples: Examples, *, image: int, points: int
) -> dict[str, np.ndarray]:
    """Return the grids 'adversarial' and 'random' around an image, and the flatness.

    The grids are f32[points, points]; 'rise' and 'error' f32[n] belong to the n
    examples. All are kept in the model's folder.
    """
    images, labels = unit_range(examples.images), examples.labels
    settings = model.threat | {"data": model.data_name, "image": image}
    settings |= {"points": points, "examples": len(labels)}
    kept = model.kept_arrays("loss_surface", settings)
    keys = attack_keys(np.uint32(0), jnp.arange(len(labels)), jnp.zeros_like(labels))
    _measure_flatness(model, images, labels, keys, kept)
    if not all(plane in kept.arrays for plane in PLANES):
        one = slice(image, image + 1)
        worst = flatness(
            model.logits_fn, images[one], labels[one], keys[one], **model.threat
        )["worst"][0]
        random = [
            random_direction(seed, worst.shape, **model.threat) for seed in (0, 1)
        ]
        for plane, first in zip(PLANES, (worst, random[1])):
            say(f"{model.label}: the {plane} plane")
            kept.arrays[plane] = np.asarray(
                loss_grid(
                    model.logits_fn,
                    images[image],
                    labels[image],
                    jnp.stack([jnp.asarray(first), jnp.asarray(random[0])]),
                    _coordinates(points),
                )
            )
        kept.save()
    return kept.arrays


def _measure_flatness(model, images, labels, keys, kept):
    """Measure 'rise' and 'error' of the images that still lack them."""
    arrays = kept.arrays
    if "rise" not in arrays:
        arrays |= {name: np.full(len(labels), np.nan) for name in ("rise", "error")}
    progress = Progress(
        f"{model.label}: flatness", total=len(labels), unit="images", write=say
    )
    for first in range(0, len(labels), _BATCH_SIZE):
        batch = slice(first, first + _BATCH_SIZE)
        if np.isnan(arrays["error"][batch]).any():
            found = flatness(
                model.logits_fn,
                images[batch],
                labels[batch],
                keys[batch],
                **model.threat,
            )
            arrays["rise"][batch], arrays["error"][batch] = (
                found["rise"],
                found["error"],
            )
            kept.save()
            done = min(first + _BATCH_SIZE, len(labels))
            progress.show(done, error=float(np.nanmean(arrays["error"])))


def draw(models: list[ComparedModel], measured: list[dict], image: int):
    """Return a matplotlib Figure: a row for each model, each grid in two forms."""
    figure = new_figure(13.5, 3.6 * len(models))
    rows = figure.subfigures(len(models), 1, squeeze=False)[:, 0]
    highest = max(one[plane].max() for one in measured for plane in PLANES)
    for row, model, one in zip(rows, models, measured):
        rise, error = one["rise"], one["error"]
        row.suptitle(
            f"{model.label}:  largest rise {rise[image]:.2f}, linearity error "
            f"{error[image]:.2f}  (mean of {len(rise)} images: {rise.mean():.2f}, "
            f"{error.mean():.2f})",
            fontsize=10.5,
            fontweight="bold",
            x=0.01,
            horizontalalignment="left",
        )
        for column, plane in enumerate(PLANES):
            surface = row.add_subplot(1, 4, 2 * column + 1, projection="3d")
            _draw_surface(surface, one[plane], plane, highest)
            contours = row.add_subplot(1, 4, 2 * column + 2)
            _draw_contours(contours, one[plane], plane)
    return figure


def _draw_surface(axes, grid, plane, highest):
    x = _coordinates(len(grid))
    a, b = np.meshgrid(x, x, indexing="ij")
    axes.plot_surface(
        a,
        b,
        grid,
        cmap="viridis",
        vmin=0,
        vmax=highest,
        rcount=30,
        ccount=30,
        linewidth=0.1,
        edgecolor=INK,
    )
    axes.set(zlim=(0, highest), xlabel=plane, ylabel="random")
    # Few ticks: in perspective the labels of close ones collide.
    axes.set(xticks=_TICKS, yticks=_TICKS)
    axes.locator_params(axis="z", nbins=4)
    axes.set_title("loss, one scale for all", fontsize=8, fontweight="normal")
    axes.tick_params(labelsize=7, pad=-1)
    axes.view_init(elev=28, azim=-58)
    # Makes room for the labels, which a 3-D axes does not count as its own.
    axes.set_box_aspect(None, zoom=0.85)


def _draw_contours(axes, grid, plane):
    """Filled contours with levels of their own, which show the shape at any height."""
    x = _coordinates(len(grid))
    filled = axes.contourf(x, x, grid.T, levels=10, cmap="viridis")
    # A bar beside the plane: labels on the lines are clipped at its edge.
    axes.figure.colorbar(filled, ax=axes, shrink=0.75, format="%.3g").set_label("loss")
    axes.plot(0, 0, "+", color="white")
    axes.set_xlabel(f"{plane} direction, in epsilons")
    axes.set_ylabel("random direction")
    axes.set(xticks=_TICKS, yticks=_TICKS)
    axes.set_aspect("equal")


def record(models: list[ComparedModel], measured: list[dict], image: int) -> dict:
    """Return the numbers of the figure by model, for a JSON file."""
    return {
        model.label: {
            "folder": model.folder.name,
            "image": image,
            "examples": len(one["rise"]),
        }
        | {
            name: {
                "at the image": float(one[name][image]),
                "mean": float(one[name].mean()),
                "standard error": float(
                    one[name].std(ddof=1) / np.sqrt(len(one[name]))
                ),
            }
            for name in ("rise", "error")
        }
        for model, one in zip(models, measured)
    }


def main(argv):
    given = _parser().parse_args(argv[1:])
    check_figure_path(given.out)
    models = open_models(given.models)
    keep_compiled(machine_folder(models[0].folder))
    examples = first_examples(models, data=given.data, examples=given.examples)
    image = _chosen(models, examples, given.image)
    measured = [
        measure(model, examples, image=image, points=given.points) for model in models
    ]
    save(draw(models, measured, image), given.out)
    numbers = record(models, measured, image)
    write_json(given.out.with_suffix(".json"), numbers)
    width = max(map(len, numbers)) + 2
    print(
        f"means of {len(examples.labels)} images, within epsilon "
        f"{epsilon_text(models[0].threat['epsilon'])}"
    )
    for label, row in numbers.items():
        rise, error = row["rise"]["mean"], row["error"]["mean"]
        print(f"{label:<{width}}largest rise {rise:8.3f}  linearity error {error:8.3f}")
    print(f"written to {given.out}")


def _parser():
    parser = ModelsParser("freeadv_jax.analysis.loss_surface", __doc__)
    parser.add_argument(
        "--image",
        type=image_number,
        metavar="N",
        help="number of the drawn test image, from 0; default: the first that every "
        "model classifies correctly",
    )
    parser.add_argument(
        "--examples",
        type=several,  # A deviation needs two images.
        default=100,
        help="test images for the numbers",
    )
    parser.add_argument(
        "--points",
        type=several,  # Contours need two points.
        default=41,
        help="grid points on each side",
    )
    return parser


def _chosen(models, examples, given):
    """The number of the image to draw."""
    if given is not None:
        if given >= len(examples.labels):
            raise InputError(
                f"--image={given}: must be below --examples={len(examples.labels)}"
            )
        return given
    campaign = Campaign(batch_size=_BATCH_SIZE)
    correct = np.ones(len(examples.labels), bool)
    for model in models:
        logits = campaign.logits(model.logits_fn, examples.images)
        correct &= logits.argmax(axis=-1) == examples.labels
    if not correct.any():
        raise InputError(
            f"no image of the first {len(correct)} is classified correctly by every "
            "model: choose one with --image, or give more --examples"
        )
    return int(correct.argmax())


def _coordinates(points):
    return np.linspace(-_WIDTH, _WIDTH, points, dtype=np.float32)


if __name__ == "__main__":
    run_command(main)
