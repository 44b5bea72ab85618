"""Read MNIST and Fashion-MNIST from their idx files, plain or gzipped.

Source of the format: http://yann.lecun.com/exdb/mnist ("FILE FORMATS").
"""

import gzip
import math
import zlib

import numpy as np
from jaxtyping import UInt8

from freeadv_jax.data.split import Split, existing_directory, labelled
from freeadv_jax.errors import InputError, one_line
from freeadv_jax.files import AnyPath, local_copy

_SIDE = 28
_CLASSES = 10


def read_idx_set(name: str, directory: str | AnyPath) -> tuple[Split, Split]:
    """Return the training and test part of data set `name`, images [n, 28, 28, 1].

    Raise InputError naming a file that is missing or damaged.
    """
    folder = existing_directory(
        directory,
        name=name,
        contents="train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, with or without .gz",
    )
    return _read_part(folder, "train"), _read_part(folder, "t10k")


def _read_part(folder: AnyPath, part: str) -> Split:
    images_path = _find(folder, f"{part}-images", "idx3-ubyte")
    labels_path = _find(folder, f"{part}-labels", "idx1-ubyte")
    images = read_idx(images_path, rank=3)
    labels = read_idx(labels_path, rank=1)
    if images.shape[1:] != (_SIDE, _SIDE):
        height, width = images.shape[1:]
        raise InputError(
            f"{images_path} holds images of {height}x{width} pixels: must be "
            f"{_SIDE}x{_SIDE}"
        )
    return labelled(
        images[..., None],
        labels,
        num_classes=_CLASSES,
        source=f"{images_path} with {labels_path.name}",
    )


def _find(folder: AnyPath, stem: str, kind: str) -> AnyPath:
    names = [f"{stem}{dash}{kind}{end}" for dash in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"'{folder}' lacks {names[0]}: must hold {' or '.join(names)}")


def read_idx(path: AnyPath, *, rank: int) -> UInt8[np.ndarray, "..."]:
    """Return the bytes of an idx file of `rank` dimensions, gzipped if it ends in .gz.

    Raise InputError for another magic number, or if the file is longer or shorter than
    its header says.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with local_copy(path) as copy, opened(copy, "rb") as stream:
            content = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} is damaged or unreadable ({one_line(error)}): must be an idx file"
        ) from error
    magic = (0x0800 + rank).to_bytes(4, "big")
    if content[:4] != magic:
        raise InputError(
            f"{path} starts with bytes {content[:4].hex() or 'none'}: must be "
            f"{magic.hex()} (idx, unsigned bytes, {rank} dimensions)"
        )
    start = 4 + 4 * rank
    if len(content) < start:
        raise InputError(
            f"{path} has {len(content)} bytes: must have a header of {start} or more"
        )
    shape = tuple(int(length) for length in np.frombuffer(content[4:start], ">u4"))
    if len(content) != start + math.prod(shape):
        raise InputError(
            f"{path} has {len(content):,} bytes: must have exactly "
            f"{start + math.prod(shape):,} (a header of {start} and "
            f"{' x '.join(f'{length:,}' for length in shape)} unsigned bytes)"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
