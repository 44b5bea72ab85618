"""The compiled steps of a training method."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from ml_collections import ConfigDict

from freeadv_jax import config as fields
from freeadv_jax.attacks.threat import make_threat
from freeadv_jax.devices import parallel
from freeadv_jax.devices.parallel import REPLICATED, SPLIT
from freeadv_jax.training.free import free_train_step
from freeadv_jax.training.pgd import pgd_train_step
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.trades import trades_train_step
from freeadv_jax.training.update import METRICS

# How the state lies on the devices: delta goes with the images of the batch.
STATE_LAYOUT = TrainState(
    step=REPLICATED,
    seed=REPLICATED,
    params=REPLICATED,
    batch_stats=REPLICATED,
    opt_state=REPLICATED,
    delta=SPLIT,
    average=REPLICATED,
)

# A call of the compiled program has fixed costs: of a CPU's time for natural training
# several percent, if it is called for every minibatch. Free-8 makes 8 passes anyway.
PASSES_PER_CALL = 8


def minibatches_per_call(config: ConfigDict) -> int:
    """The most minibatches that `train` hands to the devices at once."""
    return max(1, PASSES_PER_CALL // fields.passes(config))


def make_train_steps(config: ConfigDict, *, model, tx):
    """The method's steps over all devices: (state, batches, count) -> (state, metrics).

    Takes the first `count` (int32) of the tuple `batches`, one after the other, with
    the same results to the bit for any division of a run into calls of as long tuples.
    Each of the metrics is an array [len(batches)] with `count` entries filled. The
    state is donated: the one passed in is gone afterwards.
    """
    attack = config.attack
    common = {
        "model": model,
        "tx": tx,
        "label_smoothing": config.optimizer.label_smoothing,
        "average_decay": config.optimizer.average_decay,
        "axis_name": parallel.AXIS,
    }
    adversarial = common | {
        "threat": make_threat(attack.norm, attack.epsilon),
        "step_size": attack.step_size,
    }
    natural = common | {"threat": make_threat(attack.norm, 0.0), "step_size": 0.0}
    partial = functools.partial
    methods = {
        "natural": partial(free_train_step, **natural, replays=1),
        "free": partial(
            free_train_step,
            **adversarial,
            replays=attack.replays,
            start=attack.start,
            straight_through=attack.straight_through,
        ),
        "pgd": partial(pgd_train_step, **adversarial, steps=attack.steps),
        "fgsm-rs": partial(pgd_train_step, **adversarial, steps=1),
        "trades": partial(
            trades_train_step, **adversarial, steps=attack.steps, beta=attack.beta
        ),
    }
    train_step = methods[config.method]

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

        metrics = {name: jnp.zeros(len(batches)) for name in METRICS}
        return lax.fori_loop(0, count, one, (state, metrics))

    return parallel.spmd(
        train_steps,
        inputs=(STATE_LAYOUT, SPLIT, REPLICATED),
        outputs=(STATE_LAYOUT, REPLICATED),
        donate=0,
    )
