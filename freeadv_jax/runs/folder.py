"""A run folder: what lies in it, who may write there, and the model it holds.

run.json         the configuration, and what the model must know of the data
metrics.jsonl    what was measured on the way
checkpoints/     the newest states and the best
results.json     the outcome
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from freeadv_jax.config import base_config, differences, replays, validate
from freeadv_jax.devices.processes import agreement
from freeadv_jax.errors import InputError
from freeadv_jax.files import (
    local_path,
    partial_path,
    read_json,
    sole_writer,
    write_json,
)
from freeadv_jax.runs.build import (
    configured_learning_rate,
    configured_model,
    configured_optimizer,
    initial_state,
)
from freeadv_jax.runs.checkpoint import Checkpoints
from freeadv_jax.training.state import TrainState

RECORD = "run.json"
# What a record says of the data, beside the configuration.
_OF_DATA = ("num_classes", "image_shape", "class_names", "training_images")
# So many seconds later a shared folder (NFS, a bucket) may show what another wrote.
_LATE = 30


@dataclasses.dataclass(frozen=True)
class Run:
    """A folder whose configuration is settled."""

    workdir: pathlib.Path
    config: ConfigDict
    num_classes: int
    image_shape: tuple[int, int, int]
    # As the data set has them; () where a run of an older version does not tell.
    class_names: tuple[str, ...] = ()
    # To train on; 0 likewise.
    training_images: int = 0

    def model(self):
        """Return the network with its normalisation in front."""
        return configured_model(
            self.config, num_classes=self.num_classes, image_shape=self.image_shape
        )

    def learning_rate(self) -> Callable:
        """Return the learning rate as a function of the update."""
        return configured_learning_rate(self.config)

    def optimizer(self):
        """Return the optax transformation."""
        return configured_optimizer(self.config)

    def initial_state(self) -> TrainState:
        """Return the state before the first minibatch."""
        return initial_state(
            self.config,
            model=self.model(),
            tx=self.optimizer(),
            image_shape=self.image_shape,
        )

    def checkpoints(self, *, writable: bool = False) -> Checkpoints:
        """The run's checkpoints; `writable` by one opener at a time."""
        keep = self.config.checkpoint.keep if writable else None
        return Checkpoints(self.workdir / "checkpoints", keep=keep)

    def saved_updates(self) -> int:
        """Weight updates behind the newest checkpoint, 0 where there is none."""
        if not (self.workdir / "checkpoints").is_dir():
            return 0
        with contextlib.closing(self.checkpoints()) as checkpoints:
            return max(checkpoints.steps, default=0) * replays(self.config)

    def trained_state(self, checkpoint: str) -> TrainState:
        """The state of the 'last' or 'best' checkpoint, as NumPy arrays."""
        if checkpoint not in ("last", "best"):
            raise InputError(
                f"checkpoint {checkpoint!r} is unknown; allowed: last, best"
            )
        if not self.saved_updates():
            raise InputError(f"{self.workdir} holds no checkpoint yet")
        like = jax.eval_shape(self.initial_state)
        with contextlib.closing(self.checkpoints()) as checkpoints:
            state, _ = checkpoints.restore(like, checkpoint)
        return state

    def require_classes(self, class_names: tuple[str, ...]) -> None:
        """InputError where those of a data set are not those of the training."""
        if self.class_names and tuple(class_names) != self.class_names:
            raise InputError(
                f"the data's classes are {_few(class_names)}, and {self.workdir} was "
                f"trained on {_few(self.class_names)}"
            )

    @property
    def steps(self) -> int:
        """Minibatches in the whole budget."""
        return self.config.updates // replays(self.config)


def _few(names):
    shown = ", ".join(names[:5])
    return f"{shown}, ... ({len(names)})" if len(names) > 5 else shown


def open_run(
    workdir,
    config: ConfigDict,
    *,
    num_classes,
    image_shape,
    class_names=(),
    training_images=0,
) -> Run:
    """The run in `workdir`, begun there or continued, by all processes together.

    InputError where the folder cannot be written, holds something else, was made with
    another configuration (apart from the fields of config_rules.FREE_TO_CHANGE) or
    with other classes or images, or is not shared by the processes.
    """
    workdir = local_path(workdir)
    run = Run(
        workdir,
        config,
        num_classes,
        tuple(image_shape),
        tuple(class_names),
        training_images,
    )
    record = run.workdir / RECORD
    with agreement():
        run.model()  # Says what does not fit before anything is written.
        _check_folder(run, record)
        _make_folder(run)
    with sole_writer(run.workdir), agreement():
        _write_record(run, record)
    with agreement():
        seen_by = time.monotonic() + _LATE
        while not record.exists() and time.monotonic() < seen_by:
            time.sleep(1)
        if not record.exists():
            raise InputError(
                f"{workdir} must be a folder that all processes share: the first one "
                "has begun the run there, and this one does not see it"
            )
    return run


def _check_folder(run, record):
    """InputError unless the run can be begun or continued there."""
    workdir, config = run.workdir, run.config
    if record.exists():
        before = _read_record(record)
        if changed := differences(before["config"], config):
            raise InputError(
                f"{workdir} was made with another configuration: {'; '.join(changed)}; "
                "use another --workdir"
            )
        for name in _OF_DATA:
            was, now = before[name], getattr(run, name)
            if was and now and was != now:
                raise InputError(
                    f"{workdir} was made of data with {name} = {was}, not {now}; "
                    "use another --workdir"
                )
        if (done := run.saved_updates()) > config.updates:
            raise InputError(
                f"{workdir} is already at update {done}: "
                f"updates = {config.updates} is less"
            )
        if (planned := before["config"]["updates"]) != config.updates:
            print(
                f"updates: {planned} before, now {config.updates}; the learning rate "
                f"follows the new budget from update {done} on",
                flush=True,
            )
    # Another process may be writing the record just now.
    elif workdir.is_dir() and set(workdir.iterdir()) - {record, partial_path(record)}:
        raise InputError(
            f"{workdir} is not empty and holds no run (no {RECORD}); "
            "use another --workdir"
        )


def _make_folder(run):
    try:
        run.workdir.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise _unwritable(run, fault) from fault


def _write_record(run, record):
    of_data = {name: getattr(run, name) for name in _OF_DATA}
    try:
        write_json(record, {"config": run.config.to_dict(), **of_data})
    except OSError as fault:
        raise _unwritable(run, fault) from fault


def _unwritable(run, fault):
    return InputError(f"{run.workdir} cannot be written: {fault.strerror}")


def read_run(workdir) -> Run:
    """The run that lies in `workdir`; InputError where there is none."""
    workdir = local_path(workdir)
    record = workdir / RECORD
    if not record.exists():
        raise InputError(f"{workdir} holds no run: there is no {record}")
    saved = _read_record(record)
    config = base_config()
    try:
        config.update(saved.pop("config"))
    except (AttributeError, KeyError, TypeError, ValueError) as fault:
        raise InputError(f"{record} is damaged: {fault}") from fault
    validate(config)
    return Run(workdir, config, **saved)


def _read_record(path):
    """The fields of the `Run`, its configuration as a dict."""
    saved = read_json(path)
    try:
        return {
            "config": dict(saved["config"]),
            "num_classes": saved["num_classes"],
            "image_shape": tuple(saved["image_shape"]),
            "class_names": tuple(saved.get("class_names", ())),
            "training_images": saved.get("training_images", 0),
        }
    except (KeyError, TypeError, ValueError) as fault:
        raise InputError(
            f"{path} is damaged: it must hold config, num_classes and image_shape"
        ) from fault
