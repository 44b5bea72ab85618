"""Everything that training changes, and all that a checkpoint must hold."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Key

from freeadv_jax.devices.parallel import mean_over_devices
from freeadv_jax.models.interface import as_model

# These numbers, folded into the key of the seed, separate the streams of random numbers:
# those of attacks and of dropout from the restarts of an evaluation and from the data.
_ATTACK_STREAM, _NOISE_STREAM = 1000, 1001


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
    # Arrays that the forward pass in training changes: {"batch_stats": ...}.
    collections: Any
    opt_state: Any
    delta: Any  # f32[b, h, w, c]
    # A moving average of params and collections over the updates; {} without one.
    average: Any
    # {"mean": f32[]}, a running mean of the alignment of gradients, where a step needs it.
    alignment: Any = struct.field(default_factory=dict)

    @property
    def variables(self) -> dict:
        """The variables of the trained model: the average where there is one."""
        return self.average or {"params": self.params, **self.collections}

    def update_weights(
        self, gradient, collections, *, tx, average_decay=0.0, axis_name=None
    ):
        """Return the state after one optimizer update, averaged over the devices.

        The decay of the moving average is at most (1 + step) / (10 + step): the first
        weights would otherwise stay in it for long.
        """
        gradient, collections = mean_over_devices((gradient, collections), axis_name)
        updates, opt_state = tx.update(gradient, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        average = self.average
        if average:
            decay = jnp.minimum(average_decay, (1 + self.step) / (10 + self.step))
            average = _moved_average(
                {"params": params, **collections}, average, 1 - decay
            )
        return self.replace(
            params=params,
            collections=collections,
            opt_state=opt_state,
            average=average,
        )

    def attack_keys(self, *, axis_name=None) -> Key[Array, " b"]:
        """Return a key for each image of this step's batch, whatever its device."""
        images = self.delta.shape[0]
        first = 0 if axis_name is None else lax.axis_index(axis_name) * images
        key = self._step_key(_ATTACK_STREAM)
        return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(images))

    def noise_key(self, *, axis_name=None) -> Key[Array, ""]:
        """Return the key of this step and device for dropout and other noise."""
        device = 0 if axis_name is None else lax.axis_index(axis_name)
        return jax.random.fold_in(self._step_key(_NOISE_STREAM), device)

    def _step_key(self, stream):
        key = jax.random.fold_in(jax.random.key(self.seed), stream)
        return jax.random.fold_in(key, self.step)


def create_state(
    model,
    tx,
    seed,
    *,
    batch_size,
    image_shape,
    averaged=False,
    aligned=False,
    variables=None,
) -> TrainState:
    """Return the state before the first minibatch, a function of the seed alone.

    `model` is anything that `as_model` takes, `image_shape` is (h, w, c). The state has an
    average of the weights if `averaged`, and the running mean of `bounded_step` if
    `aligned`. Training begins at `variables` where they are given.
    """
    if variables is None:
        variables = as_model(model).init(jax.random.key(seed), tuple(image_shape))
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.uint32),
        params=params,
        collections={name: variables[name] for name in variables if name != "params"},
        opt_state=tx.init(params),
        delta=jnp.zeros((batch_size, *image_shape)),
        # A copy, because the state is donated.
        average=jax.tree.map(jnp.copy, variables) if averaged else {},
        # The first step has its whole length.
        alignment={"mean": jnp.ones(())} if aligned else {},
    )


def _moved_average(new, average, step_size):
    """The average moved towards `new`; arrays that are no floats are those of `new`."""

    def moved(new, old):
        if not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        return (step_size * new + (1.0 - step_size) * old).astype(new.dtype)

    return jax.tree.map(moved, new, average)
