"""The error on corrupted images in results.json, kept up to date as attacks are."""

import json
from collections.abc import Callable

import numpy as np

from freeadv_jax.attacks.campaign import Images
from freeadv_jax.console import say
from freeadv_jax.corrupted.accuracy import (
    Outcomes,
    check_same_images,
    classified,
    error_record,
)
from freeadv_jax.corrupted.images import (
    KINDS,
    SEVERITIES,
    CorruptedImages,
    MadeImages,
    StoredImages,
)
from freeadv_jax.devices import onednn
from freeadv_jax.errors import InputError
from freeadv_jax.files import read_json, write_json
from freeadv_jax.runs.results import CORRUPTIONS, ResultsFolder

# One seed for all models: their errors are compared on the same images.
_SEED = 0
# The arrays of evaluation.npz: bool[n] for each kind and severity, and their source.
_ABOUT = f"{CORRUPTIONS}/about"


def corrupted_images(
    images: Images, labels: np.ndarray, *, files: str
) -> CorruptedImages:
    """Return the corruptions of a folder of `files`, or those made of the images for "".

    Raise InputError where they cannot be made, and where the files are of other images.
    """
    if not files:
        return MadeImages(images, labels, _SEED)
    source = StoredImages.open(files)
    check_same_images(source, labels, images.shape[1:])
    return source


def record_corruptions(
    logits_fn: Callable,
    images: Images,
    labels: np.ndarray,
    source: CorruptedImages,
    *,
    into: ResultsFolder,
    examples: int,
    batch_size: int,
    convolutions: str = onednn.AUTO,
) -> dict:
    """Add the error on the first `examples` images to results.json; return its content.

    `images` [n, h, w, c] and `labels` int32[n] are all images without corruption, and
    `source` has them with corruptions. Outcomes that are found in evaluation.npz, of this
    model and this source, are not made again. The evaluation comes first: it writes the
    file.
    """
    file = into.arrays(logits_fn, images, labels)
    about = np.array(json.dumps(source.about()))
    if str(file.arrays.get(_ABOUT, about)) != str(about):
        _forget(file, examples=examples)
    file.arrays[_ABOUT] = about
    cells = {
        (kind, severity): f"{CORRUPTIONS}/{kind}/{severity}"
        for kind in KINDS
        for severity in SEVERITIES
    }
    correct: Outcomes = {
        cell: file.arrays[name] for cell, name in cells.items() if name in file.arrays
    }
    for cell in classified(
        logits_fn,
        source,
        correct,
        kinds=KINDS,
        examples=examples,
        batch_size=batch_size,
        convolutions=convolutions,
        write=say,
    ):
        file.arrays[cells[cell]] = correct[cell]
        file.save_sometimes()
    file.save()
    ordered = {cell: correct[cell] for cell in cells}
    predicted = file.arrays.get("prediction", np.zeros(0, int))
    natural = predicted == labels[: len(predicted)]
    natural = natural if len(natural) >= examples else None
    results = read_json(into.path)
    results[CORRUPTIONS] = error_record(ordered, source, natural=natural)
    write_json(into.path, results)
    return results


def _forget(file, *, examples):
    """Drop the outcomes of another source; raise InputError if they are of more images."""
    names = [name for name in file.arrays if name.startswith(CORRUPTIONS)]
    had = max((len(file.arrays[name]) for name in names if name != _ABOUT), default=0)
    if had > examples:
        raise InputError(
            f"{had} corrupted images of another source are recorded: ask for as many, not "
            f"{examples}, or for another --out"
        )
    say("corruptions: the outcomes of others are replaced")
    for name in names:
        del file.arrays[name]
