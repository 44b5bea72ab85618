"""Test images, what an attack changes in them, and what the network says of both."""

import base64
import dataclasses
import io

import numpy as np

from freeadv_jax.report.shown import Shown, first_of_each_kind

_COLUMNS = 6
# A larger image is made smaller: the page stays small.
_LARGEST = 96


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as a data address, read out as `description`, with a line below."""

    source: str
    description: str
    below: str
    right: bool


@dataclasses.dataclass(frozen=True)
class Pictures:
    """For a model the rows 'image', 'change' and 'attacked'; `magnified` by so much."""

    label: str
    magnified: float
    rows: dict[str, list[Picture]]


def picture_grids(shown: list[Shown]) -> list[Pictures]:
    """One grid a kind of model, all of the same images, where measured."""
    if not all(run.measured for run in shown):
        return []
    runs = first_of_each_kind(shown)
    chosen = _chosen(runs)
    return [_grid(run, chosen) for run in runs]


def _chosen(runs):
    """Images of different classes, first those that all models classify right."""
    labels = runs[0].measured.labels
    all_right = np.logical_and.reduce([run.measured.right for run in runs])
    order = np.argsort(~all_right, kind="stable")
    chosen: dict = {}
    for index in order:
        chosen.setdefault(int(labels[index]), int(index))
    return list(chosen.values())[:_COLUMNS]


def _grid(run, chosen):
    found = run.measured
    images = found.images.astype(np.float32)
    if found.images.dtype == np.uint8:
        images /= 255
    change = found.attacked - images
    largest = run.config.attack.epsilon
    if run.config.attack.norm != "linf":
        largest = float(np.abs(change[chosen]).max())
    # The largest change is white or black, none is grey.
    magnified = 0.5 / max(largest, 1e-6)
    rows: dict = {"image": [], "change": [], "attacked": []}
    for index in chosen:
        truth = _name(found, found.labels[index])
        before = _says(found, found.logits[index])
        after = _says(found, found.attacked_logits[index])
        rows["image"].append(
            _picture(
                images[index], f"Test image of class {truth}", found, index, before
            )
        )
        rows["change"].append(
            Picture(
                data_address(0.5 + magnified * change[index]),
                f"What the attack adds to the image of class {truth}, magnified",
                "",
                True,
            )
        )
        rows["attacked"].append(
            _picture(
                found.attacked[index],
                f"The image of class {truth}, attacked",
                found,
                index,
                after,
            )
        )
    return Pictures(run.label, magnified, rows)


def _picture(image, description, found, index, says):
    label, text = says
    right = bool(label == found.labels[index])
    return Picture(
        data_address(image), f"{description}; the network says {text}", text, right
    )


def _says(found, logits):
    """The likeliest class, and a line with its probability."""
    label = int(np.argmax(logits))
    shifted = np.exp(logits - np.max(logits))
    probability = shifted[label] / shifted.sum()
    return label, f"{_name(found, label)} ({100 * probability:.0f} %)"


def _name(found, label):
    return found.class_names[label].replace("_", " ")


def data_address(image: np.ndarray) -> str:
    """Lossless WebP, as a data address, of an image f32[h, w, c] in [0, 1]."""
    from PIL import Image

    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    drawn = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if max(drawn.size) > _LARGEST:
        drawn.thumbnail((_LARGEST, _LARGEST))
    out = io.BytesIO()
    drawn.save(out, format="WEBP", lossless=True, quality=100)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
