"""The measurements of a training on its way: metrics.jsonl and TensorBoard."""

import importlib.util
import json
import logging
import os
import pathlib

from freeadv_jax.data.tf_import import without_notes
from freeadv_jax.devices.processes import is_first
from freeadv_jax.errors import InputError

_LOGGER = logging.getLogger(__name__)


class MetricsLog:
    """metrics.jsonl, one JSON object a line; TensorBoard where clu can write it.

    A line has `kind`, `step` (minibatches) and `updates`, then the figures. All of it but
    `seconds` is a function of the configuration. Without a folder the lines are kept in
    memory alone.
    """

    def __init__(self, workdir: pathlib.Path | None, *, last_step: int = 0):
        """Go on after `last_step`: lines that a killed run wrote beyond it are dropped."""
        self.lines: list[dict] = []
        self._file = self._tensorboard = None
        if workdir is None:
            return
        path = workdir / "metrics.jsonl"
        self.lines = [line for line in read_lines(path) if line["step"] <= last_step]
        if is_first():
            rewritten = path.with_suffix(".tmp")
            text = "".join(json.dumps(line) + "\n" for line in self.lines)
            rewritten.write_text(text)
            os.replace(rewritten, path)
            self._file = path.open("a")
            self._tensorboard = _tensorboard_writer(workdir)

    def write(self, kind: str, *, step: int, **values: float) -> None:
        """Add a line; it is in the file when this returns."""
        line = {"kind": kind, "step": step, **values}
        self.lines.append(line)
        if self._file:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        if self._tensorboard:
            self._tensorboard.write_scalars(
                step, {f"{kind}/{name}": value for name, value in values.items()}
            )

    def of_kind(self, kind: str) -> list[dict]:
        """Return the lines of one kind so far, oldest first."""
        return [line for line in self.lines if line["kind"] == kind]

    def close(self) -> None:
        """Close the files."""
        if self._file:
            self._file.close()
        if self._tensorboard:
            self._tensorboard.close()


class Window:
    """Means of the training metrics since the last line, which can be saved."""

    def __init__(self, sums: dict[str, float] | None = None, count: int = 0):
        self.sums, self.count = dict(sums or {}), count

    def add(self, metrics: dict[str, float]) -> None:
        """Add the metrics of one step."""
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def take(self) -> dict[str, float]:
        """Return the means, and empty the window."""
        means = {name: value / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def as_dict(self) -> dict:
        """Return the arguments that make the same window again, as copies."""
        return {"sums": dict(self.sums), "count": self.count}


def read_lines(path):
    """Yield the lines of the file but a last one that a kill cut short.

    Raise InputError for a damaged line, naming it.
    """
    if not path.exists():
        return
    text = path.read_text(errors="replace")
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if line.endswith("\n"):
            try:
                found = json.loads(line)
            except ValueError as fault:
                raise InputError(f"{path}, line {number} is damaged: {fault}") from None
            if not isinstance(found, dict) or not {"kind", "step"} <= found.keys():
                raise InputError(f"{path}, line {number} lacks its kind or its step")
            if not isinstance(found["step"], int):
                raise InputError(f"{path}, line {number}: its step is no number")
            yield found


def _tensorboard_writer(workdir):
    """Return clu's writer, or None without TensorFlow, which clu needs."""
    if importlib.util.find_spec("tensorflow") is None:
        return None
    try:
        with without_notes():
            from clu import metric_writers
    except ImportError as missing:
        _LOGGER.warning(
            "no TensorBoard files: %s; pip install 'freeadv_jax[tensorboard]'", missing
        )
        return None
    return metric_writers.SummaryWriter(str(workdir / "tensorboard"))
