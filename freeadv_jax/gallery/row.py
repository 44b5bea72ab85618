"""The row of a defence: what a gallery keeps of it in its folder."""

import dataclasses
import pathlib
import time
import zipfile
import zlib

import jax
import numpy as np

from freeadv_jax.attacks.robustness import flags_as_record
from freeadv_jax.attacks.threat import make_threat
from freeadv_jax.errors import InputError, one_line
from freeadv_jax.files import read_json, whole_file, write_json
from freeadv_jax.gallery.defence import Defence, Defended
from freeadv_jax.gallery.measurement import Measured, measure
from freeadv_jax.gallery.task import Task

# The test images of a defence's pictures.
SHOWN = 6


@dataclasses.dataclass(frozen=True)
class Row:
    """Hold the `record` of a defence and its pictures, k images each.

    The record is that of `benchmarks/results/gallery.json`. `images` f32[k, h, w, c] are
    test images, `shown` what the network sees of them, and `attacked` the same images
    attacked; `classes` int[k] and `attacked_classes` are the network's, -1 where a detector
    rejects the image. `class_names` are those of all classes.
    """

    record: dict
    pictures: dict[str, np.ndarray]


def make_row(defence: Defence, task: Task, *, examples: int, flagged: int, tell) -> Row:
    """Train, attack and describe a defence; see `measure`."""
    begun, used = time.perf_counter(), time.process_time()
    tell("training")
    defended = defence.build(task)
    images, labels = task.examples(examples)
    epsilon = defence.epsilon.get(task.name, task.recipe.epsilon)
    threat = make_threat(defence.norm, epsilon)
    found = measure(
        defended,
        images,
        labels,
        threat,
        flagged=min(flagged, len(labels)),
        seed=task.seed,
        tell=tell,
    )
    flags = flags_as_record(found.flags)
    raised = {name: flag for name, flag in flags.items() if flag["suspicious"]}
    record = {
        "defence": defence.name,
        "masks": defence.masks,
        "natural": float(found.right.mean()),
        "naive": float(found.defended(found.naive).mean()),
        "adaptive": float(found.defended(found.naive, *found.adaptive.values()).mean()),
        "published": defence.published,
        "flags": list(raised),
        "adaptive_by_attack": {
            name: float(found.defended(seen).mean())
            for name, seen in found.adaptive.items()
        },
        "answers": {
            name: {key: flag[key] for key in ("text", "advice")}
            for name, flag in raised.items()
        },
        "data": task.name,
        "norm": threat.norm,
        "epsilon": float(threat.epsilon),
        "examples": len(labels),
        "flagged": min(flagged, len(labels)),
        "seconds": time.perf_counter() - begun,
        "processor_seconds": time.process_time() - used,
    }
    if defended.certified is not None:
        certain = defended.certified(images, labels, threat)
        record["certified"] = float(np.mean(certain))
    pictures = _pictures(defended, found) | {"class_names": np.array(task.class_names)}
    return Row(record, pictures)


def _pictures(defended: Defended, found: Measured) -> dict[str, np.ndarray]:
    """Return the pictures of one image of each class, those that fall first."""
    broken = found.broken
    falls = found.right & ~found.defended(broken)
    order = np.lexsort((np.arange(len(falls)), ~falls, ~found.right))
    chosen: dict = {}
    for index in order:
        chosen.setdefault(int(found.labels[index]), int(index))
    some = list(chosen.values())[:SHOWN]
    images, attacked = found.natural.images[some], broken.images[some]
    return {
        "images": images,
        "shown": _shown(defended, images),
        "attacked": attacked,
        "attacked_shown": _shown(defended, attacked),
        "labels": found.labels[some],
        "classes": np.where(found.natural.rejected, -1, found.natural.classes)[some],
        "attacked_classes": np.where(broken.rejected, -1, broken.classes)[some],
    }


def _shown(defended, images):
    """Return what the network sees of images, no image where that is the same."""
    if defended.shown is None:
        return images[:0]
    keys = (jax.random.split(jax.random.key(0), len(images)),) * defended.random
    return np.asarray(jax.jit(defended.shown)(images, *keys), np.float32)


def save_row(row: Row, folder: pathlib.Path) -> None:
    """Write a row into the folder of its gallery, the record last."""
    folder.mkdir(parents=True, exist_ok=True)
    name = row.record["defence"]
    with whole_file(folder / f"{name}.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(file, **row.pictures)
    write_json(folder / f"{name}.json", row.record)


def read_row(name: str, folder: pathlib.Path) -> Row | None:
    """Return the row of a defence, None where it is not finished.

    Raise InputError where its files are damaged.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    record, pictures = read_json(path), folder / f"{name}.npz"
    try:
        with np.load(pictures) as arrays:
            return Row(record, dict(arrays))
    except (EOFError, OSError, ValueError, zipfile.BadZipFile, zlib.error) as fault:
        raise InputError(
            f"{pictures} is damaged ({one_line(fault)}): delete {path}, and the defence "
            "is measured again"
        ) from fault
