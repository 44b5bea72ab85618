"""Training, top to bottom: from a configuration to a run folder with a model in it."""

import contextlib
import itertools
import sys

import jax
import numpy as np

from freeadv_jax import config as fields
from freeadv_jax.devices import parallel
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.data.dataset import Dataset
from freeadv_jax.errors import TrainingStoppedError
from freeadv_jax.runs.results import configured_attacks, logits_functions
from freeadv_jax.runs.metrics import MetricsLog
from freeadv_jax.devices.processes import preemption, require_same
from freeadv_jax.runs.folder import Run
from freeadv_jax.training.state import TrainState
from freeadv_jax.runs.watch import Watch
from freeadv_jax.runs.steps import STATE_LAYOUT, make_train_steps, minibatches_per_call


def train(run: Run, dataset: Dataset) -> tuple[TrainState, dict]:
    """Trains to the end of the budget, from the newest checkpoint where there is one.

    Returns the state on the host, and the `training` of results.json. On SIGTERM it
    saves and exits with status 0. TrainingStoppedError where the loss or a weight is
    not finite, a checkpoint cannot be written or, if so configured, robust accuracy
    collapses; the checkpoints saved before that are kept.
    """
    config, replays = run.config, fields.replays(run.config)
    parallel.check_batch_size(config.batch_size)
    per_pass = dataset.steps_per_pass(config.batch_size)
    per_call = minibatches_per_call(config)
    validation_period = max(1, round(config.validation.every_passes * per_pass))

    def every(updates):
        period = max(1, updates // replays)
        return lambda step: step % period == 0 or step == run.steps

    saves_at = every(config.checkpoint.every_updates)
    validates_at = every(validation_period * replays)

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            contextlib.closing(run.checkpoints(writable=True))
        )
        restored = checkpoints.restore(jax.eval_shape(run.initial_state))
        state, saved = restored or (None, {})
        first = int(state.step) if restored else 0
        require_same(str(first), "the newest checkpoint they can read")
        if first:
            print(f"resumed at update {first * replays}", flush=True)
        log = MetricsLog(run.workdir, last_step=first)
        watch = Watch(
            stack.enter_context(contextlib.closing(log)),
            replays=replays,
            updates=config.updates,
            logs_at=every(config.logging.every_updates),
            learning_rate=run.learning_rate(),
            saved=saved,
        )
        spending = watch.clock.spending
        validate = _make_validation(run, dataset.validation)
        if first < run.steps:
            with spending("compiling"):
                state = parallel.place(state or run.initial_state(), STATE_LAYOUT)
                batches = dataset.batches(config.batch_size, seed=config.seed)(first)
                batch = next(batches)
                train_steps = make_train_steps(
                    config, model=run.model(), tx=run.optimizer()
                )
                train_steps = train_steps.lower(
                    state, (batch,) * per_call, np.int32(1)
                ).compile()
            batches = itertools.chain([batch], batches)

        def stop(step):
            checkpoints.wait()
            print(
                f"SIGTERM: saved at update {step * replays}; "
                "the same command goes on from there",
                flush=True,
            )
            sys.exit(0)

        stops = stack.enter_context(preemption())
        number, unread = -1, None
        calls = _calls(
            first,
            run.steps,
            per_call=per_call,
            ends_at=lambda step: saves_at(step) or validates_at(step),
        )
        for number, steps in enumerate(calls):
            step = steps[-1]
            validates = validate and validates_at(step)
            stopping = stops(number)
            saves = validates or saves_at(step) or stopping
            with spending("training"):
                with spending("waiting"):
                    drawn = tuple(itertools.islice(batches, len(steps)))
                # What is missing to the length it was compiled for goes unused.
                drawn += drawn[-1:] * (per_call - len(drawn))
                state, metrics = train_steps(state, drawn, np.int32(len(steps)))
                # Read the call before's while the device does this one.
                if unread:
                    watch.steps(*unread)
                unread = steps, metrics
                if saves:
                    watch.steps(*unread)
                    unread = None
            robust = None
            if validates:
                accuracies = validate(state)
                robust = accuracies["pgd-10"]
                watch.validation(step, **accuracies)
                collapse = config.method != "natural" and watch.collapse()
                if collapse and config.validation.stop_on_collapse:
                    raise TrainingStoppedError(collapse)
            if saves:
                checkpoints.save(state, progress=watch.progress(), robust=robust)
            if stopping:
                stop(step)
        # The evaluation that follows would not hear of one that came in the last call.
        if stops(number + 1):
            stop(run.steps)
    return parallel.fetch(state), _training_record(config, watch.clock.seconds)


def _calls(first, last, *, per_call, ends_at):
    """Ranges of the steps after `first`, of at most `per_call`, each ending at
    a multiple of it or where `ends_at(step)`."""
    begin = first + 1
    for step in range(begin, last + 1):
        if step % per_call == 0 or ends_at(step):
            yield range(begin, step + 1)
            begin = step + 1


def _make_validation(run, split):
    """state -> natural and PGD-10 accuracy on `split`; None where it is empty."""
    if not len(split.labels):
        return None
    logits_fn_of = logits_functions(run.model())
    campaign = Campaign(batch_size=run.config.evaluation.batch_size)
    (attack,) = configured_attacks(run.config, ("pgd-10",), num_classes=run.num_classes)

    def validate(state):
        logits_fn = logits_fn_of(state.variables)
        logits = campaign.logits(logits_fn, split.images)
        standing = right = logits.argmax(axis=-1) == split.labels
        for stage in attack.stages.values():
            standing = campaign.attack(
                stage, logits_fn, split.images, split.labels, standing
            )
        return {"natural": float(right.mean()), attack.name: float(standing.mean())}

    return validate


def _training_record(config, seconds):
    images = config.updates * config.batch_size
    training = seconds["training"]
    return {
        "updates": config.updates,
        "seconds": training,
        "seconds_per_update": training / config.updates,
        "images_per_second": images / training,
        "input_wait_fraction": seconds["waiting"] / training,
        "compile_seconds": seconds["compiling"],
    }
