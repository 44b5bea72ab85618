"""Give every test a desk, and kill the processes that it leaves running."""

import contextlib
import os
import signal

import pytest
from pod import GCLOUD, TRAINING
from stand_ins import Desk


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path)
    yield desk
    for process in desk.started:
        process.kill()
        process.wait()
    for pid in tmp_path.glob("worker?/freeadv_jax_run/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


@pytest.fixture
def pod(desk):
    """Return a pod of two workers that exists but is not set up."""
    for name in ("worker0", "worker1"):
        (desk.folder / name).mkdir()
    desk.put("state", "READY\n")
    desk.stand_in("gcloud", GCLOUD)
    desk.stand_in("python", TRAINING)
    desk.stand_in("gcsfuse", 'mkdir -p "${@: -1}"')
    desk.stand_in("mountpoint", "exit 1")
    desk.stand_in("python3")
    desk.commit()
    return desk
