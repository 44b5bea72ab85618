"""FGSM-PGI: Jia et al. (ECCV 2022), one step from the perturbation of the last minibatch."""

import jax.numpy as jnp

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.threat import Real, Threat
from freeadv_jax.models.interface import loop_model
from freeadv_jax.pixels import unit_range
from freeadv_jax.training.alignment import bounded_step
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.update import image_gradient, train_logits, weight_update


def fgsm_pgi_train_step(
    state: TrainState,
    batch: dict,
    *,
    model,
    tx,
    threat: Threat,
    step_size: Real,
    pgi_lambda: float,
    misalignment: float = 0.0,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """Train on one minibatch by FGSM-BP, the paper's variant with the batch before as prior.

    delta is the perturbation that the minibatch before left at the same positions of the
    batch, the prior of the attack, and z = f(x + delta) are the k logits there:

        delta' = project(delta + step_size * direction(gradient of CE(z)))
        z' = f(x + delta')
        w <- w - tau * gradient of [CE(z') + lambda * ||z' - z||^2 / k]
        delta <- delta'

    Attacked pixels are clipped to [0, 1]. The weights' gradient goes through z' and z,
    and the square is a mean over the classes, as in the authors' code, whose lambda is 10.

    The paper's FGSM-EP and FGSM-MEP take as prior the image's own perturbation of the pass
    before, the latter with a momentum. A batch does not say which images it holds, and a
    perturbation for each would fit neither the streams of encoded images nor a small
    checkpoint; `delta` of the state serves all data, devices and processes.

    With `misalignment` above 0 the step has the length of `bounded_step`. The metrics are
    those of `fgsm_rs_train_step`; the gradient after the step is that of the whole loss.
    Dropout and BatchNorm, shapes and units are as in `pgd_train_step`.
    """
    images, labels = unit_range(batch["image"], dtype=float), batch["label"]
    model = loop_model(model)
    key = state.noise_key(axis_name=axis_name)
    prior = jnp.clip(images + state.delta, 0, 1)

    def logits_at(params, images):
        return train_logits(model, params, state.collections, images, key)

    gradient = image_gradient(
        model, state.params, state.collections, prior, labels, key
    )
    length = bounded_step(state, step_size, misalignment)
    delta = threat.ascend(state.delta, gradient, length, images=images)
    adversarial = jnp.clip(images + delta, 0, 1)

    def loss_fn(params, adversarial):
        logits, collections = logits_at(params, adversarial)
        before, _ = logits_at(params, prior)
        loss = cross_entropy(logits, labels, smoothing=label_smoothing)
        distance = jnp.mean(jnp.square(logits - before), axis=-1)
        return jnp.mean(loss + pgi_lambda * distance), (logits, collections)

    return weight_update(
        loss_fn,
        state.replace(delta=delta),
        labels,
        step=(adversarial, gradient),
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )
