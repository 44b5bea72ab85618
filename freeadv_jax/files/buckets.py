"""Folders of buckets, gs:// and s3://, as paths: the only module that knows their clients.

A bucket keeps whole objects under names. It has no folders, appends, renames, hard links,
memory maps or locks; a folder is what the names of its objects have in common.
"""

import contextlib
import errno
import functools
import importlib
import pathlib
import posixpath
import types
from collections.abc import Callable, Iterator

from etils.epath import backend
from etils.epath.gpath import PosixGPath

from freeadv_jax.errors import InputError, one_line

# The library that fsspec needs for each kind of address.
_CLIENTS = {"gs": "gcsfs", "s3": "s3fs"}
# Called with a path before anything is written or deleted there; see lease.py.
_GUARDS: list[Callable[["BucketPath"], None]] = []


class BucketPath(PosixGPath):
    """An object or a folder of a bucket, with the methods of `pathlib.Path` that it can have.

    An object is written by one put, as a whole or not at all. Raise OSError with the address
    where the store refuses, and InputError where its client is not installed.
    """

    @property
    def _backend(self):
        # epath would take TensorFlow's client where that is installed, without s3://.
        return backend.fsspec_backend

    @property
    def key(self) -> str:
        """The bucket and the name, without gs:// or s3://."""
        return posixpath.join(*self.parts[2:])

    @property
    def store(self):
        """The file system of fsspec."""
        return _store(self.parts[1])

    def exists(self) -> bool:
        """Return whether there is an object, or a folder with one."""
        with _named(self):
            return self.store.exists(self.key)

    def is_dir(self) -> bool:
        """Return whether there is an object below."""
        with _named(self):
            return self.store.isdir(self.key)

    def is_file(self) -> bool:
        """Return whether there is an object."""
        with _named(self):
            return self.store.isfile(self.key)

    def iterdir(self) -> Iterator["BucketPath"]:
        """Yield what lies directly in the folder."""
        with _named(self):
            found = self.store.ls(self.key, detail=False)
        for key in sorted(key.rstrip("/") for key in found):
            if key != self.key:  # An object may stand for the folder itself.
                yield self / posixpath.basename(key)

    def files_below(self) -> list["BucketPath"]:
        """Return all objects below, sorted; they are listed by as few requests as can be."""
        with _named(self):
            found = self.store.find(self.key)
        return [
            self / posixpath.relpath(key, self.key)
            for key in sorted(found)
            if not key.endswith("/") and key != self.key
        ]

    def expanduser(self) -> "BucketPath":
        """Return the path: a bucket has no homes."""
        return self

    def resolve(self, strict: bool = False) -> "BucketPath":
        """Return the path: a bucket has no links."""
        return self

    def mkdir(self, mode=None, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a bucket has no folders to make."""

    def stat(self) -> types.SimpleNamespace:
        """Return `st_size`, the bytes of the object."""
        with _named(self):
            return types.SimpleNamespace(st_size=self.store.info(self.key)["size"])

    def open(self, mode: str = "r", **options):
        """Return the object opened to be read."""
        if mode not in ("r", "rb"):
            raise OSError(
                errno.ENOTSUP, "objects of a bucket are written whole", str(self)
            )
        with _named(self):
            return self.store.open(self.key, mode, **options)

    def read_bytes(self) -> bytes:
        """Return the content of the object."""
        with _named(self):
            return self.store.cat_file(self.key)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the content of the object as text."""
        return self.read_bytes().decode(encoding, errors)

    def write_bytes(self, data: bytes) -> int:
        """Put the whole object; return its number of bytes."""
        with _changing(self):
            self.store.pipe_file(self.key, data)
        return len(data)

    def write_text(self, data: str, encoding: str = "utf-8", errors=None) -> int:
        """Put the whole object; return its number of bytes."""
        return self.write_bytes(data.encode(encoding, errors or "strict"))

    def create(self, data: bytes) -> None:
        """Put the whole object; raise FileExistsError where there is one.

        Two creators at a time: one of them succeeds, if the store has conditional puts. In
        a store that refuses them, the object is put in any case.
        """
        with _changing(self):
            try:
                self.store.pipe_file(self.key, data, mode="create")
            except OSError as fault:
                answer = getattr(fault.__cause__, "response", {})
                if answer.get("Error", {}).get("Code") != "NotImplemented":
                    raise
                self.store.pipe_file(self.key, data)

    def upload(self, file: pathlib.Path) -> None:
        """Put a file of this machine as the whole object."""
        with _changing(self):
            self.store.put_file(str(file), self.key)

    def download(self, file: pathlib.Path) -> None:
        """Write the object to a file of this machine."""
        with _named(self):
            self.store.get_file(self.key, str(file))

    def modified(self) -> float:
        """Return when the object was put, in seconds by the clock of the store."""
        with _named(self):
            return self.store.modified(self.key).timestamp()

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            with _changing(self):
                self.store.rm_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise


def bucket_path(address: str) -> BucketPath:
    """Return the path of gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.

    Raise InputError for another address, and where the client is not installed.
    """
    scheme, _, rest = address.partition("://")
    if scheme not in _CLIENTS:
        raise InputError(
            f"{address}: must be a folder of this machine, gs://BUCKET/FOLDER or "
            "s3://BUCKET/FOLDER"
        )
    if not rest.strip("/") or rest.startswith("/"):
        raise InputError(f"{address} names no bucket: must be {scheme}://BUCKET/FOLDER")
    _store(scheme)
    return BucketPath(f"{scheme}://{posixpath.normpath(rest)}")


def snapshot(folder: BucketPath) -> BucketPath:
    """Return the folder as it is now: its listings are made once, by few requests.

    A data set of a million images would otherwise ask the store for each file.
    """
    files, folders = set(), {folder.key: set()}
    for file in folder.files_below():
        files.add(file.key)
        below = file
        while below.key != folder.key:
            known = below.parent.key in folders
            folders.setdefault(below.parent.key, set()).add(below.name)
            if known:
                break
            below = below.parent
    if not files:
        folders.clear()

    class Listed(BucketPath):
        """A path below the folder."""

        def is_file(self):
            return self.key in files

        def is_dir(self):
            return self.key in folders

        def exists(self):
            return self.is_file() or self.is_dir()

        def iterdir(self):
            yield from (self / name for name in sorted(folders[self.key]))

        def files_below(self):
            found = []
            for path in self.iterdir():
                found += path.files_below() if path.is_dir() else [path]
            return found

    return Listed(str(folder))


def guard(function: Callable[[BucketPath], None]) -> Callable[[BucketPath], None]:
    """Call `function` with the path before each change; it raises OSError to forbid it."""
    _GUARDS.append(function)
    return function


@functools.cache
def _store(scheme):
    client = _CLIENTS[scheme]
    try:
        importlib.import_module(client)
        import fsspec
    except ImportError as fault:
        raise InputError(
            f"{scheme}:// needs {client}, which is not installed: pip install "
            "'freeadv_jax[buckets]'"
        ) from fault
    # Another process may write there: what was listed before is not asked again.
    return fsspec.filesystem(scheme, use_listings_cache=False)


@contextlib.contextmanager
def _named(path):
    """Let each fault be an OSError with the address; the clients raise many others."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as fault:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(path)) from fault
    except FileExistsError as fault:
        raise FileExistsError(errno.EEXIST, "it exists", str(path)) from fault
    except Exception as fault:
        number = getattr(fault, "errno", None) or errno.EIO
        kind = PermissionError if isinstance(fault, PermissionError) else OSError
        raise kind(number, one_line(fault), str(path)) from fault


@contextlib.contextmanager
def _changing(path):
    for allowed in _GUARDS:
        allowed(path)
    with _named(path):
        yield
