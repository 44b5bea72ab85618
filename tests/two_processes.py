"""The main job of `tiny_run`, and its evaluation, as two processes over loopback.

Each has four devices.
"""

import socket
import subprocess
import sys

import jax
import numpy as np
from tiny_run import ROOT, command, environment

from freeadv_jax.runs.folder import read_run
from freeadv_jax.runs.load import trained_state

FIELDS = {"updates": 12, "evaluation__examples": 100}


def start(workdirs, *, own_flags=((), ()), **fields):
    """Run two processes of one training, each with its workdir and flags."""
    return _start([command(each, **FIELDS | fields) for each in workdirs], own_flags)


def start_evaluation(workdirs, *flags, own_flags=((), ())):
    """Start two processes of one evaluation, each with its workdir and flags."""
    evaluate = [sys.executable, "-m", "freeadv_jax.evaluate"]
    commands = [[*evaluate, f"--workdir={workdir}", *flags] for workdir in workdirs]
    return _start(commands, own_flags)


def evaluate_two(workdir, *flags, own_flags=((), ())):
    """Run two processes of one evaluation to their ends."""
    return finish(start_evaluation([workdir] * 2, *flags, own_flags=own_flags))


def _start(commands, own_flags):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = ["--multihost", f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    return [
        subprocess.Popen(
            [
                *each,
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
        for i, (each, own) in enumerate(zip(commands, own_flags, strict=True))
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
