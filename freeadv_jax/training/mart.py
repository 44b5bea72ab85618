"""MART, misclassification aware adversarial training: Wang et al. (ICLR 2020)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from freeadv_jax.attacks.losses import cross_entropy, divergence
from freeadv_jax.attacks.threat import Threat
from freeadv_jax.models.interface import loop_model
from freeadv_jax.pixels import unit_range
from freeadv_jax.training.pgd import attacked_images
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.update import train_logits, weight_update


def mart_train_step(
    state: TrainState,
    batch: dict,
    *,
    model,
    tx,
    threat: Threat,
    step_size: float,
    steps: int,
    mart_lambda: float,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """Train on one minibatch by BCE(x') + lambda * KL(p(x) || p(x')) * (1 - p_y(x)).

    x' = x + delta is the attacked image and p the softmax of the logits. The boosted
    cross-entropy is BCE(x') = -log p_y(x') - log(1 - max_{j != y} p_j(x')). The
    divergence weighs as much as the probability that the natural image lacks for its
    label y. The authors' lambda is 5.

    delta comes from `steps` PGD steps on the cross-entropy from a random start, with the
    network in EVALUATION mode (running averages), as in the authors' code. Both terms of
    the loss take training mode, the natural images first, and the running averages move
    twice. `label_smoothing` smooths the label in -log p_y(x'). The accuracy of the metrics
    is on the attacked images. `delta` of the state is not used. Shapes and units are
    those of `free_train_step`.
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

    def loss_fn(params):
        natural, collections = train_logits(
            model, params, state.collections, images, key
        )
        attacked, collections = train_logits(
            model, params, collections, adversarial, key
        )
        boosted = cross_entropy(attacked, labels, smoothing=label_smoothing)
        boosted -= _log_complement_of_runner_up(attacked, labels)
        missed = 1 - jnp.exp(-cross_entropy(natural, labels))
        loss = boosted + mart_lambda * divergence(natural, attacked) * missed
        return jnp.mean(loss), (attacked, collections)

    return weight_update(
        loss_fn,
        state,
        labels,
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )


def _log_complement_of_runner_up(
    logits: Float[Array, "b k"], labels: Int[Array, " b"]
) -> Float[Array, " b"]:
    """Return log(1 - max_{j != y} p_j), exact where that probability is nearly 1."""
    classes = logits.shape[-1]
    is_label = jax.nn.one_hot(labels, classes, dtype=bool)
    runner_up = jnp.argmax(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    is_runner_up = jax.nn.one_hot(runner_up, classes, dtype=bool)
    rest = jnp.where(is_runner_up, -jnp.inf, logits)
    return jax.nn.logsumexp(rest, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
