"""Certified training: IBP (Gowal et al. 2018) and CROWN-IBP (Zhang et al., ICLR 2020)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.threat import Threat
from freeadv_jax.certify.differentiable import margins
from freeadv_jax.models.interface import loop_model
from freeadv_jax.pixels import unit_range
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.update import train_logits, weight_update


class Weights(NamedTuple):
    """Hold what the schedule gives for one update: a radius and two weights."""

    epsilon: Float[Array, ""]
    kappa: Float[Array, ""]
    beta: Float[Array, ""]


def schedule(
    update,
    *,
    updates: int,
    epsilon: float,
    warmup: float,
    rampup: float,
    kappa: float,
    beta: float = 0.0,
) -> Weights:
    """Return the weights of the loss at an update, counted from 0.

    The first part `warmup` of the budget `updates` trains naturally: epsilon is 0, and
    kappa and beta are 1. During the next part, `rampup`, they go linearly to the values
    given here, where they stay.
    """
    passed = jnp.asarray(update, float) - warmup * updates
    risen = jnp.clip(passed / max(rampup * updates, 1.0), 0, 1)
    return Weights(epsilon * risen, 1 + (kappa - 1) * risen, 1 + (beta - 1) * risen)


def ibp_train_step(
    state: TrainState,
    batch: dict,
    *,
    model,
    tx,
    threat: Threat,
    step_size: float,
    updates: int,
    certified_scale: float,
    certified_warmup: float,
    certified_rampup: float,
    certified_kappa: float,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """Train on one minibatch by kappa * CE(f(x), y) + (1 - kappa) * CE(-m, y).

    m_j is a lower bound of f_y(x') - f_j(x') over all x' in the ball, and m_y = 0. Thus -m
    are the worst logits, and the second term is an upper bound of the cross-entropy under
    any attack. The bounds come from interval arithmetic, with the last affine part of the
    model combined with the differences (Gowal et al. 2018, section 3).

    `schedule` gives the radius and kappa of each update. The radius goes from 0 to
    `certified_scale` * epsilon and kappa from 1 to `certified_kappa`. `certified_warmup`
    and `certified_rampup` are parts of the budget `updates`.

    f(x) is in training mode. The bounds are those of the network in EVALUATION mode, with
    the running averages after this pass as constants: that network is certified, and
    none of its outputs depends on other images of the batch. The accuracy of the metrics
    is on the natural images. `delta` of the state is not used. Shapes and units are those
    of `free_train_step`.
    """
    return _certified_train_step(
        state,
        batch,
        threat=threat,
        weights=schedule(
            state.step,
            updates=updates,
            epsilon=certified_scale * threat.epsilon,
            warmup=certified_warmup,
            rampup=certified_rampup,
            kappa=certified_kappa,
        ),
        crown=False,
        model=model,
        tx=tx,
        label_smoothing=label_smoothing,
        average_decay=average_decay,
        axis_name=axis_name,
    )


def crown_ibp_train_step(
    state: TrainState,
    batch: dict,
    *,
    model,
    tx,
    threat: Threat,
    step_size: float,
    updates: int,
    certified_scale: float,
    certified_warmup: float,
    certified_rampup: float,
    certified_kappa: float,
    crown_ibp_beta: float,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """Train on one minibatch by the loss of `ibp_train_step` with tighter bounds.

    They are mixed from those of interval arithmetic and those of CROWN, linear functions
    of the image that are traced back from the margins, with the intervals of IBP for the
    arrays between (Zhang et al. 2020, section 3):

        m = (1 - beta) * m_IBP + beta * m_CROWN-IBP

    beta goes from 1 to `crown_ibp_beta` as kappa goes to `certified_kappa`. The time of the
    second bound grows with the number of classes. All else is that of `ibp_train_step`.
    """
    return _certified_train_step(
        state,
        batch,
        threat=threat,
        weights=schedule(
            state.step,
            updates=updates,
            epsilon=certified_scale * threat.epsilon,
            warmup=certified_warmup,
            rampup=certified_rampup,
            kappa=certified_kappa,
            beta=crown_ibp_beta,
        ),
        crown=True,
        model=model,
        tx=tx,
        label_smoothing=label_smoothing,
        average_decay=average_decay,
        axis_name=axis_name,
    )


def _certified_train_step(
    state,
    batch,
    *,
    threat,
    weights,
    crown,
    model,
    tx,
    label_smoothing,
    average_decay,
    axis_name,
):
    images, labels = unit_range(batch["image"], dtype=float), batch["label"]
    model = loop_model(model)
    key = state.noise_key(axis_name=axis_name)

    def loss_fn(params):
        logits, collections = train_logits(
            model, params, state.collections, images, key
        )
        averages = jax.tree.map(lax.stop_gradient, collections)
        by_interval, by_crown = margins(
            lambda images: model.logits({"params": params, **averages}, images),
            images,
            labels,
            norm=threat.norm,
            epsilon=weights.epsilon,
            crown=crown,
        )
        bounds = by_interval
        if crown:
            bounds = (1 - weights.beta) * by_interval + weights.beta * by_crown
        natural = cross_entropy(logits, labels, smoothing=label_smoothing)
        worst = cross_entropy(-bounds, labels, smoothing=label_smoothing)
        loss = weights.kappa * natural + (1 - weights.kappa) * worst
        return jnp.mean(loss), (logits, collections)

    return weight_update(
        loss_fn,
        state,
        labels,
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )
