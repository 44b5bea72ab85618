"""Files that are written whole or not at all, and folders with one writer at a time."""

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
except ImportError:  # Windows has no fcntl.
    fcntl = None

_LOGGER = logging.getLogger(__name__)


def read_json(path: pathlib.Path) -> dict:
    """Return the JSON object in a file; raise InputError where the file has none."""
    try:
        content = json.loads(path.read_text())
    except ValueError as fault:
        raise InputError(f"{path} is damaged: {fault}") from fault
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object")
    return content


def write_json(path: pathlib.Path, content: dict) -> None:
    """Write a JSON object; only the first process writes.

    A reader never sees half a file.
    """
    if not is_first():
        return
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")


def checksum(tree) -> int:
    """Return the CRC-32 of all arrays of a pytree, in their order."""
    crc = 0
    for array in jax.tree.leaves(tree):
        crc = zlib.crc32(np.ascontiguousarray(array).view(np.uint8), crc)
    return crc


@contextlib.contextmanager
def sole_writer(folder: pathlib.Path) -> Iterator[None]:
    """Hold a lock on `folder`; raise InputError where another process holds it.

    Two writers would each write what they found plus their own additions, and undo the
    additions of the other. The lock is held by the first of several processes and excludes
    other processes on the same machine. File systems without locks have no protection.
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
    """Yield a path to write to, which is renamed to `path` at the end.

    An OSError names `path`.
    """
    partial = partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    except OSError as fault:
        # An OSError of NumPy has a text but no number.
        reason = fault.strerror or str(fault)
        raise OSError(fault.errno, reason, str(path)) from fault


def partial_path(path: pathlib.Path) -> pathlib.Path:
    """Return where a file is written before it is renamed to `path`.

    A kill may leave a file there.
    """
    return path.with_name(f".{path.name}.tmp")


def local_path(workdir) -> pathlib.Path:
    """Return the path of a local folder; raise InputError for the address of a bucket.

    `Path` would take such an address for a local folder.
    """
    if "://" in str(workdir):
        raise InputError(
            f"{workdir} is no folder of this machine: mount the bucket, with gcsfuse "
            "for gs://, and give the folder where it then lies"
        )
    return pathlib.Path(workdir).expanduser()
