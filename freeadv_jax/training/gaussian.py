"""Training with Gaussian noise, for randomised smoothing: Cohen et al. (ICML 2019)."""

import jax
import jax.numpy as jnp

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.threat import Threat
from freeadv_jax.models.interface import loop_model
from freeadv_jax.pixels import unit_range
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.update import train_logits, weight_update


def gaussian_train_step(
    state: TrainState,
    batch: dict,
    *,
    model,
    tx,
    threat: Threat,
    step_size: float,
    gaussian_sigma: float,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """Train on one minibatch by CE(x + noise), with fresh noise for each image.

    The noise is normal with the standard deviation `gaussian_sigma` in [0, 1] pixels. Noisy images
    leave [0, 1], as those of `freeadv_jax.certify.smooth` do. The threat is not used.
    Shapes are those of `free_train_step`.
    """
    del threat, step_size
    images, labels = unit_range(batch["image"], dtype=float), batch["label"]
    model = loop_model(model)
    key = state.noise_key(axis_name=axis_name)
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))
    noisy = images + gaussian_sigma * noise(state.attack_keys(axis_name=axis_name))

    def loss_fn(params):
        logits, collections = train_logits(model, params, state.collections, noisy, key)
        loss = cross_entropy(logits, labels, smoothing=label_smoothing)
        return jnp.mean(loss), (logits, collections)

    return weight_update(
        loss_fn,
        state,
        labels,
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )
