"""How a benchmark's result is kept: with its command, commit, versions and hardware."""

import importlib.metadata
import pathlib
import platform
import sys

from freeadv_jax.record import environment, write_json


def write_record(path: str, results: dict, *, packages: tuple[str, ...] = ()) -> None:
    """Writes results.json-like `results` and how they came about.

    `packages` are those whose versions count besides the usual ones.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    command = f"python -m benchmarks.{pathlib.Path(sys.argv[0]).stem}"
    write_json(
        path,
        {
            "command": " ".join([command, *sys.argv[1:]]),
            "environment": environment()
            | {"processor": _processor()}
            | {"peers": {name: importlib.metadata.version(name) for name in packages}},
            "results": results,
        },
    )
    print(f"written to {path}")


def _processor():
    """What the system says of its processor, as far as it says anything."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()
