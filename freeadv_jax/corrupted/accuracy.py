"""The error of a model on corrupted images, by kind and severity."""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from freeadv_jax.attacks.campaign import Campaign, Images
from freeadv_jax.attacks.checks import check_finite
from freeadv_jax.attacks.kernels import kernels_for, traced_with
from freeadv_jax.attacks.robustness import accuracy_row
from freeadv_jax.attacks.runner import examples_of
from freeadv_jax.corrupted.images import (
    KINDS,
    SEVERITIES,
    CorruptedImages,
    MadeImages,
    StoredImages,
    check_kinds,
)
from freeadv_jax.devices import onednn
from freeadv_jax.errors import InputError
from freeadv_jax.intervals import wilson
from freeadv_jax.models.user_model import arrays_as_leaves, check_model
from freeadv_jax.pixels import Numbers, check_labels
from freeadv_jax.progress import Progress

__all__ = ["CorruptionAccuracy", "corruptions"]

# bool[n] by kind and severity: the images that are classified correctly.
Outcomes = dict[tuple[str, int], np.ndarray]
# Batches of images that are corrupted, classified and counted together.
_BATCHES = 5


@dataclasses.dataclass(frozen=True)
class CorruptionAccuracy:
    """Hold the result of `corruptions`; `print` shows it as a table of errors.

    Attributes:
        record: {mean_error, interval, examples, natural, kinds, images}. `mean_error` is
            the share of wrong answers, the mean over kinds and severities, and `interval`
            its 95 % interval. `kinds` has by kind {mean_error, severities}, and
            `severities` by severity {accuracy, interval, correct, examples}. `natural` is
            such a row for the images without corruption, or None. `images` says where the
            corruptions come from.
        correct: by kind and severity, bool[n]: the images classified correctly.
    """

    record: dict
    correct: Outcomes

    @property
    def mean_error(self) -> float:
        """The mean share of wrong answers over kinds and severities."""
        return self.record["mean_error"]

    def __str__(self) -> str:
        return error_table(self.record)


def corruptions(
    logits_fn: Callable,
    images: Numbers | Images | None = None,
    labels: Numbers | None = None,
    *,
    files: object = None,
    kinds: Iterable[str] = KINDS,
    batch_size: int = 200,
    seed: int = 0,
    progress: bool | Callable[[str], None] = False,
) -> CorruptionAccuracy:
    """Return a model's error on images with common corruptions at five severities.

    The corruptions are those of Hendrycks & Dietterich (ICLR 2019): noise, blur, weather
    and compression. They are read from files, or made of `images` by the library
    `imagecorruptions`. The error is not divided by that of another network.

    Args:
        logits_fn: maps images f32[b, h, w, c] in [0, 1] to logits [b, k]; see
            `robust_accuracy`.
        images: [n, h, w, c], uint8 or floats in [0, 1], of 32 x 32 pixels or more. With
            `files` they are the images without corruption, for the accuracy on them.
        labels: n classes, of any integer type or as a list.
        files: a folder like CIFAR-10-C: KIND.npy, uint8[5 n, h, w, c] by severity, and
            labels.npy. They are read without running code.
        kinds: the kinds of corruption, all fifteen by default.
        batch_size: the images classified at a time, over all devices together.
        seed: the seed of the corruptions that are made.
        progress: a function that is called with a line of text now and then, such as
            `print`. True writes these lines to standard error.

    Returns:
        A `CorruptionAccuracy`, whose `print` is a table of errors.

    Raises:
        InputError: for files that are missing, damaged or of other images; for images
            outside [0, 1], too small or of other labels than the files; for labels that
            the model has no class for, an unknown kind, and a model that gives no logits
            [b, k]; where the library is missing.
    """
    kinds = check_kinds(kinds)
    together = (images is None) == (labels is None)
    if not together or (images is None and files is None):
        raise InputError("give images and labels, or the folder of corrupted files")
    if images is not None:
        images, labels = examples_of(images, labels, raw=True)
    if files is None:
        source = MadeImages(images, labels, seed)
    else:
        source = StoredImages.open(files)
        if images is not None:
            check_same_images(source, labels, images.shape[1:])
    num_classes = check_model(logits_fn, np.zeros((1, *source.image_shape), np.float32))
    check_labels(source.labels, num_classes)
    logits_fn = arrays_as_leaves(logits_fn)
    write = _to_standard_error if progress is True else progress
    correct: Outcomes = {}
    for _ in classified(
        logits_fn,
        source,
        correct,
        kinds=kinds,
        examples=len(source.labels) if images is None else len(images),
        batch_size=batch_size,
        write=write or (lambda line: None),
    ):
        pass  # The outcomes are in `correct`.
    natural = None
    if images is not None:
        predicted = Campaign(batch_size=batch_size).logits(logits_fn, images)
        natural = predicted.argmax(axis=-1) == labels
    return CorruptionAccuracy(error_record(correct, source, natural=natural), correct)


