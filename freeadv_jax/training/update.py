"""The parts that training methods share: the forward pass and one weight update."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.devices.parallel import mean_over_devices
from freeadv_jax.models.interface import loop_model
from freeadv_jax.training.alignment import ALIGNMENT, alignment, with_alignment

# The metrics of every method's step. Some have ALIGNMENT as well.
METRICS = ("loss", "accuracy")


def train_logits(model, params, collections, images, key):
    """Return the logits in training mode, and the collections after the pass.

    BatchNorm takes the statistics of the batch and moves its running averages; dropout
    draws from `key`.
    """
    variables = {"params": params, **collections}
    return loop_model(model).train_logits(variables, images, key)


def image_gradient(model, params, collections, images, labels, key):
    """Return the gradient of each image's cross-entropy in training mode."""

    def loss(images):
        logits, _ = train_logits(model, params, collections, images, key)
        return cross_entropy(logits, labels).sum()

    return jax.grad(loss)(images)


def measure(
    loss: Float[Array, ""],
    logits: Float[Array, "b k"],
    labels: Int[Array, " b"],
    *,
    axis_name: str | None,
    **others: Float[Array, ""],
) -> dict[str, Float[Array, ""]]:
    """Return the mean loss and accuracy of the global batch, on the images trained on.

    `others` are further metrics, which become means over the devices too.
    """
    accuracy = jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))
    metrics = {"loss": loss, "accuracy": accuracy, **others}
    return mean_over_devices(metrics, axis_name)


def weight_update(
    loss_fn, state, labels, *, tx, average_decay=0.0, axis_name=None, step=None
):
    """Return the next state and the metrics of one update on `loss_fn`.

    `loss_fn(params)` gives the mean loss over the batch, and (logits, collections).

    `step` is the attack's one step: the attacked images and the gradient before it. The
    loss is then `loss_fn(params, attacked images)`, and the backward pass also gives the
    gradient of these images, for one convolution more. The metrics have the alignment of
    the two gradients.
    """
    others = {}
    if step is None:
        gradients = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (logits, collections)), gradient = gradients(state.params)
    else:
        attacked, before = step
        gradients = jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)
        (loss, (logits, collections)), (gradient, after) = gradients(
            state.params, attacked
        )
        others[ALIGNMENT] = alignment(before, after)
    state = state.update_weights(
        gradient,
        collections,
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )
    metrics = measure(loss, logits, labels, axis_name=axis_name, **others)
    if step is not None:
        state = with_alignment(state, metrics[ALIGNMENT])
    return state.replace(step=state.step + 1), metrics
