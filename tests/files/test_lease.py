"""The lease that locks a folder of a bucket."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from freeadv_jax.errors import InputError
from freeadv_jax.files import lease as leases
from freeadv_jax.files import sole_writer
from freeadv_jax.files.lease import LEASE, leased

pytestmark = pytest.mark.buckets


def elsewhere(bucket, number, **changed):
    """Write the lease of a process on another machine."""
    content = {"owner": "b", "host": "other", "pid": 7, "machine": "m", "seconds": 60}
    path = bucket / LEASE / f"{number:09d}"
    path.write_text(json.dumps(content | changed))
    return path


def numbers(bucket):
    return [int(path.name) for path in (bucket / LEASE).files_below()]


def test_a_folder_has_one_writer_at_a_time(bucket):
    with sole_writer(bucket):
        refused = pytest.raises(InputError, match=f"{bucket} is in use by process")
        with refused, sole_writer(bucket):
            pass
        (bucket / "results.json").write_text("{}")
    with sole_writer(bucket):
        pass
    assert numbers(bucket) == [2]


def test_of_many_that_try_at_a_time_one_holds_the_lease(bucket):
    started, held, refused = threading.Barrier(4), [], []

    def attempt():
        started.wait()
        try:
            with leased(bucket):
                held.append(1)
                done.wait()
        except InputError:
            refused.append(1)

    done = threading.Event()
    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while len(held) + len(refused) < 4 and time.monotonic() < until:
        time.sleep(0.05)
    done.set()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 3)


def test_the_lease_of_a_killed_process_of_this_machine_is_taken_over(bucket):
    program = (
        "import os, signal; from freeadv_jax.files import as_path, sole_writer\n"
        f"with sole_writer(as_path('{bucket}')): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -9
    assert numbers(bucket) == [1]
    with sole_writer(bucket):
        (bucket / "x").write_text("mine")


def test_the_lease_of_a_lost_machine_is_taken_over_when_it_ends(bucket):
    elsewhere(bucket, 5, seconds=3)
    begun = time.monotonic()
    with leased(bucket):
        assert numbers(bucket) == [6]
    assert 1 <= time.monotonic() - begun < 30


def test_a_lease_that_ended_is_taken_over_though_its_process_lives(bucket):
    """It was stopped for long, or the number of its process is another's by now."""
    elsewhere(bucket, 5, seconds=1, machine=leases._machine(), pid=os.getppid())
    time.sleep(2)
    with leased(bucket):
        assert numbers(bucket) == [6]


def test_the_lease_of_a_container_that_started_again_is_taken_over(bucket):
    elsewhere(bucket, 5, machine=leases._machine(), pid=os.getpid())
    with leased(bucket):
        assert numbers(bucket) == [6]


def test_a_lease_that_is_renewed_meanwhile_is_refused(bucket):
    elsewhere(bucket, 5)
    renews = threading.Timer(2, lambda: elsewhere(bucket, 6))
    renews.start()
    refused = pytest.raises(InputError, match="in use by process 7 on other: another")
    with refused, leased(bucket):
        pass
    renews.join()
    assert numbers(bucket) == [5, 6]


def test_a_lease_is_renewed_before_it_ends(bucket, monkeypatch):
    monkeypatch.setattr(leases, "_RENEWED_AFTER", 0.1)
    with leased(bucket):
        until = time.monotonic() + 60
        while max(numbers(bucket)) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        assert max(numbers(bucket)) >= 3


def test_a_process_that_lost_its_lease_writes_nothing(bucket, monkeypatch):
    monkeypatch.setattr(leases, "_LASTS", 0)
    with leased(bucket):
        (bucket / "x").write_text("mine")
        (bucket / LEASE / f"{max(numbers(bucket)):09d}").unlink()
        elsewhere(bucket, 50)
        for change in (
            lambda: (bucket / "x").write_text("late"),
            (bucket / "x").unlink,
        ):
            with pytest.raises(
                OSError, match="another process has taken over the lease"
            ):
                change()
    assert (bucket / "x").read_text() == "mine"
    assert numbers(bucket) == [50]


def test_a_process_that_wakes_late_keeps_a_lease_that_nobody_took(bucket, monkeypatch):
    monkeypatch.setattr(leases, "_LASTS", 0)
    with leased(bucket):
        (bucket / "x").write_text("mine")
        assert max(numbers(bucket)) == 2


def test_the_owner_is_named_in_the_lease(bucket):
    with leased(bucket):
        content = json.loads((bucket / LEASE / "000000001").read_text())
        assert content["pid"] == os.getpid()
        assert 0 < content["expires"] - time.time() <= content["seconds"] == 60
