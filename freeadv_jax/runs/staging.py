"""Checkpoints in a bucket: written and read in a folder of this machine, copied as objects.

Orbax 0.12 writes to gs:// with rights that few accounts have, and not to s3://. Here both
stores take the same way and the bits of a folder of this machine. A folder of the bucket
that is copied to a machine holds checkpoints as Orbax writes them.
"""

import concurrent.futures
import errno
import pathlib
import tempfile
from collections.abc import Callable

from freeadv_jax.devices.processes import is_first
from freeadv_jax.errors import InputError
from freeadv_jax.files import BucketPath

# Orbax writes this object last. A checkpoint without it was cut off and does not count.
_COMMIT = "commit_success.txt"
# The folders with the numbers of the arrays. They are copied when a state is read.
_ARRAYS = "d"


class Staging:
    """The folder `local` of this machine with the checkpoints of a folder in a bucket.

    A `writable` one removes at its start what a killed run left unfinished.
    """

    def __init__(self, bucket: BucketPath, *, writable: bool):
        self._bucket = bucket
        self._temporary = tempfile.TemporaryDirectory(prefix="freeadv-checkpoints-")
        self.local = pathlib.Path(self._temporary.name)
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._upload: concurrent.futures.Future | None = None
        self._objects: dict[str, list[BucketPath]] = {}
        self._complete: set[str] = set()
        for path in bucket.files_below():
            step = path.relative_to(bucket).parts[0]
            if step.isdecimal():  # Anything else is somebody else's.
                self._objects.setdefault(step, []).append(path)
        for step, objects in list(self._objects.items()):
            if bucket / step / _COMMIT in objects:
                rest = [path for path in objects if not self._is_array(path)]
                try:
                    self._download(rest)
                except FileNotFoundError:  # A training has deleted it meanwhile.
                    del self._objects[step]
            else:
                del self._objects[step]
                if writable and is_first():
                    _delete(objects)

    def fetch(self, step: int) -> None:
        """Copy the arrays of a checkpoint to this machine; before, only the rest is there.

        Raise InputError where the store fails, and FileNotFoundError for a missing object.
        """
        name = str(step)
        if name in self._objects and name not in self._complete:
            try:
                self._download(self._objects[name])
            except FileNotFoundError:
                raise
            except OSError as fault:
                raise InputError(f"{fault.filename}: {fault.strerror}") from fault
            self._complete.add(name)

    def publish(self, step: int, saved: Callable[[], object]) -> None:
        """Copy a checkpoint to the bucket once `saved()` returns, in a thread.

        Checkpoints that are no longer on this machine are deleted in the bucket.
        """
        self._complete.add(str(step))
        self._upload = self._thread.submit(self._publish, str(step), saved)

    def wait(self) -> None:
        """Wait until the last checkpoint is in the bucket; raise what kept it from there."""
        if self._upload:
            upload, self._upload = self._upload, None
            upload.result()

    def close(self) -> None:
        """Wait likewise, and remove the folder of this machine."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._temporary.cleanup()

    def delete(self, step: int) -> None:
        """Delete a checkpoint in the bucket."""
        self._complete.discard(str(step))
        objects = self._objects.pop(str(step), [])
        if is_first():
            _delete(objects)

    def _publish(self, step, saved):
        saved()
        if not is_first():
            return
        files = [path for path in (self.local / step).rglob("*") if path.is_file()]
        files.sort(key=lambda path: path == self.local / step / _COMMIT)
        if files[-1].name != _COMMIT:
            raise OSError(errno.EIO, f"there is no {_COMMIT}", str(self.local / step))
        objects = [self._bucket / path.relative_to(self.local) for path in files]
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            # The list is needed to raise a thread's error here.
            list(threads.map(BucketPath.upload, objects[:-1], files[:-1]))
        objects[-1].upload(files[-1])
        self._objects[step] = objects
        for old in set(self._objects) - {path.name for path in self.local.iterdir()}:
            self.delete(int(old))

    def _is_array(self, path):
        return _ARRAYS in path.relative_to(self._bucket).parts

    def _download(self, objects: list[BucketPath]):
        pairs = [
            (path, self.local / path.relative_to(self._bucket)) for path in objects
        ]
        missing = [(path, file) for path, file in pairs if not file.exists()]
        for _, file in missing:
            file.parent.mkdir(parents=True, exist_ok=True)
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda pair: pair[0].download(pair[1]), missing))


def _delete(objects):
    """Delete the objects of a checkpoint; the first one says that it is whole."""
    for path in sorted(objects, key=lambda path: path.name != _COMMIT):
        path.unlink(missing_ok=True)
