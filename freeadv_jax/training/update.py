"""The parts that training methods share: the forward pass and one weight update."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from freeadv_jax.devices.parallel import mean_over_devices
from freeadv_jax.models.interface import loop_model

# The metrics of every method's step.
METRICS = ("loss", "accuracy")


def train_logits(model, params, collections, images, key):
    """Return the logits in training mode, and the collections after the pass.

    BatchNorm takes the statistics of the batch and moves its running averages; dropout
    draws from `key`.
    """
    variables = {"params": params, **collections}
    return loop_model(model).train_logits(variables, images, key)


def measure(
    loss: Float[Array, ""],
    logits: Float[Array, "b k"],
    labels: Int[Array, " b"],
    *,
    axis_name: str | None,
) -> dict[str, Float[Array, ""]]:
    """Return the mean loss and accuracy of the global batch, on the images trained on."""
    accuracy = jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))
    return mean_over_devices({"loss": loss, "accuracy": accuracy}, axis_name)


def weight_update(loss_fn, state, labels, *, tx, average_decay=0.0, axis_name=None):
    """Return the next state and the metrics of one update on `loss_fn`.

    `loss_fn(params)` gives the mean loss over the batch, and (logits, collections).
    """
    gradients = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (logits, collections)), gradient = gradients(state.params)
    state = state.update_weights(
        gradient,
        collections,
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )
    metrics = measure(loss, logits, labels, axis_name=axis_name)
    return state.replace(step=state.step + 1), metrics
