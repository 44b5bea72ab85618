"""How a benchmark's result is kept: with its command, commit, versions and hardware."""

import importlib.metadata
import pathlib
import platform
import shlex
import sys

from freeadv_jax.files import read_json, write_json
from freeadv_jax.runs.provenance import environment

# What decides how fast a processor can compute in float32 and in bfloat16.
_VECTOR_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def write_record(path: str, results: dict, *, packages: tuple[str, ...] = ()) -> None:
    """Writes results.json-like `results` and how they came about.

    `packages` are those whose versions count besides the usual ones.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    module = f"benchmarks.{pathlib.Path(sys.argv[0]).stem}"
    write_json(
        path,
        {
            "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
            "environment": measured_on(packages),
            "results": results,
        },
    )
    print(f"written to {path}")


def kept(path: pathlib.Path, how: dict) -> dict:
    """What lies in `path` if it was measured in this way; else what is to go there.

    `how` is JSON-like, and so are its parts there.
    """
    found = read_json(path) if path.exists() else {}
    return found if {name: found.get(name) for name in how} == how else dict(how)


def measured_on(packages: tuple[str, ...] = ()) -> dict:
    """Versions, those of `packages` too, devices, commit and processor."""
    peers = {name: importlib.metadata.version(name) for name in packages}
    return environment() | _processor() | {"peers": peers}


def _processor():
    """What the system says of it: its name, and its vector instructions where known."""
    said = {"processor": platform.processor() or platform.machine()}
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return said
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            said["processor"] = value.strip()
        if name.strip() == "flags":
            flags = set(value.split())
            known = [each for each in _VECTOR_INSTRUCTIONS if each in flags]
            said["vector_instructions"] = known
    return said
