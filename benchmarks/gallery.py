"""Record the gallery, and draw what its defences make of an image.

    python -m benchmarks.gallery --data=DIR [--workdir=runs/gallery] [--only=NAME,NAME]
        [--seed=N]

The options are those of `python -m freeadv_jax.gallery`, which makes what is missing in
--workdir. The record shows all defences that are finished there: gallery.json of CIFAR-10,
and gallery_digits.json without --data. With all of them docs/gallery.png shows the same.
Another seed than 0 has a record of its own, such as gallery_seed_1.json, and no figure.
"""

import pathlib

from benchmarks.record import write_record
from freeadv_jax.analysis.plotting import new_figure, save
from freeadv_jax.command import run_command
from freeadv_jax.gallery.__main__ import finished_rows, main
from freeadv_jax.gallery.defences import DEFENCES

RECORDS = {"cifar10": "gallery", "digits": "gallery_digits"}
FIGURE = pathlib.Path("docs/gallery.png")
_COLUMNS = {
    "images": "image",
    "shown": "as the network\nsees it",
    "attacked": "attacked",
    "attacked_shown": "as the network\nsees that",
}


def record(argv):
    """Make the gallery, write its record and draw its figure."""
    main(argv)
    rows, settings = finished_rows(argv)
    name, seed = RECORDS[settings["data"]], settings["seed"]
    if seed:
        name = f"{name}_seed_{seed}"
    write_record(
        f"benchmarks/results/{name}.json",
        settings,
        rows=[row.record for row in rows],
        packages=("pillow", "scikit-learn"),
    )
    if len(rows) == len(DEFENCES) and not seed:
        draw(rows, FIGURE)


def draw(rows, path):
    """Draw one image of each defence that changes images, before and after the attack."""
    changing = [row for row in rows if len(row.pictures["shown"])]
    figure = new_figure(5.2, 0.4 + 1.15 * len(changing))
    grid = figure.subplots(len(changing), len(_COLUMNS), squeeze=False)
    for number, (axes, row) in enumerate(zip(grid, changing, strict=True)):
        for part, (name, title) in zip(axes, _COLUMNS.items(), strict=True):
            image = row.pictures[name][0]
            part.imshow(image.clip(0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
            part.set_xticks([])
            part.set_yticks([])
            part.grid(visible=False)
            if number == 0:
                part.set_title(title)
        axes[0].set_ylabel(
            DEFENCES[row.record["defence"]].title.split(" (")[0],
            rotation=0,
            ha="right",
            va="center",
        )
    save(figure, path)


if __name__ == "__main__":
    run_command(record)
