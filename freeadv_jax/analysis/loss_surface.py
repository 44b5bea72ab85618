"""How flat the loss is around test images, as pictures and as two numbers a model.

    python -m freeadv_jax.analysis.loss_surface RUN... --out=loss_surface.png
        [--image=3] [--examples=100] [--points=41] [--data=DIR]

The loss of each model on a grid around one test image, by default the first that all
classify right: along an adversarial and a random direction, and along two random ones.
The numbers are means over --examples images: the largest rise of the loss within the
ball, and the local linearity error. They go to a JSON file beside the figure; what was
measured is kept in RUN/loss_surface.npz, and the same command goes on where it was cut
off.
"""

import argparse

import jax.numpy as jnp
import numpy as np

from freeadv_jax.analysis.command import Parser, place
from freeadv_jax.analysis.comparison import (
    Examples,
    Subject,
    first_examples,
    number,
    open_subjects,
    threat,
)
from freeadv_jax.analysis.flatness import flatness, loss_grid, random_direction
from freeadv_jax.analysis.plotting import INK, check_figure_path, new_figure, save
from freeadv_jax.attacks.attack import attack_keys
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.command import run_command
from freeadv_jax.console import say
from freeadv_jax.devices.compilation import keep_compiled
from freeadv_jax.errors import InputError
from freeadv_jax.files import write_json
from freeadv_jax.progress import Progress

# The pictures are a little wider than the ball, whose edge is at 1.
_WIDTH = 1.5
# Images in one ascent.
_BATCH = 50
PLANES = ("adversarial", "random")


def measure(
    subject: Subject, examples: Examples, *, image: int, points: int
) -> dict[str, np.ndarray]:
    """The planes 'adversarial' and 'random' around an image, f32[points, points].

    And for the images 'rise' and 'error' f32[n]. Kept in the run folder.
    """
    config = subject.run.config
    ball, name = threat(config), subject.label
    images, labels = _floats(examples.images), examples.labels
    about = ball | {"data": config.data.name, "image": image, "points": points}
    kept = subject.kept("loss_surface", about | {"examples": len(labels)})
    arrays = kept.arrays
    keys = attack_keys(np.uint32(0), jnp.arange(len(labels)), jnp.zeros_like(labels))
    if "rise" not in arrays:
        arrays |= {of: np.full(len(labels), np.nan) for of in ("rise", "error")}
    progress = Progress(
        f"{name}: flatness", total=len(labels), unit="images", write=say
    )
    for first in range(0, len(labels), _BATCH):
        few = slice(first, first + _BATCH)
        if np.isnan(arrays["error"][few]).any():
            found = flatness(
                subject.logits_fn,
                images[few],
                labels[few],
                keys[few],
                **ball,
            )
            arrays["rise"][few], arrays["error"][few] = found["rise"], found["error"]
            kept.save()
            done = min(first + _BATCH, len(labels))
            progress.show(done, error=float(np.nanmean(arrays["error"])))
    if not all(plane in arrays for plane in PLANES):
        one = slice(image, image + 1)
        worst = flatness(
            subject.logits_fn,
            images[one],
            labels[one],
            keys[one],
            **ball,
        )["worst"][0]
        random = [random_direction(seed, worst.shape, **ball) for seed in (0, 1)]
        for plane, first in zip(PLANES, (worst, random[1])):
            say(f"{name}: the {plane} plane")
            arrays[plane] = np.asarray(
                loss_grid(
                    subject.logits_fn,
                    images[image],
                    labels[image],
                    jnp.stack([jnp.asarray(first), jnp.asarray(random[0])]),
                    _coordinates(points),
                )
            )
        kept.save()
    return arrays


