"""Record how a result came about: versions, devices and commit."""

import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax

from freeadv_jax.devices import onednn
from freeadv_jax.version import __version__

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "ml-collections",
    "numpy",
)


def environment() -> dict:
    """Return the versions, devices and commit that made a result, for results.json."""
    return {
        "versions": {
            "python": platform.python_version(),
            "freeadv_jax": __version__,
            **{name: _version(name) for name in _PACKAGES},
        },
        "device_kind": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "onednn": onednn.unavailable() or "available",
        "commit": _commit(),
    }


def devices_text() -> str:
    """Return the number and kind of devices, such as '8 cpu devices'."""
    count, kind = jax.device_count(), jax.devices()[0].device_kind
    return f"{count} {kind} device{'s' * (count > 1)}"


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit():
    """The commit of the checkout this package runs from, None where it is installed."""
    source = pathlib.Path(__file__)
    here = ["git", "-C", source.parent]
    git = functools.partial(subprocess.run, capture_output=True, text=True, check=True)
    try:
        # An installed copy may lie in another checkout, whose commit is not its own.
        git([*here, "ls-files", "--error-unmatch", source.name])
        described = git(
            [*here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
