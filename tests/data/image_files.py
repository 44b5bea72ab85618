"""Make image files as people keep them: in folders and in ImageNet's two archives."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

# Three of the thousand classes; their numbers in ImageNet are 0, 217 and 701.
WNIDS = ("n01440764", "n02102040", "n03888257")
LABELS = (0, 217, 701)


def picture(number, height=40, width=48):
    """Return a soft pattern in a color that identifies the picture in any crop."""
    rows, columns = np.mgrid[:height, :width]
    pattern = 6 * np.sin(rows[:, :, None] / 5 + np.arange(3)) + columns[:, :, None] / 8
    return (color(number) + pattern).round().astype(np.uint8)


def color(number):
    """Return one of 512 colors that differ by 24 levels in some channel."""
    return 30 + 24 * np.array([number % 8, number // 8 % 8, number // 64 % 8])


def number_of(pixels):
    """Return the number of the picture that was cropped to `pixels` [h, w, 3]."""
    eighths = np.round((pixels.reshape(-1, 3).mean(0) - 33) / 24).astype(int)
    return int(eighths @ (1, 8, 64))


def encoded(pixels, kind="JPEG", **options):
    """Return the bytes of an image file."""
    options = {"quality": 95, "subsampling": 0} | options if kind == "JPEG" else options
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def write_folder(root, *, train, val, classes=("cat", "dog", "fox")):
    """Write numbered pictures to root/train/<class>/<number>.jpg, then to root/val."""
    number = 0
    for part, count in (("train", train), ("val", val)):
        for index in range(count):
            folder = root / part / classes[index % len(classes)]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:03}.jpg").write_bytes(encoded(picture(number)))
            number += 1
    return root


def write_archives(folder, *, train, val):
    """Write ILSVRC2012_img_train.tar and _val.tar of numbered pictures to `folder`.

    The first `train` pictures take the classes WNIDS by turns, and `val` more follow.
    tensorflow-datasets knows the validation labels by the names of the images.
    """
    images = [encoded(picture(number)) for number in range(train + val)]
    classes = {
        wnid: {
            f"{wnid}_{number}.JPEG": images[number]
            for number in range(place, train, len(WNIDS))
        }
        for place, wnid in enumerate(WNIDS)
    }
    return archive_images(folder, classes, images[train:])


def archive_photographs(folder, photographs):
    """Write the two archives from `photographs`, train/<wnid>/* and val/<wnid>/*."""
    classes = {
        path.name: {file.name: file.read_bytes() for file in sorted(path.iterdir())}
        for path in sorted((photographs / "train").iterdir())
    }
    val = [file.read_bytes() for file in sorted(photographs.glob("val/*/*"))]
    return archive_images(folder, classes, val)


def archive_images(folder, classes, val):
    """Write the two archives from {wnid: {name: bytes}} and from a list of bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as archive:
        for wnid, images in classes.items():
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as part:
                for name, image in images.items():
                    _add(part, name, image)
            _add(archive, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
        for number, image in enumerate(val, start=1):
            _add(archive, f"ILSVRC2012_val_{number:08}.JPEG", image)
    return folder


def _add(archive, name, contents):
    entry = tarfile.TarInfo(name)
    entry.size = len(contents)
    archive.addfile(entry, io.BytesIO(contents))


def imagenette():
    """Return the folder FREEADV_IMAGENETTE, with train/ and val/ of wnids, or None."""
    given = os.environ.get("FREEADV_IMAGENETTE")
    return Path(given) if given else None