def check_same_images(source: StoredImages, labels: np.ndarray, image_shape) -> None:
    """Raise InputError unless the files are of images of this shape and these labels.

    The files may be of more images.
    """
    if tuple(image_shape) != source.image_shape:
        raise InputError(
            f"{source.folder} holds images {list(source.image_shape)}: must be "
            f"{list(image_shape)}, as the images without corruption"
        )
    if len(labels) > len(source.labels):
        raise InputError(
            f"{source.folder} holds {len(source.labels)} images, fewer than the "
            f"{len(labels)} without corruption"
        )
    different = labels != source.labels[: len(labels)]
    if different.any():
        raise InputError(
            f"{source.folder} is not of these images: {int(different.sum())} of "
            f"{len(labels)} labels differ"
        )


def classified(
    logits_fn: Callable,
    source: CorruptedImages,
    correct: Outcomes,
    *,
    kinds: Iterable[str],
    examples: int,
    batch_size: int,
    convolutions: str = onednn.XLA,
    write: Callable[[str], None],
):
    """Classify the first `examples` images under each kind and severity.

    Outcomes are put into `correct`. Those that are there are of the first images and are
    not made again. Yield each kind and severity after every few batches; `write` is
    called with lines of progress.
    """
    cells = [(kind, severity) for kind in kinds for severity in SEVERITIES]
    nothing = np.zeros(0, bool)
    known = {cell: correct.get(cell, nothing) for cell in cells}
    done = sum(min(len(found), examples) for found in known.values())
    progress = Progress(
        "corruptions", total=examples * len(cells), unit="images", write=write
    )
    first = np.zeros((1, *source.image_shape), np.float32)
    kernels = kernels_for(convolutions, (), logits_fn, first)
    logits_fn = traced_with(kernels, logits_fn)
    campaign = Campaign(batch_size=batch_size)
    progress.show(done)
    for cell in cells:
        for begin in range(len(known[cell]), examples, _BATCHES * batch_size):
            chosen = slice(begin, min(begin + _BATCHES * batch_size, examples))
            logits = campaign.logits(logits_fn, source.part(*cell, chosen))
            check_finite(logits)
            right = logits.argmax(axis=-1) == source.labels[chosen]
            correct[cell] = np.concatenate([correct.get(cell, nothing), right])
            done += len(right)
            error = 1 - np.mean(correct[cell])
            progress.show(done, kind=f"{cell[0]}-{cell[1]}", error=f"{error:.2%}")
            yield cell


def error_record(
    correct: Outcomes, source: CorruptedImages, *, natural: np.ndarray | None
) -> dict:
    """Return the `record` of `CorruptionAccuracy`, on the images that all cells have.

    `natural` is bool[n], the images classified correctly without a corruption.
    """
    examples = min(map(len, correct.values()))
    correct = {cell: found[:examples] for cell, found in correct.items()}
    by_kind: dict[str, dict] = {}
    for (kind, severity), found in correct.items():
        by_kind.setdefault(kind, {})[str(severity)] = accuracy_row(found)
    error, interval = _mean_error(np.stack([*correct.values()]))
    return {
        "mean_error": error,
        "interval": interval,
        "examples": examples,
        "natural": None if natural is None else accuracy_row(natural[:examples]),
        "kinds": {
            kind: {
                "mean_error": float(
                    np.mean([1 - row["accuracy"] for row in severities.values()])
                ),
                "severities": severities,
            }
            for kind, severities in by_kind.items()
        },
        "images": source.about(),
    }


def _mean_error(correct):
    """Return the mean error of bool[cells, n] and the ends of its 95 % interval.

    All cells are of the same images, so that the images count, each by its mean over the
    cells.
    """
    errors = 1 - np.mean(correct, axis=0)
    mean, n = float(np.mean(errors)), len(errors)
    if n < 2:
        return mean, [0.0, 1.0]
    if np.ptp(errors) == 0:  # They tell nothing of their spread.
        return mean, list(wilson(round(mean * n), n))
    half = 1.959964 * float(np.std(errors, ddof=1)) / math.sqrt(n)
    return mean, [max(0.0, mean - half), min(1.0, mean + half)]


def error_table(record: Mapping) -> str:
    """Return the errors of a `record` as a table, in percent."""
    low, high = record["interval"]
    title = (
        f"corruptions: mean error {record['mean_error']:.2%}, 95 % interval {low:.2%} - "
        f"{high:.2%}, {record['examples']} images"
    )
    if record["natural"]:
        title += f"; without corruption {1 - record['natural']['accuracy']:.2%}"
    rows = {kind: errors_by_severity(record, kind) for kind in record["kinds"]}
    rows["mean"] = list(np.mean([*rows.values()], axis=0))
    width = max(map(len, KINDS)) + 2
    heads = "".join(f"{head:>9}" for head in ("mean", *SEVERITIES))
    lines = [title, f"{'error':<{width}}{heads}"]
    for kind, errors in rows.items():
        cells = "".join(f"{error:>9.2%}" for error in (np.mean(errors), *errors))
        lines.append(f"{kind:<{width}}{cells}")
    return "\n".join(lines)


def errors_by_severity(record: Mapping, kind: str) -> list[float]:
    """Return the errors of a `record` under one kind, by rising severity."""
    rows = record["kinds"][kind]["severities"].values()
    return [1 - row["accuracy"] for row in rows]


def _to_standard_error(line):
    sys.stderr.write(f"{line}\n")
