"""Everything a training run changes, and all that it must save to go on."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Key

from freeadv_jax.devices.parallel import mean_over_devices

# Apart from the other numbers that are folded into the key of the same seed: the
# restarts of an evaluation, and the streams of the data.
_ATTACK_STREAM = 1000


@struct.dataclass
class TrainState:
    """The state of a run after `step` minibatches.

    `delta` is indexed by position in the batch, not by image, and is carried from
    minibatch to minibatch (Shafahi et al. 2019: "delta <- 0" once).

    The same tree also holds shapes, NumPy arrays or a layout in place of the arrays.
    """

    step: Any  # i32[]
    seed: Any  # u32[]
    params: Any
    batch_stats: Any
    opt_state: Any
    delta: Any  # f32[b, h, w, c]
    # Of params and batch_stats, a moving average over the updates; {} for none.
    average: Any

    @property
    def variables(self) -> dict:
        """What `model.apply` takes: the average where there is one."""
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}

    def update_weights(
        self, gradient, batch_stats, *, tx, average_decay=0.0, axis_name=None
    ):
        """One optimizer update, with everything averaged over the devices.

        The moving average decays by (1 + step) / (10 + step) where that is less.
        """
        gradient, batch_stats = mean_over_devices((gradient, batch_stats), axis_name)
        updates, opt_state = tx.update(gradient, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        average = self.average
        if average:
            # Or the first weights would stay in it for long.
            decay = jnp.minimum(average_decay, (1 + self.step) / (10 + self.step))
            average = optax.incremental_update(
                {"params": params, "batch_stats": batch_stats}, average, 1 - decay
            )
        return self.replace(
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            average=average,
        )

    def attack_keys(self, *, axis_name=None) -> Key[Array, " b"]:
        """A key for each image of this step's batch, whatever the device it is on."""
        images = self.delta.shape[0]
        first = 0 if axis_name is None else lax.axis_index(axis_name) * images
        key = jax.random.fold_in(jax.random.key(self.seed), _ATTACK_STREAM)
        key = jax.random.fold_in(key, self.step)
        return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(images))


def create_state(
    model, tx, seed, *, batch_size, image_shape, averaged=False
) -> TrainState:
    """The state before the first minibatch, as a function of the seed alone."""
    images = jnp.zeros((1, *image_shape))
    variables = model.init(jax.random.key(seed), images, train=False)
    variables = {"batch_stats": {}} | variables
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
        delta=jnp.zeros((batch_size, *image_shape)),
        # A copy, because the state is donated.
        average=jax.tree.map(jnp.copy, variables) if averaged else {},
    )
