"""The measurements of a training on its way: metrics.jsonl and TensorBoard."""

import importlib.util
import json
import logging
import os
import time

from freeadv_jax.data.tf_import import without_notes
from freeadv_jax.devices.processes import agreement, is_first
from freeadv_jax.errors import InputError
from freeadv_jax.files import AnyPath, BucketPath

_LOGGER = logging.getLogger(__name__)
_NAME = "metrics.jsonl"
# Where the lines since the start lie in a bucket, to which nothing can be appended.
_PARTS = "metrics.jsonl.parts"
# Seconds between two parts; each costs a request.
_SECONDS_BETWEEN_PARTS = 30


class MetricsLog:
    """metrics.jsonl, one JSON object a line; TensorBoard where clu can write it.

    A line has `kind`, `step` (minibatches) and `updates`, then the figures. All of it but
    `seconds` is a function of the configuration. Without a folder the lines are kept in
    memory alone. In a bucket the lines since the start are objects of their own, which
    `close` joins to one, as `read_metrics` does.
    """

    def __init__(self, workdir: AnyPath | None, *, last_step: int = 0):
        """Go on after `last_step`: lines that a killed run wrote beyond it are dropped."""
        self.lines: list[dict] = []
        self._file = self._tensorboard = None
        if workdir is None:
            return
        # The first process joins the parts of a bucket once all have read them.
        with agreement():
            self.lines = [
                line for line in read_metrics(workdir) if line["step"] <= last_step
            ]
        if is_first():
            opened = _Parts if isinstance(workdir, BucketPath) else _Appended
            self._file = opened(workdir, self.lines)
            self._tensorboard = _tensorboard_writer(workdir)

    def write(self, kind: str, *, step: int, **values: float) -> None:
        """Add a line; it is in the file when this returns, in a bucket after `flush`."""
        line = {"kind": kind, "step": step, **values}
        self.lines.append(line)
        if self._file:
            self._file.add(line)
        if self._tensorboard:
            self._tensorboard.write_scalars(
                step, {f"{kind}/{name}": value for name, value in values.items()}
            )

    def flush(self) -> None:
        """Let all lines be in the file."""
        if self._file:
            self._file.flush()

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


class _Appended:
    """metrics.jsonl of this machine, a line appended at a time."""

    def __init__(self, workdir, lines):
        path = workdir / _NAME
        rewritten = path.with_suffix(".tmp")
        rewritten.write_text(_text(lines))
        os.replace(rewritten, path)
        self._file = path.open("a")

    def add(self, line):
        self._file.write(_text([line]))
        self._file.flush()

    def flush(self):
        """Do nothing: each line is in the file."""

    def close(self):
        self._file.close()


class _Parts:
    """metrics.jsonl of a bucket, and the lines since the start in numbered objects."""

    def __init__(self, workdir, lines):
        self._path, self._folder = workdir / _NAME, workdir / _PARTS
        self._lines, self._waiting = list(lines), []
        self._parts, self._put = 0, time.monotonic()
        self._join()

    def add(self, line):
        self._lines.append(line)
        self._waiting.append(line)
        if time.monotonic() - self._put > _SECONDS_BETWEEN_PARTS:
            self.flush()

    def flush(self):
        if self._waiting:
            self._parts += 1
            part = self._folder / f"{self._parts:09d}.jsonl"
            part.write_text(_text(self._waiting))
            self._waiting = []
        self._put = time.monotonic()

    def close(self):
        self.flush()
        self._join()

    def _join(self):
        """Put all lines as one object, then delete the parts: a kill loses none."""
        self._path.write_text(_text(self._lines))
        for part in self._folder.files_below():
            part.unlink(missing_ok=True)


def _text(lines):
    return "".join(json.dumps(line) + "\n" for line in lines)


def read_metrics(folder: AnyPath) -> list[dict]:
    """Return the lines of a run folder, of a bucket with those of all parts.

    Raise InputError for a damaged line, naming it.
    """
    if not isinstance(folder, BucketPath):
        return list(read_lines(folder / _NAME))
    lines: dict = {}
    for path in (folder / _NAME, *(folder / _PARTS).files_below()):
        for line in read_lines(path):
            # A run that was killed while it joined the parts left some lines twice.
            lines[line["kind"], line["step"]] = line
    return list(lines.values())


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
    """Return clu's writer, or None without TensorFlow, which clu needs.

    Its files are appended to, and a bucket takes whole objects only.
    """
    if isinstance(workdir, BucketPath):
        return None
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
