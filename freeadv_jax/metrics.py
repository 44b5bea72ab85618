"""What a run measures on its way: metrics.jsonl, TensorBoard, and lines to watch."""

import importlib.util
import json
import logging
import os
import pathlib
import time

from freeadv_jax.errors import InputError
from freeadv_jax.processes import is_first

_LOGGER = logging.getLogger(__name__)


class MetricsLog:
    """metrics.jsonl, one JSON object a line; TensorBoard where clu can write it.

    A line has `kind`, `step` (minibatches) and `updates`, then what was measured.
    `seconds` apart, the lines are a function of the configuration.
    """

    def __init__(self, workdir: pathlib.Path, *, last_step: int):
        """Continues after `last_step`: what a killed run wrote beyond it goes."""
        path = workdir / "metrics.jsonl"
        self.lines = [line for line in read_lines(path) if line["step"] <= last_step]
        self._file = self._tensorboard = None
        if is_first():
            rewritten = path.with_suffix(".tmp")
            text = "".join(json.dumps(line) + "\n" for line in self.lines)
            rewritten.write_text(text)
            os.replace(rewritten, path)
            self._file = path.open("a")
            self._tensorboard = _tensorboard_writer(workdir)

    def write(self, kind: str, *, step: int, **values: float) -> None:
        """Adds a line; it is in the file when this returns."""
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
        """The lines so far of one kind, oldest first."""
        return [line for line in self.lines if line["kind"] == kind]

    def close(self) -> None:
        if self._file:
            self._file.close()
        if self._tensorboard:
            self._tensorboard.close()


class Window:
    """Means of the training metrics since the last line, able to be saved."""

    def __init__(self, sums: dict[str, float] | None = None, count: int = 0):
        self.sums, self.count = dict(sums or {}), count

    def add(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def take(self) -> dict[str, float]:
        """The means; the window is empty afterwards."""
        means = {name: value / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means

    def as_dict(self) -> dict:
        """What makes the same window again; it does not change with this one."""
        return {"sums": dict(self.sums), "count": self.count}


class Progress:
    """Lines on standard output: how far, how fast, and how long still."""

    def __init__(self, name: str, *, total: int, unit: str):
        self._name, self._total, self._unit = name, total, unit
        self._begun: tuple[int, float] | None = None
        self._next = time.perf_counter() + 1

    def show(self, done: int, **values: float) -> None:
        """Prints a line if the last is old enough, or the work is finished.

        The rate counts from the first call: what came before it was compilation.
        """
        now = time.perf_counter()
        first, start = self._begun = self._begun or (done, now)
        if now < self._next and done < self._total:
            return
        # Every second at first, then ever more rarely, up to every half minute.
        self._next = now + min(30, max(1, (now - start) / 10))
        shown = "".join(f"  {name} {value:.4f}" for name, value in values.items())
        if done > first:
            rate = (done - first) / (now - start)
            left = duration((self._total - done) / rate)
            shown += f"  {rate:.3g} {self._unit}/s  {left} left"
        share = f"{done}/{self._total} {self._unit} ({done / self._total:.0%})"
        print(f"{self._name} {share}{shown}", flush=True)


def duration(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def read_lines(path):
    """The whole lines of a file whose last a kill may have cut short."""
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
    """clu's writer, or None: it needs TensorFlow, which the package does not."""
    if importlib.util.find_spec("tensorflow") is None:
        return None
    try:
        from clu import metric_writers
    except ImportError as missing:
        _LOGGER.warning(
            "no TensorBoard files: %s; pip install 'freeadv_jax[tensorboard]'", missing
        )
        return None
    return metric_writers.SummaryWriter(str(workdir / "tensorboard"))
