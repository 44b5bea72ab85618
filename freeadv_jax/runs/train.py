"""Training, top to bottom: from a configuration to a trained state."""

import contextlib
import itertools
import sys
from collections.abc import Callable

import jax
import optax
from ml_collections import ConfigDict

from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.kernels import traced_with
from freeadv_jax.attacks.robustness import VALIDATION_ATTACK
from freeadv_jax.config import replays
from freeadv_jax.console import say
from freeadv_jax.data.dataset import Dataset
from freeadv_jax.devices import onednn, parallel
from freeadv_jax.devices.processes import preemption, require_same
from freeadv_jax.errors import TrainingStoppedError
from freeadv_jax.models.interface import logits_functions
from freeadv_jax.runs.alarm import PART_OF_PASS
from freeadv_jax.runs.build import (
    configured_learning_rate,
    configured_optimizer,
    configured_steps,
    initial_state,
    model_of,
)
from freeadv_jax.runs.checkpoint import Checkpoints
from freeadv_jax.runs.folder import Run
from freeadv_jax.runs.metrics import MetricsLog
from freeadv_jax.runs.results import configured_attacks
from freeadv_jax.runs.watch import Watch
from freeadv_jax.training.loop import Listener
from freeadv_jax.training.loop import train as train_loop
from freeadv_jax.training.methods import METHODS
from freeadv_jax.training.multistep import STATE_LAYOUT
from freeadv_jax.training.state import TrainState


def train_run(
    run: Run, dataset: Dataset, *, variables: dict | None = None
) -> tuple[TrainState, dict]:
    """Train the model that the configuration of `run` describes; see `train`."""
    config = run.config
    return train(
        config,
        dataset,
        model=model_of(run),
        tx=configured_optimizer(config),
        num_classes=run.num_classes,
        convolutions=onednn.choose_again(run.convolutions),
        run=run,
        variables=variables,
    )


def train(
    config: ConfigDict,
    dataset: Dataset,
    *,
    model,
    tx: optax.GradientTransformation,
    num_classes: int,
    convolutions: str = onednn.XLA,
    run: Run | None = None,
    variables: dict | None = None,
    write: Callable[[str], None] = say,
) -> tuple[TrainState, dict]:
    """Train `model` to the end of the budget, from the newest checkpoint of `run` if any.

    Return the state on the host, and the `training` part of results.json. With a `run`,
    states and metrics go to its folder, and on SIGTERM the state is saved and the program
    exits with status 0. Without one nothing is written. Training begins at `variables`
    where they are given; `write` takes lines to read. `convolutions` names the CPU's
    kernels, "xla" or "onednn".

    Raise TrainingStoppedError where the loss or a weight is not finite, a checkpoint
    cannot be written or, if so configured, robust accuracy collapses. The checkpoints
    saved before that are kept.
    """
    parallel.check_batch_size(config.batch_size)
    steps = config.updates // replays(config)

    def begin():
        return initial_state(
            config,
            model=model,
            tx=tx,
            image_shape=dataset.image_shape,
            variables=variables,
        )

    with contextlib.ExitStack() as stack:
        checkpoints, restored = None, None
        if run:
            checkpoints = stack.enter_context(
                contextlib.closing(run.checkpoints(writable=True))
            )
            restored = checkpoints.restore(jax.eval_shape(begin))
        state, saved = restored or (None, {})
        first = int(state.step) if restored else 0
        require_same(str(first), "the newest checkpoint they can read")
        if first:
            write(f"resumed at update {first * replays(config)}")
        log = MetricsLog(run and run.workdir, last_step=first)
        listener = _RunListener(
            config,
            dataset,
            model=model,
            num_classes=num_classes,
            convolutions=convolutions,
            checkpoints=checkpoints,
            log=stack.enter_context(contextlib.closing(log)),
            saved=saved,
            stops=stack.enter_context(preemption()) if run else lambda call: False,
            write=write,
        )
        if first < steps:
            with listener.spending("compiling"):
                state = parallel.place(state or begin(), STATE_LAYOUT)
                batches = dataset.batches(config.batch_size, seed=config.seed)(first)
                batch = next(batches)
                train_steps = configured_steps(
                    config, model=model, tx=tx, convolutions=convolutions
                )
                train_steps.compile(state, batch)
            state = train_loop(
                train_steps,
                state,
                itertools.chain([batch], batches),
                first=first + 1,
                last=steps,
                listener=listener,
            )
        elif listener.stops(0):
            listener.stop(steps)
    return parallel.fetch(state), listener.record()


