"""A run folder: what it holds, and who may write there.

run.json         the configuration, and what is known of the data and of the model
metrics.jsonl    the measurements during training
checkpoints/     the newest states and the best
results.json     the outcome
"""

import contextlib
import dataclasses
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from freeadv_jax.config import base_config, differences, replays, validate
from freeadv_jax.console import say
from freeadv_jax.devices import onednn
from freeadv_jax.devices.processes import agreement
from freeadv_jax.errors import InputError, shortened
from freeadv_jax.files import (
    AnyPath,
    as_path,
    read_json,
    sole_writer,
    strangers,
    write_json,
)
from freeadv_jax.models.imported import PREFIX
from freeadv_jax.runs.build import configured_convolutions, model_of
from freeadv_jax.runs.checkpoint import Checkpoints
from freeadv_jax.weights.exported import variable_shapes
from freeadv_jax.weights.tensors import misfits, require_fit
from freeadv_jax.weights.transfer import flat_variables

RECORD = "run.json"
CHECKPOINTS = "checkpoints"
# The facts about the data in the record, beside the configuration.
_OF_DATA = (
    "num_classes",
    "image_shape",
    "class_names",
    "training_images",
    "extra_images",
)
# A shared folder (NFS, a bucket) shows what another process wrote within so many seconds.
_LATE = 30


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder with its configuration and what is known of its data."""

    workdir: AnyPath
    config: ConfigDict
    num_classes: int
    # Height, width and channels.
    image_shape: tuple[int, int, int]
    # The names of the data set; () for runs of versions that did not record them.
    class_names: tuple[str, ...] = ()
    # The number of images to train on; 0 likewise.
    training_images: int = 0
    # The number of images that data.extra names; 0 likewise, and without any.
    extra_images: int = 0
    # The kernels of the CPU's convolutions, chosen when the run begins: "xla", "onednn".
    convolutions: str = onednn.XLA

    def checkpoints(self, *, writable: bool = False) -> Checkpoints:
        """Return the run's checkpoints; only one process at a time may write."""
        keep = self.config.checkpoint.keep if writable else None
        return Checkpoints(self.workdir / CHECKPOINTS, keep=keep)

    def saved_updates(self) -> int:
        """Return the weight updates behind the newest checkpoint, 0 without any."""
        return saved_updates(self.workdir, self.config)

    def require_classes(self, class_names: tuple[str, ...]) -> None:
        """Raise InputError unless a data set has the classes of the training."""
        if self.class_names and tuple(class_names) != self.class_names:
            raise InputError(
                f"the data's classes are {shortened(class_names, most=5)}, but "
                f"{self.workdir} was trained on {shortened(self.class_names, most=5)}"
            )

    @property
    def steps(self) -> int:
        """Minibatches in the whole budget."""
        return self.config.updates // replays(self.config)


def saved_updates(workdir, config: ConfigDict) -> int:
    """Return the weight updates behind the newest checkpoint in a folder, or 0."""
    folder = as_path(workdir) / CHECKPOINTS
    if not folder.is_dir():
        return 0
    # Whoever reads the accuracies warns of damaged ones.
    with contextlib.closing(Checkpoints(folder, accuracies=False)) as checkpoints:
        return max(checkpoints.steps, default=0) * replays(config)


def open_run(
    workdir,
    config: ConfigDict,
    *,
    num_classes,
    image_shape,
    class_names=(),
    training_images=0,
    extra_images=0,
    arrays=None,
) -> Run:
    """Begin or continue the run in `workdir`, all processes together.

    `arrays` is the tree of a model's variables, or of their shapes, where the
    configuration does not describe the model.

    Raise InputError where the folder cannot be written, holds something else, was made
    with another configuration (apart from the changeable fields), with other classes or
    images or with another model, or where the processes do not share it.
    """
    run = Run(
        as_path(workdir),
        config,
        num_classes,
        tuple(image_shape),
        tuple(class_names),
        training_images,
        extra_images,
    )
    record = run.workdir / RECORD
    with agreement():
        run = dataclasses.replace(run, convolutions=_convolutions(run, record))
        # Misfits of model and images are reported before anything is written.
        shapes = _shapes(run, arrays)
        _check_folder(run, record, shapes)
        _make_folder(run)
    with sole_writer(run.workdir), agreement():
        _write_record(run, record, shapes)
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


