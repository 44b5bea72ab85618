"""Training on a loss of one's own, for defences that are no method of the library."""

import functools
from collections.abc import Callable

import jax.numpy as jnp

from freeadv_jax.data.sampling import array_batches
from freeadv_jax.data.split import Split
from freeadv_jax.devices import parallel
from freeadv_jax.models.interface import as_model, loop_model
from freeadv_jax.pixels import unit_range
from freeadv_jax.training import optim
from freeadv_jax.training.loop import Listener
from freeadv_jax.training.loop import train as train_loop
from freeadv_jax.training.multistep import STATE_LAYOUT, Multistep
from freeadv_jax.training.state import create_state
from freeadv_jax.training.update import train_logits, weight_update
from freeadv_jax.weights.classifier import Classifier, as_classifier

# A loss maps (logits_fn, images, labels, key) to losses [b] and logits [b, k]. The
# logits_fn is the network in training mode.
Loss = Callable


def train_on(
    loss: Loss,
    model,
    split: Split,
    *,
    num_classes: int,
    updates: int,
    batch_size: int,
    learning_rate: float,
    pad: int = 0,
    flip: bool = False,
    seed: int = 0,
) -> Classifier:
    """Return `model` after `updates` updates of SGD on the mean of `loss`.

    `model` is what `as_model` takes, and `split` holds the images. The learning rate rises
    to its peak and falls to 0, as in `fit` with the schedule 'triangular'.
    """
    model = as_model(model)
    rate = optim.learning_rate_schedule(
        "triangular", peak=learning_rate, updates=updates, turns=(0.3,)
    )
    tx = optim.sgd(
        rate, momentum=0.9, nesterov=True, weight_decay=5e-4, decayed="kernels"
    )
    step = functools.partial(
        _step, model=model, tx=tx, loss=loss, axis_name=parallel.AXIS
    )
    shape = split.images.shape[1:]
    state = create_state(model, tx, seed, batch_size=batch_size, image_shape=shape)
    batches = array_batches(
        split, batch_size=batch_size, seed=seed, pad=pad, flip=flip
    )(0)
    state = train_loop(
        Multistep(step, per_call=4),
        parallel.place(state, STATE_LAYOUT),
        batches,
        first=1,
        last=updates,
        listener=Listener(),
    )
    return as_classifier(
        model,
        parallel.fetch(state).variables,
        num_classes=num_classes,
        image_shape=shape,
    )


def _step(state, batch, *, model, tx, loss, axis_name):
    """Make one update of the weights; see `training.methods.Method.step`."""
    images, labels = unit_range(batch["image"], dtype=float), batch["label"]
    key = state.noise_key(axis_name=axis_name)
    looped = loop_model(model)

    def loss_fn(params):
        def logits_fn(images):
            return train_logits(looped, params, state.collections, images, key)[0]

        losses, logits = loss(logits_fn, images, labels, key)
        return jnp.mean(losses), (logits, state.collections)

    return weight_update(loss_fn, state, labels, tx=tx, axis_name=axis_name)