class _RunListener(Listener):
    """Watch, validate and save a training, and stop it when asked to."""

    def __init__(
        self,
        config: ConfigDict,
        dataset: Dataset,
        *,
        model,
        num_classes: int,
        convolutions: str,
        checkpoints: Checkpoints | None,
        log: MetricsLog,
        saved: dict,
        stops: Callable[[int], bool],
        write: Callable[[str], None],
    ):
        per_pass = dataset.steps_per_pass(config.batch_size)
        passes = config.validation.every_passes
        validation_period = max(1, round(passes * per_pass)) * replays(config)
        self._config, self._checkpoints, self._write = config, checkpoints, write
        self._log = log
        self._validates_at = _every(validation_period, config)
        self._saves_at = _every(config.checkpoint.every_updates, config)
        self._validate = _validation(
            config,
            dataset.validation,
            model=model,
            num_classes=num_classes,
            convolutions=convolutions,
        )
        self._watch = Watch(
            log,
            replays=replays(config),
            updates=config.updates,
            logs_at=_every(config.logging.every_updates, config),
            learning_rate=configured_learning_rate(config),
            saved=saved,
            write=write,
            adversarial=METHODS[config.method].adversarial,
            alarm_period=max(1, round(PART_OF_PASS * per_pass)),
        )
        self.stops = stops
        self.spending = self._watch.clock.spending
        self.measured = self._watch.steps

    def pauses_at(self, step):
        return self._saves_at(step) or self._validates_at(step)

    def pause(self, state, step, *, stopping):
        robust = None
        validates = self._validate and self._validates_at(step)
        if validates:
            accuracies = self._validate(state)
            robust = accuracies[VALIDATION_ATTACK]
            self._watch.validation(step, **accuracies)
            adversarial = METHODS[self._config.method].adversarial
            collapse = adversarial and self._watch.collapse()
            if collapse and self._config.validation.stop_on_collapse:
                raise TrainingStoppedError(collapse)
        if self._checkpoints and (validates or self._saves_at(step) or stopping):
            progress = self._watch.progress()
            # A run that goes on from this state has the lines before it.
            self._log.flush()
            self._checkpoints.save(state, progress=progress, robust=robust)

    def stop(self, step):
        if self._checkpoints:
            self._checkpoints.wait()
        self._write(
            f"SIGTERM: saved at update {step * replays(self._config)}; "
            "the same command goes on from there"
        )
        sys.exit(0)

    def record(self) -> dict:
        """Return the `training` part of results.json."""
        config, seconds = self._config, self._watch.clock.seconds
        training, alarm = seconds["training"], self._watch.alarm.raised
        return {
            "updates": config.updates,
            "seconds": training,
            "seconds_per_update": training / config.updates,
            "images_per_second": config.updates * config.batch_size / training,
            "input_wait_fraction": seconds["waiting"] / training,
            "compile_seconds": seconds["compiling"],
            **({"alarm": alarm} if alarm else {}),
        }


def _every(updates, config):
    """Whether a step is one of every so many updates, or the last."""
    period = max(1, updates // replays(config))
    last = config.updates // replays(config)
    return lambda step: step % period == 0 or step == last


def _validation(config, split, *, model, num_classes, convolutions):
    """state -> natural and robust accuracy on `split`; None where it is empty."""
    if not len(split.labels):
        return None
    logits_fn_of = logits_functions(model)
    campaign = Campaign(batch_size=config.evaluation.batch_size)
    (attack,) = configured_attacks(
        config, (VALIDATION_ATTACK,), num_classes=num_classes
    )

    def validate(state):
        logits_fn = traced_with(convolutions, logits_fn_of(state.variables))
        logits = campaign.logits(logits_fn, split.images)
        robust = natural = logits.argmax(axis=-1) == split.labels
        for stage in attack.stages.values():
            robust = campaign.attack(
                stage, logits_fn, split.images, split.labels, robust
            )
        return {"natural": float(natural.mean()), attack.name: float(robust.mean())}

    return validate