def _convolutions(run, record):
    """Return the kernels of the CPU's convolutions: the recorded ones, or those chosen.

    A run that continues keeps its kernels, so that it ends in the same bits as one that
    was never interrupted. Runs from before there was a choice have XLA's.
    """
    if not record.exists():
        return configured_convolutions(run.config, run.image_shape)
    recorded = _read_record(record)["convolutions"]
    if onednn.choose_again(recorded) != recorded:
        say(
            "the run began with oneDNN's convolutions and continues with XLA's, equal to "
            f"rounding: {onednn.unavailable()}"
        )
    return recorded


def _shapes(run, arrays):
    """{path: shape} of the variables of a user's own model; None for a model of ours.

    The configuration tells models of ours apart. It names a user's own, whose code may
    change.
    """
    if arrays is None:
        model = model_of(run)
        if not run.config.model.name.startswith(PREFIX):
            return None
        arrays = variable_shapes(model, run.image_shape)
    return {path: list(array.shape) for path, array in flat_variables(arrays).items()}


def _check_folder(run, record, shapes):
    """Raise InputError unless the run can begin or continue there."""
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
        if shapes and before["arrays"]:
            _check_model(run, before["arrays"], shapes)
        if (done := run.saved_updates()) > config.updates:
            raise InputError(
                f"{workdir} is already at update {done}: "
                f"updates = {config.updates} is less"
            )
        if (planned := before["config"]["updates"]) != config.updates:
            say(
                f"updates: {planned} before, now {config.updates}; the learning rate "
                f"follows the new budget from update {done} on"
            )
    # Another process may be writing the record at this moment.
    elif strangers(workdir, record):
        raise InputError(
            f"{workdir} is not empty and holds no run (no {RECORD}); "
            "use another --workdir"
        )


def _check_model(run, before, now):
    """Raise InputError that lists the arrays which are not those of the run's model."""

    def arrays(shapes):
        return {
            path: jax.ShapeDtypeStruct(tuple(shape), np.float32)
            for path, shape in shapes.items()
        }

    require_fit(
        f"{run.workdir} was made with another model; use another --workdir",
        misfits(arrays(before), arrays(now)),
    )


def _make_folder(run):
    try:
        run.workdir.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise _unwritable(run, fault) from fault


def _write_record(run, record, shapes):
    content = {"config": run.config.to_dict()}
    content |= {name: getattr(run, name) for name in (*_OF_DATA, "convolutions")}
    if shapes is not None:
        content["arrays"] = shapes
    try:
        write_json(record, content)
    except OSError as fault:
        raise _unwritable(run, fault) from fault


def _unwritable(run, fault):
    return InputError(f"{run.workdir} cannot be written: {fault.strerror}")


def read_run(workdir) -> Run:
    """Return the run in `workdir`; raise InputError where there is none."""
    workdir = as_path(workdir)
    record = workdir / RECORD
    if not record.exists():
        raise InputError(f"{workdir} holds no run: there is no {record}")
    saved = _read_record(record)
    config = base_config()
    try:
        config.update(saved["config"])
    except (AttributeError, KeyError, TypeError, ValueError) as fault:
        raise InputError(f"{record} is damaged: {fault}") from fault
    validate(config)
    known = {name: saved[name] for name in (*_OF_DATA, "convolutions")}
    return Run(workdir, config, **known)


def _read_record(path):
    """The content of run.json, with defaults for what older versions did not record."""
    saved = read_json(path)
    try:
        return {
            "config": dict(saved["config"]),
            "num_classes": saved["num_classes"],
            "image_shape": tuple(saved["image_shape"]),
            "class_names": tuple(saved.get("class_names", ())),
            "training_images": saved.get("training_images", 0),
            "extra_images": saved.get("extra_images", 0),
            "convolutions": saved.get("convolutions", onednn.XLA),
            "arrays": saved.get("arrays"),
        }
    except (KeyError, TypeError, ValueError) as fault:
        raise InputError(
            f"{path} is damaged: it must hold config, num_classes and image_shape"
        ) from fault
