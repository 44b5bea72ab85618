"""Memory that is freed stays with the process, where the C library is glibc."""

import platform
import subprocess
import sys

import pytest
from tiny_run import ROOT

from freeadv_jax.devices.memory import keep_memory

# Counts the pages that the system hands out while a large block is taken and freed.
CHILD = """
import resource, sys
import numpy as np
from freeadv_jax.devices.memory import keep_memory

assert keep_memory() if sys.argv[1] == "keep" else True
for _ in range(2):  # The first block is new in any case.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(10_000_000)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the C library has no mallopt"
)
def test_a_large_block_is_taken_from_the_system_once():
    faults = {
        how: int(
            subprocess.run(
                [sys.executable, "-c", CHILD, how],
                capture_output=True,
                text=True,
                check=True,
                cwd=ROOT,
            ).stdout
        )
        for how in ("keep", "return")
    }
    # 80 MB have 19,531 pages of 4 KB.
    assert faults["keep"] < 500 < faults["return"]


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert not keep_memory()
