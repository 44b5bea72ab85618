"""The lock of a folder in a bucket: a lease that ends unless it is renewed.

The folder LEASE holds one object with its owner and its end, whose name is a number. The
next number is created, never overwritten, to renew the lease and to take it over: of two
that try, the store lets one succeed. The last number stays when the lease is given back,
because a count that began again could let both succeed. Its age is told by the clock of
the store.
"""

import contextlib
import errno
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from freeadv_jax.errors import InputError
from freeadv_jax.files.buckets import BucketPath, guard

LEASE = ".lease"
# Seconds that a lease lasts, and after which its owner renews it.
_LASTS = 60
_RENEWED_AFTER = 15
_LOGGER = logging.getLogger(__name__)
# The leases of this process, and the owners that ask for one.
_HELD: list["_Lease"] = []
_OWNERS: set[str] = set()


@contextlib.contextmanager
def leased(folder: BucketPath) -> Iterator[None]:
    """Hold the lease of `folder`; raise InputError where another process holds it.

    The lease of a process that was killed is taken over: at once where it ran on this
    machine, otherwise when it ends. While the lease is held, writing to the folder raises
    OSError once another process has it, as it can after this one was stopped for long.
    """
    lease = _Lease(folder)
    _OWNERS.add(lease.owner)
    try:
        lease.acquire()
    except BaseException:
        _OWNERS.discard(lease.owner)
        raise
    _HELD.append(lease)
    ended = threading.Event()
    renewing = threading.Thread(target=lease.keep, args=(ended,), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        _HELD.remove(lease)
        try:
            lease.release()
        finally:
            _OWNERS.discard(lease.owner)


def _now():
    """Return seconds of a clock that also runs while the machine sleeps, where it can."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class _Lease:
    def __init__(self, folder):
        self.folder, self._objects = folder, folder / LEASE
        self.owner = uuid.uuid4().hex
        self._owner = {
            "owner": self.owner,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "machine": _machine(),
        }
        self._number = self._renewed = 0
        self._lock = threading.Lock()
        self._lost = False

    def acquire(self):
        """Take the lease when it is free; raise InputError where it is in use."""
        number, found = self._newest()
        if found and not _is_free(found):
            self._await_end(number, found)
        self._put(number + 1)
        if self._lost:
            raise self._in_use(self._newest()[1])

    def keep(self, ended):
        """Renew the lease until `ended`."""
        while not ended.wait(_RENEWED_AFTER) and not self._lost:
            try:
                self.renew()
            # The store may answer again before the lease ends.
            except OSError as fault:
                _LOGGER.info("%s: the lease is not renewed yet: %s", self.folder, fault)

    def renew(self):
        """Make the lease last; note where another process has it."""
        with self._lock:
            if not self._lost:
                self._put(self._number + 1)

    def require(self, path):
        """Raise OSError unless the lease lasts and is this process's."""
        if _now() - self._renewed > _LASTS / 2:
            self.renew()
        if self._lost:
            raise OSError(
                errno.EBUSY, "another process has taken over the lease", str(path)
            )

    def release(self):
        """Give the lease back."""
        if not self._lost:
            self._object(self._number).write_bytes(self._text(0))

    def _put(self, number):
        """Create the object `number`, and note whether the lease is this process's."""
        if self._number and self._read(self._number) is None:
            self._lost = True
            return
        begun = _now()
        try:
            self._object(number).create(self._text(_LASTS))
        except FileExistsError:
            # By another process, or by a put of this one whose answer was lost. Its lease
            # has been running since that put.
            begun = self._renewed
        newest, found = self._newest()
        if newest != number or not self._is_own(found):
            self._lost = True
            return
        before, self._number, self._renewed = self._number, number, begun
        if before != number:
            self._clear(below=number)

    def _text(self, seconds):
        ends = {"seconds": seconds, "expires": time.time() + seconds}
        return json.dumps(self._owner | ends).encode()

    def _clear(self, *, below):
        for number in self._numbers():
            if number < below:
                self._object(number).unlink(missing_ok=True)

    def _await_end(self, number, found):
        """Wait for the end of another's lease; raise InputError where it is renewed."""
        try:
            left = found["seconds"] - self._age(number)
        except FileNotFoundError:  # Its owner has renewed it meanwhile.
            raise self._in_use(found) from None
        if left > 0:
            if found.get("machine") == self._owner["machine"]:
                raise self._in_use(found)  # Its process lives.
            _LOGGER.info(
                "%s: waiting %.0f s for the lease of a process on %s to end",
                self.folder,
                left,
                found.get("host"),
            )
        until = time.monotonic() + left
        while time.monotonic() < until:
            time.sleep(min(1, max(0, until - time.monotonic())))
            now, other = self._newest()
            if now != number and other:
                raise self._in_use(other)
            if not other or _is_free(other):
                return

    def _age(self, number):
        """Seconds since an object was put, by the clock of the store."""
        probe = self._objects / f"clock-{self.owner}"
        probe.write_bytes(b"")
        try:
            return probe.modified() - self._object(number).modified()
        finally:
            probe.unlink(missing_ok=True)

    def _newest(self):
        """(number, content) of the newest object, (0, None) without one."""
        for number in reversed(self._numbers()):
            if found := self._content(number):
                return number, found
        return 0, None

    def _numbers(self):
        names = [path.name for path in self._objects.files_below()]
        return sorted(int(name) for name in names if name.isdecimal())

    def _read(self, number):
        """The content of an object if it is this process's."""
        found = self._content(number)
        return found if self._is_own(found) else None

    def _content(self, number):
        try:
            return json.loads(self._object(number).read_bytes())
        except FileNotFoundError:  # Its owner has just renewed or released it.
            return None

    def _is_own(self, found):
        return bool(found) and found.get("owner") == self.owner

    def _object(self, number):
        return self._objects / f"{number:09d}"

    def _in_use(self, found):
        by = f" by process {found['pid']} on {found['host']}" if found else ""
        return InputError(
            f"{self.folder} is in use{by}: another process trains or evaluates there"
        )


def _machine():
    """Return what tells this machine, since it started, from every other one."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # No Linux: the process that holds a lease is unknown.
        return uuid.uuid4().hex


def _is_free(found):
    """Whether a lease was given back, or its process ran on this machine and is gone."""
    if not found.get("seconds"):
        return True
    if found.get("machine") != _machine():
        return False
    if found["pid"] == os.getpid():
        # A container that starts again gives its processes the same numbers.
        return found["owner"] not in _OWNERS
    try:
        os.kill(found["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # It is another user's.
        return False
    return False


@guard
def _require_lease(path):
    for lease in _HELD:
        own = path.is_relative_to(lease.folder / LEASE)
        if path.is_relative_to(lease.folder) and not own:
            lease.require(path)
