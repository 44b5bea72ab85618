"""The main job of `tiny_run` as two processes of four devices, over loopback."""

import socket
import subprocess

import jax
import numpy as np
from tiny_run import ROOT, command, environment

from freeadv_jax.runs.folder import read_run
from freeadv_jax.runs.load import trained_state

FIELDS = {"updates": 12, "evaluation__examples": 100}


def start(workdirs, *, own_flags=((), ()), **fields):
    """Run two processes of one job, each with its workdir and flags."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = ["--multihost", f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    return [
        subprocess.Popen(
            [
                *command(workdir, **FIELDS | fields),
                *together,
                f"--process_id={i}",
                *own,
            ],
            cwd=ROOT,
            env=environment(devices=4),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i, (workdir, own) in enumerate(zip(workdirs, own_flags))
    ]


def finish(pair):
    """Return (exit status, standard output, standard error) of each process."""
    texts = [process.communicate(timeout=300) for process in pair]
    return [(p.returncode, *text) for p, text in zip(pair, texts)]


def run_two(workdir, **options):
    return finish(start([workdir] * 2, **options))


def state_of(workdir):
    return trained_state(read_run(workdir), "last")


def assert_same_training(folder, other, *, tolerance=1e-6):
    ours, expected = state_of(folder), state_of(other)
    assert ours.step == expected.step
    for name in ("params", "collections", "delta"):
        for x, y in zip(
            *map(jax.tree.leaves, (getattr(ours, name), getattr(expected, name)))
        ):
            np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance)