def draw(subjects: list[Subject], measured: list[dict], image: int):
    """A matplotlib Figure: a row a model, each plane as surface and as contours."""
    figure = new_figure(11.5, 3.5 * len(subjects))
    rows = figure.subfigures(len(subjects), 1, squeeze=False)[:, 0]
    highest = max(one[plane].max() for one in measured for plane in PLANES)
    for row, subject, one in zip(rows, subjects, measured):
        rise, error = one["rise"], one["error"]
        row.suptitle(
            f"{subject.label}:  largest rise {rise[image]:.2f}, linearity error "
            f"{error[image]:.2f}  (mean of {len(rise)} images: {rise.mean():.2f}, "
            f"{error.mean():.2f})",
            fontsize=10.5,
            fontweight="bold",
            x=0.01,
            horizontalalignment="left",
        )
        for column, plane in enumerate(PLANES):
            x = _coordinates(len(one[plane]))
            first = "adversarial" if plane == "adversarial" else "random"
            surface = row.add_subplot(1, 4, 2 * column + 1, projection="3d")
            a, b = np.meshgrid(x, x, indexing="ij")
            surface.plot_surface(
                a,
                b,
                one[plane],
                cmap="viridis",
                vmin=0,
                vmax=highest,
                rcount=30,
                ccount=30,
                linewidth=0.1,
                edgecolor=INK,
            )
            surface.set(zlim=(0, highest), xlabel=first, ylabel="random")
            surface.set_title(
                "loss, one scale for all", fontsize=8, fontweight="normal"
            )
            surface.tick_params(labelsize=7, pad=-2)
            surface.view_init(elev=28, azim=-58)
            flat = row.add_subplot(1, 4, 2 * column + 2)
            # Levels of its own: how the loss runs, whatever its height.
            lines = flat.contour(x, x, one[plane].T, levels=10, cmap="viridis")
            flat.clabel(lines, fontsize=7, fmt="%.3g")
            flat.plot(0, 0, "+", color=INK)
            flat.set_xlabel(f"{first} direction, in epsilons")
            flat.set_ylabel("random direction")
            flat.set_aspect("equal")
    return figure


def record(subjects: list[Subject], measured: list[dict], image: int) -> dict:
    """The numbers of the figure, for a JSON file."""
    return {
        subject.label: {
            "folder": subject.run.workdir.name,
            "image": image,
            "examples": len(one["rise"]),
        }
        | {
            of: {
                "at the image": float(one[of][image]),
                "mean": float(one[of].mean()),
                "standard error": float(one[of].std(ddof=1) / np.sqrt(len(one[of]))),
            }
            for of in ("rise", "error")
        }
        for subject, one in zip(subjects, measured)
    }


def main(argv):
    parser = Parser("freeadv_jax.analysis.loss_surface", __doc__)
    say = parser.add_argument
    say("--image", type=place, help="its number in the test set")
    say("--examples", type=_several, default=100, help="test images for the numbers")
    say("--points", type=_several, default=41, help="on a side of the grid")
    given = parser.parse_args(argv[1:])
    check_figure_path(given.out)
    subjects = open_subjects(given.runs)
    keep_compiled(subjects[0].run.workdir)
    examples = first_examples(subjects, data=given.data, examples=given.examples)
    image = _chosen(subjects, examples, given.image)
    measured = [
        measure(subject, examples, image=image, points=given.points)
        for subject in subjects
    ]
    save(draw(subjects, measured, image), given.out)
    numbers = record(subjects, measured, image)
    write_json(given.out.with_suffix(".json"), numbers)
    width = max(map(len, numbers)) + 2
    ball = f"within epsilon {number(subjects[0].run.config.attack.epsilon)}"
    print(f"means of {len(examples.labels)} images, {ball}")
    for label, row in numbers.items():
        rise, error = row["rise"]["mean"], row["error"]["mean"]
        print(f"{label:<{width}}largest rise {rise:8.3f}  linearity error {error:8.3f}")
    print(f"written to {given.out}")


def _several(text):
    """So many points have contours, so many images a deviation."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, 2 or more")
    return int(text)


def _chosen(subjects, examples, given):
    """The number of the image, by default of the first that every model has right."""
    if given is not None:
        if given >= len(examples.labels):
            raise InputError(
                f"--image={given}: must be below --examples={len(examples.labels)}"
            )
        return given
    campaign = Campaign(batch_size=_BATCH)
    right = np.ones(len(examples.labels), bool)
    for subject in subjects:
        logits = campaign.logits(subject.logits_fn, examples.images)
        right &= logits.argmax(axis=-1) == examples.labels
    if not right.any():
        raise InputError(
            f"no image of the first {len(right)} is classified right by every model: "
            "choose one with --image, or more --examples"
        )
    return int(right.argmax())


def _coordinates(points):
    return np.linspace(-_WIDTH, _WIDTH, points, dtype=np.float32)


def _floats(images):
    """Pixels in [0, 1], float32."""
    return images.astype(np.float32) / np.float32(255)


if __name__ == "__main__":
    run_command(main)
