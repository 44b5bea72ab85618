"""Checkpoints of a run: the only module that knows Orbax."""

import contextlib
import logging
import pathlib
import re
import sys
from dataclasses import fields as fields_of
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from freeadv_jax.devices import parallel
from freeadv_jax.errors import InputError, TrainingStoppedError, one_line
from freeadv_jax.files import AnyPath, BucketPath, checksum
from freeadv_jax.runs.staging import Staging

_LOGGER = logging.getLogger(__name__)


class _OneLineEach(logging.Filter):
    """Turn what Orbax logs into details, seen at the level DEBUG of this package.

    Its threads each log the traceback of one fault, 25 for a full disk, and its tasks that
    no one waits for are logged by asyncio. Here the fault is caught and told in one line.
    """

    def filter(self, record):
        """Return whether the logger of absl, asyncio or all goes on with a record."""
        by_orbax = "orbax" in pathlib.Path(record.pathname).parts
        fault = record.exc_info[1] if record.exc_info else None
        if not by_orbax and "tensorstore" not in str(fault):
            return True
        if _LOGGER.isEnabledFor(logging.DEBUG):
            _LOGGER.debug(record.getMessage(), exc_info=record.exc_info)
        return False


for _name in ("absl", "asyncio", "root"):
    logging.getLogger(_name).addFilter(_OneLineEach())


def _show_unraisable(unraisable, *, otherwise=sys.unraisablehook):
    """Show an exception that nobody can catch, unless it is a detail of a fault.

    Orbax closes its event loop at the first array that cannot be read. TensorStore, whose
    threads read the others, then fails to report to it, and has no object to name.
    """
    fault = unraisable.exc_value
    closed = isinstance(fault, RuntimeError) and str(fault) == "Event loop is closed"
    if closed and unraisable.object is None:
        _LOGGER.debug("a read ended after its event loop", exc_info=fault)
    else:
        otherwise(unraisable)


sys.unraisablehook = _show_unraisable

# The metric by which the best checkpoint is chosen: robust validation accuracy.
BEST_METRIC = "robust"
# The longest reason that is given for a fault, in characters.
_LONGEST = 200


