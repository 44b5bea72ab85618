"""Several processes as one job: they start, fail, print and stop together."""

import contextlib
import os
import re
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from freeadv_jax.errors import InputError

# Seconds until the other processes notice that one was killed.
_HEARTBEAT = 30
# Seconds that a process waits for the others to start.
_START = 300
# Seconds that it waits at the end, which all reach at the same time.
_END = 60
# Environment variables in which launchers say how many processes they started.
_COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
# A TPU pod names all its machines in this one.
_WORKERS = "TPU_WORKER_HOSTNAMES"
_LONGEST_MESSAGE = 2000


def start(
    *,
    multihost: bool,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Join the other processes of this job; call it before anything touches a device.

    With `multihost` alone, JAX asks the cluster for the rest (a TPU pod, GKE's too,
    Slurm, Open MPI 4). Afterwards only the first process writes to standard output.
    Raise InputError where the job cannot be joined, and where a launcher started several
    processes without `multihost`.
    """
    given = {
        "coordinator": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    if not multihost:
        _require_alone(given)
        return
    if coordinator and not re.fullmatch(r".+:\d+", coordinator):
        raise InputError(f"--coordinator={coordinator}: must be HOST:PORT")
    _attend()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=_START,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_END,
        )
        counts = [device.process_index for device in jax.devices()]
    # JAX raises ValueError, TypeError, RuntimeError or a cluster's own exception.
    except Exception as fault:
        reason = " ".join(str(fault).split())
        raise InputError(
            f"--multihost: the processes cannot be joined: {reason}; where no cluster "
            "is found give --coordinator=HOST:PORT, --num_processes and --process_id"
        ) from fault
    per_process = np.bincount(counts, minlength=jax.process_count())
    if len(set(per_process)) > 1:
        raise InputError(
            f"the processes have {', '.join(map(str, per_process))} devices: "
            "all must have as many"
        )
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for the rest of the process.


def end_at_sigterm() -> None:
    """Let SIGTERM end this process after `start`, as `run_command` arranged it.

    The service that connects the processes replaces Python's handler by one that only
    notes the signal. A training asks it by `preemption`; other work would go on to its end.
    """
    # Python still names its own handler, and sets it again.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


def _require_alone(given):
    for flag, value in given.items():
        if value is not None:
            raise InputError(f"--{flag} goes with --multihost")
    counts = {name: os.environ.get(name, "1") for name in _COUNTS}
    counts[_WORKERS] = str(len(os.environ.get(_WORKERS, "").split(",")))
    for name, count in counts.items():
        if count != "1":
            raise InputError(
                f"{name} says that {count} processes were started: add --multihost, "
                "or start only one"
            )


def _attend():
    """Continue in a child process; this one waits for it and reports how it ended.

    XLA aborts, without asking Python, where the job loses a process or lacks one.
    """
    sys.stdout.flush()
    parent = os.getpid()
    child = os.fork()
    if not child:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        return
    terminated = threading.Event()

    def terminate(*_):
        terminated.set()
        os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # A terminal sends it to both.
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code and terminated.is_set():
        # XLA also aborts where the others do not end with this one.
        sys.exit(128 + signal.SIGTERM)
    if code == -signal.SIGABRT:
        sys.exit(
            "error: the job lost one of its processes, or never had all of them (the "
            "messages above say which); the same command, given to all again, goes on "
            "from what was saved last"
        )
    if code < 0:
        sys.exit(
            f"error: this process was ended by {signal.Signals(-code).name}; the same "
            "command, given to all again, goes on from what was saved last"
        )
    sys.exit(code)


def _end_with(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def is_first() -> bool:
    """Return whether this process is the one that writes files and lines."""
    return jax.process_index() == 0


@contextlib.contextmanager
def agreement() -> Iterator[None]:
    """Let all processes pass the `with` block, or raise InputError in all of them."""
    fault = None
    try:
        yield
    except (InputError, OSError) as raised:
        fault = raised
    if jax.process_count() > 1:
        for number, message in enumerate(_from_all(str(fault) if fault else "")):
            if message and fault is None:
                raise InputError(f"process {number}: {message}")
    if fault:
        raise fault


def require_same(content: str, what: str) -> None:
    """Raise InputError on all processes unless they have the same `content`."""
    found = _from_all(f"{zlib.crc32(content.encode()):08x}")
    if len(set(found)) > 1:
        raise InputError(f"the processes differ in {what}: start all in the same way")


def _from_all(text: str) -> list[str]:
    """Return the text of each process."""
    raw = text.encode()[:_LONGEST_MESSAGE]
    padded = np.zeros(_LONGEST_MESSAGE, np.uint8)
    padded[: len(raw)] = np.frombuffer(raw, np.uint8)
    gathered = multihost_utils.process_allgather(padded).reshape(-1, _LONGEST_MESSAGE)
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in gathered]


@contextlib.contextmanager
def preemption() -> Iterator[Callable[[int], bool]]:
    """Yield `stops(call)`: whether a SIGTERM asks to save after this call and to end.

    Call it once before every call of the training steps, with consecutive numbers. A
    SIGTERM to any process stops all of them after the same call.
    """
    if jax.process_count() > 1:
        # The coordination service handles SIGTERM here; give it back afterwards.
        before = signal.getsignal(signal.SIGTERM)
        try:
            yield multihost_utils.reached_preemption_sync_point
        finally:
            signal.signal(signal.SIGTERM, before)
        return
    terminated = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda call: False  # Only the main thread may handle signals.
        return
    before = signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    try:
        yield lambda call: terminated.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
