"""Free adversarial training: Shafahi et al. (NeurIPS 2019), Free-m."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.threat import Real, Threat
from freeadv_jax.models.interface import loop_model
from freeadv_jax.pixels import unit_range
from freeadv_jax.training.alignment import (
    ALIGNMENT,
    alignment,
    bounded_step,
    with_alignment,
)
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.update import measure, train_logits

Start = Literal["carried", "random", "zero"]
STARTS = get_args(Start)


def free_train_step(
    state: TrainState,
    batch: dict,
    *,
    model,
    tx,
    threat: Threat,
    step_size: Real,
    replays: int,
    start: Start = "carried",
    straight_through: bool = False,
    misalignment: float = 0.0,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """Train on one minibatch by Free-m: `replays` updates of the weights and of delta.

    Each replay takes both gradients from one backward pass, at the old weights and the
    old delta. BatchNorm is in training mode in that pass and moves its running averages
    once a replay. With one replay and epsilon 0 this is natural training at its price:
    the gradient of the images is then never computed.

    A minibatch begins with the delta that the one before left at the same positions of
    the batch ('carried', as in the paper), at a random point of the ball for each image
    ('random'), or at 0 ('zero').

    Attacked pixels are clipped to [0, 1]. As in the authors' code, the gradient of delta
    goes through that clip: a pixel pushed out of the box keeps its delta until another
    image takes its place. With `straight_through` the gradient is taken at the clipped
    image, as in Algorithm 1, which has no clip. That matters where pixels are exactly 0.

    With `misalignment` above 0 the steps of delta are those of `bounded_step`.

    `batch` holds `image` [b, h, w, c], uint8 or floats in [0, 1], and `label` i32[b];
    `step_size` is in [0, 1] pixels (epsilon in the paper). Return the next state, and the
    metrics as means over the replays. With two replays and more they have the alignment
    of delta's gradients in successive replays.
    """
    images, labels = unit_range(batch["image"], dtype=float), batch["label"]
    model = loop_model(model)
    noise_key = state.noise_key(axis_name=axis_name)
    # Without an epsilon the gradient of the images is not computed; a traced one has some.
    attacks = isinstance(threat.epsilon, jax.Array) or threat.epsilon != 0
    aligned = replays > 1 and attacks

    def loss_fn(params, delta, collections, key):
        # jnp.clip, not lax.clamp: at delta = 0 a pixel of exactly 0 or 1 must keep a
        # gradient, or it would never be perturbed.
        attacked = images + delta
        adversarial = jnp.clip(attacked, 0, 1)
        if straight_through:
            # Adds an exact zero, whose gradient is one.
            adversarial = lax.stop_gradient(adversarial) + (
                attacked - lax.stop_gradient(attacked)
            )
        logits, collections = train_logits(model, params, collections, adversarial, key)
        return cross_entropy(logits, labels, smoothing=label_smoothing).mean(), (
            logits,
            collections,
        )

    def replay(carried, number):
        state, before = carried
        key = jax.random.fold_in(noise_key, number)
        (loss, (logits, collections)), (weight_gradient, delta_gradient) = (
            jax.value_and_grad(loss_fn, argnums=(0, 1), has_aux=True)(
                state.params, state.delta, state.collections, key
            )
        )
        state = state.update_weights(
            weight_gradient,
            collections,
            tx=tx,
            average_decay=average_decay,
            axis_name=axis_name,
        )
        length = bounded_step(state, step_size, misalignment)
        delta = threat.ascend(state.delta, delta_gradient, length, images=images)
        state = state.replace(delta=delta)
        if not aligned:
            return (state, before), measure(loss, logits, labels, axis_name=axis_name)
        latest = {ALIGNMENT: alignment(before, delta_gradient)}
        metrics = measure(loss, logits, labels, axis_name=axis_name, **latest)
        state = with_alignment(state, metrics[ALIGNMENT], counts=number > 0)
        return (state, delta_gradient), metrics

    if start == "random":
        keys = state.attack_keys(axis_name=axis_name)
        state = state.replace(delta=threat.random_start(keys, images.shape[1:]))
    elif start == "zero":
        state = state.replace(delta=jnp.zeros_like(state.delta))
    # The first replay has no gradient before it, and the alignment 0.
    before = jnp.zeros_like(state.delta) if aligned else ()
    (state, _), metrics = lax.scan(replay, (state, before), jnp.arange(replays))
    metrics = jax.tree.map(jnp.mean, metrics)
    if aligned:
        metrics[ALIGNMENT] *= replays / (replays - 1)
    return state.replace(step=state.step + 1), metrics
