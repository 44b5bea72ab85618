"""The training loop, from one call of the compiled steps to the next."""

import contextlib
import itertools
from collections.abc import Iterator

from freeadv_jax.training.multistep import Multistep
from freeadv_jax.training.state import TrainState


class Listener:
    """Hear of a training, and pause it. This base class does nothing.

    The loop ends a call wherever `pauses_at(step)`, and then hands the state to `pause`,
    to validate and to save it.
    """

    def pauses_at(self, step: int) -> bool:
        """Return whether `pause` is to be called after this step."""
        return False

    def stops(self, call: int) -> bool:
        """Return whether the training is to pause after call number `call`, from 0."""
        return False

    def spending(self, on: str):
        """Return a context in which time counts as spent on 'training' or 'waiting'."""
        return contextlib.nullcontext()

    def measured(self, steps: range, metrics: dict) -> None:
        """Take the metrics of these steps: arrays with at least as many entries."""

    def pause(self, state: TrainState, step: int, *, stopping: bool) -> None:
        """Take the state after this step; it is donated to the next call afterwards."""

    def stop(self, step: int) -> None:
        """End the program after this step, whose state is saved."""


def train(
    train_steps: Multistep,
    state: TrainState,
    batches: Iterator[dict],
    *,
    first: int,
    last: int,
    listener: Listener,
) -> TrainState:
    """Return the state after the steps `first` to `last`, one minibatch of `batches` each."""
    number, unread = -1, None
    calls = train_steps.calls(first, last, ends_at=listener.pauses_at)
    for number, steps in enumerate(calls):
        stopping = listener.stops(number)
        pausing = stopping or listener.pauses_at(steps[-1])
        with listener.spending("training"):
            with listener.spending("waiting"):
                minibatches = list(itertools.islice(batches, len(steps)))
            state, metrics = train_steps(state, minibatches)
            # Read the metrics of the call before while the devices run this one.
            if unread:
                listener.measured(*unread)
            unread = steps, metrics
            if pausing:
                listener.measured(*unread)
                unread = None
        if pausing:
            listener.pause(state, steps[-1], stopping=stopping)
        if stopping:
            listener.stop(steps[-1])
    if unread:
        listener.measured(*unread)
    # An evaluation that follows would not hear of a request made during the last call.
    if listener.stops(number + 1):
        listener.stop(last)
    return state
