"""Paths of this machine and of buckets: files written whole, folders with one writer.

A path is a `pathlib.Path`, or a `BucketPath` for gs:// and s3://. All other modules get
their paths from `as_path` and need not know which it is. A bucket differs in this:

- an object is written by one put (`whole_file`, `write_json`); nothing can be appended,
  renamed or linked there;
- no library opens or maps one by its path: `local_copy` yields a file of this machine;
- the lock of a folder is a lease (lease.py), because a bucket has no flock.
"""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import tempfile
import zlib
from collections.abc import Iterator

import jax
import numpy as np

from freeadv_jax.devices.processes import agreement, is_first
from freeadv_jax.errors import InputError
from freeadv_jax.files.buckets import BucketPath, bucket_path, snapshot
from freeadv_jax.files.lease import LEASE, leased

try:
    import fcntl
except ImportError:  # Windows has no fcntl.
    fcntl = None

_LOGGER = logging.getLogger(__name__)

AnyPath = pathlib.Path | BucketPath


def as_path(given) -> AnyPath:
    """Return the path of a file or folder of this machine, or of gs:// or s3://.

    Raise InputError for any other address.
    """
    if isinstance(given, BucketPath):
        return given
    if "://" in str(given):
        return bucket_path(str(given))
    return pathlib.Path(given).expanduser()


def local_path(given) -> pathlib.Path:
    """Return the path of a file or folder of this machine.

    Raise InputError for the address of a bucket, which `Path` would take for a folder.
    """
    if "://" in str(given):
        raise InputError(
            f"{given} is no folder of this machine: copy it here, or mount the bucket, and "
            "give the folder where it then lies"
        )
    return pathlib.Path(given).expanduser()


def read_json(path: AnyPath) -> dict:
    """Return the JSON object in a file; raise InputError where the file has none."""
    try:
        content = json.loads(path.read_text())
    except ValueError as fault:
        raise InputError(f"{path} is damaged: {fault}") from fault
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object")
    return content


def write_json(path: AnyPath, content: dict) -> None:
    """Write a JSON object; only the first process writes.

    A reader never sees half a file.
    """
    if not is_first():
        return
    with whole_file(path) as partial:
        partial.write_text(json_text(content))


def json_text(content: dict) -> str:
    """Return a JSON object as `write_json` writes it."""
    return json.dumps(content, indent=2) + "\n"


def checksum(tree) -> int:
    """Return the CRC-32 of all arrays of a pytree, in their order."""
    crc = 0
    for array in jax.tree.leaves(tree):
        crc = zlib.crc32(np.ascontiguousarray(array).view(np.uint8), crc)
    return crc


def sha256(path: AnyPath) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def sole_writer(folder: AnyPath) -> Iterator[None]:
    """Hold a lock on `folder`; raise InputError where another process holds it.

    Two writers would each write what they found plus their own additions, and undo the
    additions of the other. The lock is held by the first of several processes and excludes
    other processes on the same machine. File systems without locks have no protection. In
    a bucket the lock is a lease, and excludes the processes of all machines.
    """
    with contextlib.ExitStack() as stack:
        with agreement():
            if is_first() and isinstance(folder, BucketPath):
                stack.enter_context(leased(folder))
            elif is_first() and fcntl:
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
def whole_file(path: AnyPath) -> Iterator[pathlib.Path]:
    """Yield a path of this machine to write to, which becomes `path` at the end.

    It is renamed, or uploaded as one object. An OSError names `path`.
    """
    try:
        if isinstance(path, BucketPath):
            with tempfile.TemporaryDirectory() as folder:
                partial = pathlib.Path(folder, path.name)
                yield partial
                path.upload(partial)
        else:
            partial = partial_path(path)
            yield partial
            os.replace(partial, path)
    except OSError as fault:
        # An OSError of NumPy has a text but no number.
        reason = fault.strerror or str(fault)
        raise OSError(fault.errno, reason, str(path)) from fault


@contextlib.contextmanager
def local_copy(path: AnyPath) -> Iterator[pathlib.Path]:
    """Yield a file of this machine with the content of `path`, which may be itself."""
    if not isinstance(path, BucketPath):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, path.name)
        path.download(copy)
        yield copy


@contextlib.contextmanager
def local_folder(folder: AnyPath) -> Iterator[pathlib.Path]:
    """Yield a folder of this machine with all files of `folder`, which may be itself."""
    if not isinstance(folder, BucketPath):
        yield folder
        return
    with tempfile.TemporaryDirectory() as root:
        for file in folder.files_below():
            copy = pathlib.Path(root, file.relative_to(folder))
            copy.parent.mkdir(parents=True, exist_ok=True)
            file.download(copy)
        yield pathlib.Path(root)


def machine_folder(folder: AnyPath) -> pathlib.Path:
    """Return the folder, or for a bucket one of this machine that stands for it.

    It is for what need not outlive the machine, such as compiled programs.
    """
    if not isinstance(folder, BucketPath):
        return folder
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return caches / "freeadv_jax" / "buckets" / folder.key


def files_below(folder: AnyPath) -> Iterator[AnyPath]:
    """Yield every file below `folder` that is neither hidden nor in a hidden folder."""
    if isinstance(folder, BucketPath):
        for file in folder.files_below():
            names = file.relative_to(folder).parts
            if not any(name.startswith(".") for name in names):
                yield file
        return
    for location, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield pathlib.Path(location) / name


def listed_once(folder: AnyPath) -> AnyPath:
    """Return the folder; one in a bucket stays as it is now, and is listed only once."""
    return snapshot(folder) if isinstance(folder, BucketPath) else folder


def strangers(folder: AnyPath, *known: AnyPath) -> list[AnyPath]:
    """Return what lies in a folder besides the `known` files, their partials and a lease."""
    if not folder.is_dir():
        return []
    own = {*known, *map(partial_path, known)}
    if isinstance(folder, BucketPath):
        own.add(folder / LEASE)
    return sorted(set(folder.iterdir()) - own)


def partial_path(path: AnyPath) -> AnyPath:
    """Return where a file is written before it is renamed to `path`.

    A kill may leave a file there.
    """
    return path.with_name(f".{path.name}.tmp")
