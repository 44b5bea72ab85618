"""What the methods share: the forward pass in training, and one weight update."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from freeadv_jax.devices.parallel import mean_over_devices

# What every method's step measures.
METRICS = ("loss", "accuracy")


def unit_range(images: UInt8[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Pixels in [0, 1]."""
    return images.astype(float) / 255


def train_logits(model, params, batch_stats, images):
    """Logits with BatchNorm in train mode, and the running averages after it."""
    logits, updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        mutable=["batch_stats"],
    )
    return logits, updated.get("batch_stats", {})


def measure(
    loss: Float[Array, ""],
    logits: Float[Array, "b k"],
    labels: Int[Array, " b"],
    *,
    axis_name: str | None,
) -> dict[str, Float[Array, ""]]:
    """Mean loss and accuracy over the global batch, on the images trained on."""
    accuracy = jnp.mean((jnp.argmax(logits, -1) == labels).astype(jnp.float32))
    return mean_over_devices({"loss": loss, "accuracy": accuracy}, axis_name)


def weight_update(loss_fn, state, labels, *, tx, average_decay=0.0, axis_name=None):
    """The next state and the metrics of one update on `loss_fn`.

    `loss_fn(params)` gives the mean loss over the batch, and (logits, batch_stats).
    """
    gradients = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, (logits, batch_stats)), gradient = gradients(state.params)
    state = state.update_weights(
        gradient,
        batch_stats,
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )
    metrics = measure(loss, logits, labels, axis_name=axis_name)
    return state.replace(step=state.step + 1), metrics
