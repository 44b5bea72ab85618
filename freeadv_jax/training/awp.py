"""Adversarial weight perturbation: Wu, Xia & Wang (NeurIPS 2020), on top of K-PGD."""

import jax
import jax.numpy as jnp

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.threat import Threat
from freeadv_jax.devices.parallel import mean_over_devices
from freeadv_jax.models.interface import loop_model
from freeadv_jax.pixels import unit_range
from freeadv_jax.training.pgd import attacked_images
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.update import train_logits, weight_update


def awp_train_step(
    state: TrainState,
    batch: dict,
    *,
    model,
    tx,
    threat: Threat,
    step_size: float,
    steps: int,
    awp_gamma: float,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """Train on one minibatch against a perturbation of the images and one of the weights.

    The problem is min over w, max over v and delta, of CE(f_{w + v}(x + delta)), where v
    changes each layer by at most gamma times its norm: ||v_l|| <= gamma * ||w_l||. As in
    the paper, one step finds v, at the attacked images x' of K-PGD:

        v_l = gamma * ||w_l|| * g_l / ||g_l||,  g = gradient of CE(f_w(x'))
        w <- w - tau * gradient of CE(f_{w + v}(x'))

    The second step is the optimizer's, and its weight decay is that of w. Arrays with one
    axis (biases, BatchNorm) are not perturbed. The authors' gamma is 0.01.

    The attack is that of `pgd_train_step`; all passes are in training mode and share one
    draw of dropout, and the running averages move in the update alone, at w + v. `delta`
    of the state is not used. Shapes and units are those of `free_train_step`.
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

    gradient, _ = jax.grad(loss_fn, has_aux=True)(state.params)
    # All devices perturb the weights alike.
    gradient = mean_over_devices(gradient, axis_name)
    perturbation = weight_perturbation(state.params, gradient, gamma=awp_gamma)

    def perturbed_loss(params):
        return loss_fn(jax.tree.map(jnp.add, params, perturbation))

    return weight_update(
        perturbed_loss,
        state,
        labels,
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )


def weight_perturbation(params, gradient, *, gamma: float):
    """Return v with v_l = gamma * ||w_l|| * g_l / ||g_l|| for each array w_l of `params`.

    `gradient` has the arrays g_l. v_l is 0 where g_l is, and for arrays with one axis.
    """

    def of_layer(weights, slope):
        if weights.ndim < 2:
            return jnp.zeros_like(weights)
        length = jnp.linalg.norm(slope)
        scale = gamma * jnp.linalg.norm(weights) / jnp.where(length > 0, length, 1.0)
        return scale * slope

    return jax.tree.map(of_layer, params, gradient)
