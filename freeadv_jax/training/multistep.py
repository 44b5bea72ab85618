"""Several minibatches in one call of the compiled step.

A call of a compiled program has fixed costs: several percent of the time of natural
training on a CPU, if each minibatch has a call of its own. Free-8 makes eight passes a
minibatch and needs no more.
"""

from collections.abc import Callable, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from freeadv_jax.devices import parallel
from freeadv_jax.devices.parallel import REPLICATED, SPLIT
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.update import METRICS

# Passes through the network in one call, where the method makes fewer for a minibatch.
PASSES_PER_CALL = 8

# How the state lies on the devices: delta goes with the images of the batch.
STATE_LAYOUT = TrainState(
    step=REPLICATED,
    seed=REPLICATED,
    params=REPLICATED,
    collections=REPLICATED,
    opt_state=REPLICATED,
    delta=SPLIT,
    average=REPLICATED,
    alignment=REPLICATED,
)


def minibatches_per_call(passes: int) -> int:
    """Return how many minibatches of so many passes each go into one call."""
    return max(1, PASSES_PER_CALL // passes)


class Multistep:
    """A training step over all devices, for up to `per_call` minibatches at once.

    The results are the same to the bit for any division of a training into calls.
    `train_step(state, batch) -> (state, metrics)` uses `parallel.AXIS`, and `metrics` are
    the names of its metrics.
    """

    def __init__(
        self,
        train_step: Callable,
        *,
        per_call: int,
        metrics: tuple[str, ...] = METRICS,
    ):
        self.per_call = per_call
        self.program = parallel.pmap(
            _loop(train_step, metrics),
            inputs=(STATE_LAYOUT, SPLIT, REPLICATED),
            outputs=(STATE_LAYOUT, REPLICATED),
            donate=0,
        )

    def compile(self, state, batch) -> "Multistep":
        """Compile for the shapes of `state` and `batch`, before the first call."""
        batches = (batch,) * self.per_call
        self.program = self.program.lower(state, batches, np.int32(1)).compile()
        return self

    def __call__(self, state, batches: Iterable[dict]) -> tuple[TrainState, dict]:
        """Return the state after these minibatches, and their metrics as arrays.

        `batches` are one to `per_call` minibatches. The arrays of metrics have
        `per_call` entries; those beyond the minibatches are not filled. The state is
        donated: the one passed in is gone afterwards.
        """
        batches = tuple(batches)
        # Pad the call to the compiled length; the extra minibatches are ignored.
        padded = batches + batches[-1:] * (self.per_call - len(batches))
        return self.program(state, padded, np.int32(len(batches)))

    def calls(
        self, first: int, last: int, *, ends_at: Callable[[int], bool]
    ) -> Iterator[range]:
        """Yield the steps of each call, from `first` to `last`, both included.

        A call ends at each multiple of `per_call` and wherever `ends_at(step)`.
        """
        begin = first
        for step in range(first, last + 1):
            if step == last or step % self.per_call == 0 or ends_at(step):
                yield range(begin, step + 1)
                begin = step + 1


def _loop(train_step, names):
    """(state, batches, count) -> (state, metrics) of the first `count` minibatches."""

    def train_steps(state, batches, count):
        minibatches = jax.tree.map(lambda *arrays: jnp.stack(arrays), *batches)

        def one(number, carried):
            state, metrics = carried
            batch = jax.tree.map(
                lambda arrays: lax.dynamic_index_in_dim(arrays, number, keepdims=False),
                minibatches,
            )
            state, latest = train_step(state, batch)
            return state, {
                name: lax.dynamic_update_index_in_dim(
                    metrics[name], value, number, axis=0
                )
                for name, value in latest.items()
            }

        metrics = {name: jnp.zeros(len(batches)) for name in names}
        return lax.fori_loop(0, count, one, (state, metrics))

    return train_steps