class Checkpoints:
    """The newest `keep` states of a run and the best one, saved asynchronously.

    Without `keep` they are open for reading only. Without `accuracies` none is read, and
    there is no best one.
    """

    def __init__(
        self,
        directory: AnyPath,
        *,
        keep: int | None = None,
        accuracies: bool = True,
    ):
        policies = ocp.training.preservation_policies
        self._staging = context = None
        if isinstance(directory, BucketPath):
            self._staging = Staging(directory, writable=keep is not None)
            context = _each_its_own()
        local = self._staging.local if self._staging else directory
        self._checkpointer = ocp.training.Checkpointer(
            local.resolve(),
            context=context,
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(
                        get_metric_fn=lambda metrics: metrics[BEST_METRIC],
                        n=1,
                        keep_checkpoints_without_metrics=False,
                    ),
                ]
            ),
            # Removes checkpoints that a killed run left half-written. That happens in the
            # background, and no two openers may do it at the same time.
            cleanup_tmp_directories=keep is not None,
            # The accuracies are read by `reload` below.
            lightweight_initialize=True,
        )
        # `processes.preemption` alone asks whether a SIGTERM came. Orbax would ask the same
        # service at each save, with a step where `preemption` counts calls. The service
        # stops at the largest number asked for, and the stop would be put off.
        manager = self._checkpointer._manager
        manager.reached_preemption = lambda step: False
        self._directory = directory
        self._metrics_of = manager._get_metrics
        manager._get_metrics = self._whole_metrics if accuracies else lambda step: None
        self._checkpointer.reload()

    def _whole_metrics(self, step):
        """Return the metrics of a step, or None where the file is damaged.

        Orbax itself would end with an exception.
        """
        try:
            metrics = self._metrics_of(step)
            if metrics is None:
                return None
            return {BEST_METRIC: float(metrics[BEST_METRIC])}
        except Exception as fault:  # noqa: BLE001
            _LOGGER.warning(
                "%s: the accuracy of checkpoint %d is damaged and left out (%s)",
                self._directory,
                step,
                _reason(fault),
            )
            return None

    @property
    def steps(self) -> list[int]:
        """The saved steps, oldest first."""
        return [saved.step for saved in self._checkpointer.checkpoints]

    @property
    def best_step(self) -> int | None:
        """The newest step with the best robust validation accuracy, if one was measured."""
        measured = [s for s in self._checkpointer.checkpoints if s.metrics]
        best = max(
            measured, key=lambda s: (s.metrics[BEST_METRIC], s.step), default=None
        )
        return best and best.step

    def save(self, state, *, progress: dict, robust: float | None = None) -> None:
        """Start to save `state`, with JSON-like `progress`, under its step.

        Wait for a previous save, copy the state to the host, and return. Raise
        TrainingStoppedError where a number of the state is not finite, before anything is
        written, and where this or the previous save cannot be written.
        """
        state = parallel.fetch(state)
        step = int(state.step)
        for path, array in jax.tree.leaves_with_path(state):
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise TrainingStoppedError(
                    f"{jax.tree_util.keystr(path)} is not finite after step {step}"
                )
        with self._writing():
            self._wait()
            if step in self.steps:
                # It was skipped as damaged at the start of this run.
                self._checkpointer.delete(step)
                if self._staging:
                    self._staging.delete(step)
            saving = self._checkpointer.save_async(
                step,
                _stored(state),
                force=True,
                metrics=None if robust is None else {BEST_METRIC: robust},
                custom_metadata={"progress": progress, "crc32": checksum(state)},
            )
            if self._staging:
                self._staging.publish(step, saving.result)

    def restore(
        self, like, which: str = "last", *, any_optimizer: bool = False
    ) -> tuple[Any, dict] | None:
        """Return (state, progress) of the 'last' or 'best' checkpoint, as NumPy arrays.

        `like` is a state of the same structure, or its shapes. A damaged newest
        checkpoint is skipped with a warning for the one before it. With `any_optimizer`
        the saved `opt_state` may have any structure, and is nested dicts and lists; the
        checksum, which goes by the structure, is then not compared. Return None where
        there is no checkpoint; raise InputError where all of them are damaged.
        """
        if which == "best":
            if self.best_step is None:
                raise InputError(
                    f"{self._directory}: no checkpoint has a robust validation "
                    "accuracy, so there is no best; allowed: last"
                )
            candidates = [self.best_step]
        else:
            candidates = self.steps[::-1]
        like = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        for step in candidates:
            try:
                return self._restore(step, like, any_optimizer=any_optimizer)
            except InputError:  # The store failed, not the checkpoint.
                raise
            # Orbax and TensorStore raise whatever the damage makes them stumble on.
            except Exception as fault:  # noqa: BLE001
                _LOGGER.warning(
                    "%s: checkpoint %d is damaged and skipped (%s)",
                    self._directory,
                    step,
                    _reason(fault),
                )
        if candidates:
            raise InputError(
                f"{self._directory}: none of the checkpoints {candidates} can be read"
            )
        return None

    def _restore(self, step, like, *, any_optimizer):
        if self._staging:
            self._staging.fetch(step)
        saved = self._checkpointer.metadata(step).custom_metadata
        if any_optimizer:
            return _restored(like, self._checkpointer.load(step)), saved["progress"]
        state = _restored(like, self._checkpointer.load(step, _stored(like)))
        if checksum(state) != saved["crc32"]:
            raise ValueError("its checksum does not fit its arrays")
        return state, saved["progress"]

    def wait(self) -> None:
        """Wait until every save is on disk."""
        with self._writing():
            self._wait()

    def close(self) -> None:
        """Wait until every save is on disk, and close the folder."""
        with self._writing(), contextlib.ExitStack() as stack:
            if self._staging:
                stack.callback(self._staging.close)
            stack.callback(self._checkpointer.close)

    def _wait(self):
        if self._staging:
            self._staging.wait()
        self._checkpointer.wait()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        # TensorStore has no type of its own for a full disk and the like.
        except Exception as fault:
            raise TrainingStoppedError(
                f"{self._directory}: a checkpoint cannot be written: {_reason(fault)}"
            ) from fault


def _each_its_own() -> ocp.Context:
    """Let each process write its checkpoints, on its own machine.

    Otherwise Orbax lets one process write, and the others wait to see its folders. Folders
    that Orbax makes in the background are announced to all processes at once: one would
    begin to write for the folder of another, and end before its own is there.
    """
    return ocp.Context(
        multiprocessing_options=ocp.options.MultiprocessingOptions(primary_host=None),
        async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
    )


def _reason(fault):
    """The end of the first line of the first fault, which is the most specific part."""
    while fault.__cause__ is not None:
        fault = fault.__cause__
    # TensorStore appends its whole specification: ' [tensorstore_spec=...'.
    parts = re.split(r" \[\w+(?:\[\d+\])?=", one_line(fault))[0].split(": ")
    while len(": ".join(parts)) > _LONGEST and len(parts) > 1:
        parts.pop(0)
    return ": ".join(parts)[-_LONGEST:]


def _stored(state) -> dict:
    """Return the arrays of a state by the names that checkpoints have always had.

    BatchNorm's averages are `batch_stats`, without the collection's own name, as before
    there were others. An average, an alignment and other collections are stored where
    there are some.
    """
    fields = {field.name: getattr(state, field.name) for field in fields_of(state)}
    others = dict(fields.pop("collections"))
    fields["batch_stats"] = others.pop("batch_stats", {})
    optional = {name: fields.pop(name) for name in ("average", "alignment")}
    optional["collections"] = others
    return fields | {name: part for name, part in optional.items() if part}


def _restored(like, stored: dict):
    """Return the state of the structure of `like` from what `_stored` made of it."""
    fields = dict(stored)
    batch_stats = fields.pop("batch_stats")
    collections = dict(fields.pop("collections", {}))
    if "batch_stats" in like.collections:
        collections["batch_stats"] = batch_stats
    return like.replace(**fields, collections=collections)
