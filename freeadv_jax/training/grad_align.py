"""GradAlign: Andriushchenko & Flammarion (NeurIPS 2020), FGSM with aligned gradients."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.threat import Threat
from freeadv_jax.models.interface import loop_model
from freeadv_jax.pixels import unit_range
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.update import image_gradient, train_logits, weight_update

# A gradient of a smaller norm has no direction.
_TINY = 1e-12


def grad_align_train_step(
    state: TrainState,
    batch: dict,
    *,
    model,
    tx,
    threat: Threat,
    step_size: float,
    grad_align_lambda: float,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """Train on one minibatch by CE(x + delta) + lambda * (1 - cos(g(x), g(x + eta))).

    delta is one step of FGSM from the image, g the gradient of the loss at an image, and
    eta uniform in the ball. The cosine is of each image, and the weights' gradient goes
    through both gradients. BatchNorm is in training mode everywhere, and its running
    averages move once. Shapes and units are those of `free_train_step`, the metrics those
    of `fgsm_rs_train_step`. `delta` of the state is not used.
    """
    images, labels = unit_range(batch["image"], dtype=float), batch["label"]
    model = loop_model(model)
    key = state.noise_key(axis_name=axis_name)

    def gradient(params, images):
        return image_gradient(model, params, state.collections, images, labels, key)

    slope = gradient(state.params, images)
    adversarial = jnp.clip(
        images + threat.project(step_size * threat.direction(slope)), 0, 1
    )
    keys = state.attack_keys(axis_name=axis_name)
    noisy = jnp.clip(images + threat.random_start(keys, images.shape[1:]), 0, 1)

    def loss_fn(params, adversarial):
        logits, collections = train_logits(
            model, params, state.collections, adversarial, key
        )
        loss = cross_entropy(logits, labels, smoothing=label_smoothing)
        aligned = _cosine(gradient(params, images), gradient(params, noisy))
        return jnp.mean(loss + grad_align_lambda * (1 - aligned)), (logits, collections)

    return weight_update(
        loss_fn,
        state,
        labels,
        step=(adversarial, slope),
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )


def _cosine(
    one: Float[Array, "b ..."], other: Float[Array, "b ..."]
) -> Float[Array, " b"]:
    one, other = (x.reshape(len(x), -1) for x in (one, other))
    return jnp.sum(_direction(one) * _direction(other), axis=1)


def _direction(gradient):
    size = jnp.sum(gradient**2, axis=1, keepdims=True)
    return gradient / jnp.sqrt(jnp.maximum(size, _TINY**2))
