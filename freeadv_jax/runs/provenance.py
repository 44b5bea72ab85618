"""What a result says of how it came about."""

import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess

import jax

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
    """Versions, devices and commit."""
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
        "commit": _commit(),
    }


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
        # An installed copy may lie inside somebody else's checkout: not its commit.
        git([*here, "ls-files", "--error-unmatch", source.name])
        described = git(
            [*here, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
