"""K-PGD adversarial training: Madry et al. (ICLR 2018); FGSM-RS is its K = 1."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.pgd import projected_ascent
from freeadv_jax.attacks.threat import Real, Threat
from freeadv_jax.models.interface import loop_model
from freeadv_jax.pixels import unit_range
from freeadv_jax.training.alignment import bounded_step
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.update import image_gradient, train_logits, weight_update


def pgd_train_step(
    state: TrainState,
    batch: dict,
    *,
    model,
    tx,
    threat: Threat,
    step_size: Real,
    steps: int,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """Train on one minibatch attacked by `steps` PGD steps from a random start.

    As in the authors' code, BatchNorm is in training mode in the attack too, with the
    statistics of the attacked batch; its running averages move in the update alone. The
    attack and the update share one draw of dropout. With one step of 1.25 epsilon this
    is FGSM-RS (Wong et al., ICLR 2020). `delta` of the state is not used. Shapes and
    units are those of `free_train_step`.
    """
    images, labels = unit_range(batch["image"], dtype=float), batch["label"]
    model = loop_model(model)
    key = state.noise_key(axis_name=axis_name)

    def attacked_logits(images):
        return train_logits(model, state.params, state.collections, images, key)[0]

    adversarial = attacked_images(
        attacked_logits,
        state,
        images,
        labels,
        threat=threat,
        steps=steps,
        step_size=step_size,
        axis_name=axis_name,
    )

    def loss_fn(params):
        logits, collections = train_logits(
            model, params, state.collections, adversarial, key
        )
        return cross_entropy(logits, labels, smoothing=label_smoothing).mean(), (
            logits,
            collections,
        )

    return weight_update(
        loss_fn,
        state,
        labels,
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )


def fgsm_rs_train_step(
    state: TrainState,
    batch: dict,
    *,
    model,
    tx,
    threat: Threat,
    step_size: Real,
    misalignment: float = 0.0,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """Train on one minibatch by FGSM-RS (Wong et al., ICLR 2020): K-PGD with one step.

    The metrics have the alignment of the images' gradients before and after that step,
    and with `misalignment` above 0 its length is that of `bounded_step`. All else is as
    in `pgd_train_step`; the paper's step is 1.25 epsilon.
    """
    images, labels = unit_range(batch["image"], dtype=float), batch["label"]
    model = loop_model(model)
    key = state.noise_key(axis_name=axis_name)
    keys = state.attack_keys(axis_name=axis_name)
    noisy = jnp.clip(images + threat.random_start(keys, images.shape[1:]), 0, 1)

    gradient = image_gradient(
        model, state.params, state.collections, noisy, labels, key
    )
    length = bounded_step(state, step_size, misalignment)
    delta = threat.ascend(noisy - images, gradient, length, images=images)
    adversarial = jnp.clip(images + delta, 0, 1)

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


def attacked_images(
    logits_fn: Callable,
    state: TrainState,
    images: Float[Array, "b h w c"],
    labels: Int[Array, " b"],
    *,
    threat: Threat,
    steps: int,
    step_size: Real,
    axis_name: str | None,
) -> Float[Array, "b h w c"]:
    """Return `images` after `steps` PGD steps on the cross-entropy from a random start.

    The start is drawn with the keys that `state` has for attacks.
    """
    start = threat.random_start(
        state.attack_keys(axis_name=axis_name), images.shape[1:]
    )
    return projected_ascent(
        lambda images: cross_entropy(logits_fn(images), labels),
        images,
        start,
        threat=threat,
        steps=steps,
        step_size=step_size,
    )
