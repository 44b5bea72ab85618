"""The record of a benchmark: its results, command, commit, versions and hardware."""

import importlib.metadata
import os
import pathlib
import platform
import shlex
import sys

from freeadv_jax.files import read_json, write_json
from freeadv_jax.runs.provenance import environment

# These decide how fast a processor computes in float32 and in bfloat16.
_VECTOR_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
# Variables that change kernels or devices; the record's command begins with those set.
_VARIABLES = (
    "DNNL_MAX_CPU_ISA",
    "ONEDNN_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "FREEADV_ONEDNN",
    "XLA_FLAGS",
)


def write_record(
    path: str,
    results: dict,
    *,
    rows: list | None = None,
    packages: tuple[str, ...] = (),
) -> None:
    """Write `results` as JSON with the command and the machine that made them.

    `rows` are a list beside them. `packages` are further packages whose versions belong to
    the record.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    module = f"benchmarks.{pathlib.Path(sys.argv[0]).stem}"
    command = shlex.join(["python", "-m", module, *sys.argv[1:]])
    for name in reversed(_VARIABLES):
        if value := os.environ.get(name):
            command = f"{name}={shlex.quote(value)} {command}"
    write_json(
        path,
        {
            "command": command,
            "environment": measured_on(packages),
            "results": results,
        }
        | ({} if rows is None else {"rows": rows}),
    )
    print(f"written to {path}")


def kept(path: pathlib.Path, how: dict) -> dict:
    """Return the content of `path` if it was measured with the settings `how`.

    Otherwise return a copy of `how` to add results to. `how` maps names to JSON values.
    """
    found = read_json(path) if path.exists() else {}
    return found if {name: found.get(name) for name in how} == how else dict(how)


def measured_on(packages: tuple[str, ...] = ()) -> dict:
    """Return versions, also of `packages`, devices, commit and processor."""
    peers = {name: importlib.metadata.version(name) for name in packages}
    return environment() | _processor() | {"peers": peers}


def _processor():
    """Return the processor's name, and its vector instructions where the system lists
    them.
    """
    found = {"processor": platform.processor() or platform.machine()}
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return found
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            found["processor"] = value.strip()
        if name.strip() == "flags":
            flags = set(value.split())
            known = [each for each in _VECTOR_INSTRUCTIONS if each in flags]
            found["vector_instructions"] = known
    return found
