"""Files that are never half, and folders with one writer."""

import contextlib
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Iterator

import jax
import numpy as np

from freeadv_jax.devices.processes import agreement, is_first
from freeadv_jax.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has none.
    fcntl = None

_LOGGER = logging.getLogger(__name__)


def read_json(path: pathlib.Path) -> dict:
    """InputError where the file does not hold a JSON object."""
    try:
        content = json.loads(path.read_text())
    except ValueError as fault:
        raise InputError(f"{path} is damaged: {fault}") from fault
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object")
    return content


def write_json(path: pathlib.Path, content: dict) -> None:
    """By the first process; all of it or nothing: a reader never sees half a file."""
    if not is_first():
        return
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def checksum(tree) -> int:
    """Of all arrays of a pytree."""
    crc = 0
    for array in jax.tree.leaves(tree):
        crc = zlib.crc32(np.ascontiguousarray(array).view(np.uint8), crc)
    return crc


@contextlib.contextmanager
def sole_writer(folder: pathlib.Path) -> Iterator[None]:
    """Nobody else writes in `folder` meanwhile; InputError where somebody does.

    Each writer keeps what it found there, and would undo what the other added. For the
    first process of several, and against others on its machine; where the file system
    has no locks, for nobody.
    """
    with contextlib.ExitStack() as stack:
        with agreement():
            if is_first() and fcntl:
                descriptor = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as fault:
                    raise InputError(
                        f"{folder} is in use: another process trains or evaluates there"
                    ) from fault
                except OSError:
                    _LOGGER.info("%s: the file system has no locks", folder)
        yield


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where to write it; it gets its name at the end. An OSError names `path`."""
    partial = partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    except OSError as fault:
        # NumPy's has nothing but a text.
        reason = fault.strerror or str(fault)
        raise OSError(fault.errno, reason, str(path)) from fault


def partial_path(path: pathlib.Path) -> pathlib.Path:
    """Where a file is written before it gets its name; a kill may leave it there."""
    return path.with_name(f".{path.name}.tmp")


def local_path(workdir) -> pathlib.Path:
    """InputError for what lies in a bucket: `Path` would make a folder of this machine."""
    if "://" in str(workdir):
        raise InputError(
            f"{workdir} is no folder of this machine: mount the bucket, with gcsfuse "
            "for gs://, and give the folder where it then lies"
        )
    return pathlib.Path(workdir).expanduser()
