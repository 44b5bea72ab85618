"""Adversarial logit pairing: Kannan, Kurakin & Goodfellow (2018)."""

import jax.numpy as jnp

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.threat import Threat
from freeadv_jax.models.interface import loop_model
from freeadv_jax.pixels import unit_range
from freeadv_jax.training.pgd import attacked_images
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.update import train_logits, weight_update


def alp_train_step(
    state: TrainState,
    batch: dict,
    *,
    model,
    tx,
    threat: Threat,
    step_size: float,
    steps: int,
    alp_lambda: float,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """Train on one minibatch and its attacked copy, whose logits are drawn together.

    The loss is (CE(z) + CE(z')) / 2 + lambda * ||z - z'||^2 / k, where z = f(x) and
    z' = f(x + delta) are the k logits of an image and of the attacked image. The mean over
    the classes is that of the authors' code (arXiv:1803.06373); their lambda is 0.5.

    As in the authors' code, the attack sees the network in evaluation mode, and both
    halves pass through it as one batch in training mode: they share the statistics of
    BatchNorm. The attack is `steps` PGD steps on the cross-entropy from a random start.
    The accuracy of the metrics is on the attacked images. `delta` of the state is not
    used. Shapes and units are those of `free_train_step`.
    """
    images, labels = unit_range(batch["image"], dtype=float), batch["label"]
    model = loop_model(model)
    key = state.noise_key(axis_name=axis_name)
    # Not `state.variables`: the network in training is attacked, not its average.
    variables = {"params": state.params, **state.collections}
    adversarial = attacked_images(
        lambda images: model.logits(variables, images),
        state,
        images,
        labels,
        threat=threat,
        steps=steps,
        step_size=step_size,
        axis_name=axis_name,
    )
    both = jnp.concatenate([images, adversarial])

    def loss_fn(params):
        logits, collections = train_logits(model, params, state.collections, both, key)
        natural, attacked = jnp.split(logits, 2)
        entropies = (
            cross_entropy(half, labels, smoothing=label_smoothing)
            for half in (natural, attacked)
        )
        distance = jnp.mean(jnp.square(natural - attacked), axis=-1)
        loss = sum(entropies) / 2 + alp_lambda * distance
        return jnp.mean(loss), (attacked, collections)

    return weight_update(
        loss_fn,
        state,
        labels,
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )
