"""N-FGSM: de Jorge et al. (NeurIPS 2022), one step from noise that is not projected."""

import dataclasses

import jax.numpy as jnp

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.threat import Real, Threat
from freeadv_jax.models.interface import loop_model
from freeadv_jax.pixels import unit_range
from freeadv_jax.training.alignment import bounded_step
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.update import image_gradient, train_logits, weight_update


def n_fgsm_train_step(
    state: TrainState,
    batch: dict,
    *,
    model,
    tx,
    threat: Threat,
    step_size: Real,
    n_fgsm_noise: float,
    misalignment: float = 0.0,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """Train on one minibatch of x + eta + step_size * direction(gradient at x + eta).

    eta is uniform in the ball of radius `n_fgsm_noise` * epsilon. The sum may leave the
    ball of radius epsilon: that keeps single-step training from collapsing. Pixels are
    clipped to [0, 1] before and after the step. With `misalignment` above 0 its length is
    that of `bounded_step`. Dropout and BatchNorm, shapes and units are as in
    `pgd_train_step`, the metrics as in `fgsm_rs_train_step`. `delta` of the state is not
    used.
    """
    images, labels = unit_range(batch["image"], dtype=float), batch["label"]
    model = loop_model(model)
    key = state.noise_key(axis_name=axis_name)
    wide = dataclasses.replace(threat, epsilon=n_fgsm_noise * threat.epsilon)
    keys = state.attack_keys(axis_name=axis_name)
    noisy = jnp.clip(images + wide.random_start(keys, images.shape[1:]), 0, 1)

    gradient = image_gradient(
        model, state.params, state.collections, noisy, labels, key
    )
    length = bounded_step(state, step_size, misalignment)
    adversarial = jnp.clip(threat.advance(noisy, gradient, length), 0, 1)

    def loss_fn(params, adversarial):
        logits, collections = train_logits(
            model, params, state.collections, adversarial, key
        )
        loss = cross_entropy(logits, labels, smoothing=label_smoothing)
        return jnp.mean(loss), (logits, collections)

    return weight_update(
        loss_fn,
        state,
        labels,
        step=(adversarial, gradient),
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )
