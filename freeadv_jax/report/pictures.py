"""Pictures of a report: test images, the changes of an attack, and the predictions."""

import base64
import dataclasses
import io

import numpy as np

from freeadv_jax.pixels import unit_range
from freeadv_jax.report.reported import ReportedModel, first_of_each_kind

_COLUMNS = 6
# Pixels a side; larger images are reduced, which keeps the page small.
_LARGEST = 96


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image as a data address, its text for screen readers and the line below it."""

    source: str
    description: str
    below: str
    correct: bool


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A model's rows 'image', 'change' and 'attacked'; changes are `magnified` times."""

    label: str
    magnified: float
    rows: dict[str, list[Picture]]


def picture_grids(models: list[ReportedModel]) -> list[Pictures]:
    """Return one grid for each kind of model, all with the same test images.

    The list is empty unless every model was measured.
    """
    if not all(model.measured for model in models):
        return []
    first = first_of_each_kind(models)
    chosen = _chosen(first)
    return [_grid(model, chosen) for model in first]


def _chosen(models):
    """One image of each class; images that all models classify correctly come first."""
    labels = models[0].measured.labels
    all_correct = np.logical_and.reduce([model.measured.correct for model in models])
    order = np.argsort(~all_correct, kind="stable")
    chosen: dict = {}
    for index in order:
        chosen.setdefault(int(labels[index]), int(index))
    return list(chosen.values())[:_COLUMNS]


def _grid(model, chosen):
    found, threat = model.measured, model.model.threat
    images = np.asarray(unit_range(found.images))
    change = found.attacked - images
    largest = threat["epsilon"]
    if threat["norm"] != "linf":
        largest = float(np.abs(change[chosen]).max())
    # The largest change becomes white or black, no change grey.
    magnified = 0.5 / max(largest, 1e-6)
    rows: dict = {"image": [], "change": [], "attacked": []}
    for index in chosen:
        name = _name(found, found.labels[index])
        rows["image"].append(
            _picture(
                found,
                index,
                images[index],
                found.logits[index],
                f"Test image of class {name}",
            )
        )
        rows["change"].append(
            Picture(
                data_address(0.5 + magnified * change[index]),
                f"The change that the attack makes to the image of class {name}, "
                "magnified",
                "",
                True,
            )
        )
        rows["attacked"].append(
            _picture(
                found,
                index,
                found.attacked[index],
                found.attacked_logits[index],
                f"The image of class {name}, attacked",
            )
        )
    return Pictures(model.label, magnified, rows)


def _picture(found, index, image, logits, description):
    """The image with the likeliest class and its probability below it."""
    label = int(np.argmax(logits))
    exponentials = np.exp(logits - np.max(logits))
    probability = exponentials[label] / exponentials.sum()
    prediction = f"{_name(found, label)} ({100 * probability:.0f} %)"
    return Picture(
        data_address(image),
        f"{description}; the network predicts {prediction}",
        prediction,
        bool(label == found.labels[index]),
    )


def _name(found, label):
    return found.class_names[label].replace("_", " ")


def data_address(image: np.ndarray) -> str:
    """Return an image f32[h, w, c] in [0, 1] as lossless WebP in a data address."""
    from PIL import Image

    pixels = np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
    drawn = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if max(drawn.size) > _LARGEST:
        drawn.thumbnail((_LARGEST, _LARGEST))
    out = io.BytesIO()
    drawn.save(out, format="WEBP", lossless=True, quality=100)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
