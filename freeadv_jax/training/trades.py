"""TRADES: Zhang et al. (ICML 2019), accuracy against agreement inside the ball."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.pgd import projected_ascent
from freeadv_jax.attacks.threat import Threat
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.update import train_logits, unit_range, weight_update

# The standard deviation of the authors' normal start, in [0, 1] pixels. At delta = 0
# the divergence is at its minimum and has no gradient to follow.
_START = 1e-3


def trades_train_step(
    state: TrainState,
    batch: dict,
    *,
    model,
    tx,
    threat: Threat,
    step_size: float,
    steps: int,
    beta: float,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """One weight update on CE(x) + beta * KL(f(x) || f(x + delta)).

    delta comes from `steps` PGD steps on the divergence, with BatchNorm in EVAL mode
    (running averages), as in the authors' code; both terms of the loss use train
    mode, natural images first, so the averages move twice. The metrics' accuracy is
    on the attacked images. `delta` of the state is not used. Shapes and units as in
    `free_train_step`.
    """
    images, labels = unit_range(batch["image"]), batch["label"]
    # Not `state.variables`: the network in training is attacked, not its average.
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    clean_logits = model.apply(variables, images, train=False)

    def attack_loss(images):
        return _divergence(clean_logits, model.apply(variables, images, train=False))

    noise = jax.vmap(lambda key: _START * jax.random.normal(key, images.shape[1:]))
    adversarial = projected_ascent(
        attack_loss,
        images,
        threat.project(noise(state.attack_keys(axis_name=axis_name))),
        threat=threat,
        steps=steps,
        step_size=step_size,
    )

    def loss_fn(params):
        natural, batch_stats = train_logits(model, params, state.batch_stats, images)
        attacked, batch_stats = train_logits(model, params, batch_stats, adversarial)
        loss = cross_entropy(natural, labels, smoothing=label_smoothing)
        loss += beta * _divergence(natural, attacked)
        return jnp.mean(loss), (attacked, batch_stats)

    return weight_update(
        loss_fn,
        state,
        labels,
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )


def _divergence(
    logits: Float[Array, "b k"], other: Float[Array, "b k"]
) -> Float[Array, " b"]:
    """KL(softmax(logits) || softmax(other)), for each image."""
    return optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(other), jax.nn.log_softmax(logits)
    )
