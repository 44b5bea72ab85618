"""TRADES: Zhang et al. (ICML 2019), accuracy against agreement inside the ball."""

import jax
import jax.numpy as jnp

from freeadv_jax.attacks.losses import cross_entropy, divergence
from freeadv_jax.attacks.pgd import projected_ascent
from freeadv_jax.attacks.threat import Threat
from freeadv_jax.models.interface import loop_model
from freeadv_jax.pixels import unit_range
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.update import train_logits, weight_update

# The standard deviation of the authors' normal start, in [0, 1] pixels. At delta = 0 the
# divergence is at its minimum and its gradient is 0.
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
    """Train on one minibatch by CE(x) + beta * KL(f(x) || f(x + delta)).

    delta comes from `steps` PGD steps on the divergence, with the network in EVALUATION
    mode (running averages), as in the authors' code. Both terms of the loss take training
    mode, the natural images first, and the running averages move twice. The accuracy of
    the metrics is on the attacked images. `delta` of the state is not used. Shapes and
    units are those of `free_train_step`.
    """
    images, labels = unit_range(batch["image"], dtype=float), batch["label"]
    model = loop_model(model)
    key = state.noise_key(axis_name=axis_name)
    # Not `state.variables`: the network in training is attacked, not its average.
    variables = {"params": state.params, **state.collections}
    clean_logits = model.logits(variables, images)

    def attack_loss(images):
        return divergence(clean_logits, model.logits(variables, images))

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
        natural, collections = train_logits(
            model, params, state.collections, images, key
        )
        attacked, collections = train_logits(
            model, params, collections, adversarial, key
        )
        loss = cross_entropy(natural, labels, smoothing=label_smoothing)
        loss += beta * divergence(natural, attacked)
        return jnp.mean(loss), (attacked, collections)

    return weight_update(
        loss_fn,
        state,
        labels,
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )
