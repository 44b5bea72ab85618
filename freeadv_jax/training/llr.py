"""Local linearity regularisation: Qin et al. (NeurIPS 2019)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.pgd import projected_ascent
from freeadv_jax.attacks.threat import Threat
from freeadv_jax.models.interface import loop_model
from freeadv_jax.pixels import unit_range
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.update import train_logits, weight_update


def llr_train_step(
    state: TrainState,
    batch: dict,
    *,
    model,
    tx,
    threat: Threat,
    step_size: float,
    steps: int,
    llr_lambda: float,
    llr_mu: float,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """Train on one minibatch to be classified, and to have a locally linear loss.

    With l the cross-entropy, the loss is

        l(x) + lambda * g(delta) + mu * |delta . grad l(x)|
        g(delta) = |l(x + delta) - l(x) - delta . grad l(x)|

    where delta comes from `steps` ascents of g, the error of the linear approximation,
    from a random start. grad l(x) is the gradient in the images, and the update
    differentiates it once more in the weights. The authors' lambda and mu on CIFAR-10 are
    4 and 3.

    All passes are in training mode and share one draw of dropout. The running averages
    move twice, with the natural images first. `label_smoothing` smooths the label in the
    first term. The accuracy of the metrics is on the images of the last ascent. `delta`
    of the state is not used. Shapes and units are those of `free_train_step`.
    """
    images, labels = unit_range(batch["image"], dtype=float), batch["label"]
    model = loop_model(model)
    key = state.noise_key(axis_name=axis_name)

    def losses(params, collections, images):
        logits, collections = train_logits(model, params, collections, images, key)
        return cross_entropy(logits, labels), (logits, collections)

    def natural(params):
        """Return the losses, their gradient in the images, logits and collections."""

        def total(images):
            values, passed = losses(params, state.collections, images)
            return values.sum(), (values, *passed)

        gradient, (values, *passed) = jax.grad(total, has_aux=True)(images)
        return values, gradient, *passed

    values, gradient, *_ = natural(state.params)

    def linearity_error(points):
        attacked, _ = losses(state.params, state.collections, points)
        return jnp.abs(attacked - values - _dot(points - images, gradient))

    start = threat.random_start(
        state.attack_keys(axis_name=axis_name), images.shape[1:]
    )
    adversarial = projected_ascent(
        linearity_error,
        images,
        start,
        threat=threat,
        steps=steps,
        step_size=step_size,
    )

    def loss_fn(params):
        values, gradient, natural_logits, collections = natural(params)
        attacked, (logits, collections) = losses(params, collections, adversarial)
        slope = _dot(adversarial - images, gradient)
        loss = cross_entropy(natural_logits, labels, smoothing=label_smoothing)
        loss += llr_lambda * jnp.abs(attacked - values - slope)
        loss += llr_mu * jnp.abs(slope)
        return jnp.mean(loss), (logits, collections)

    return weight_update(
        loss_fn,
        state,
        labels,
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )


def _dot(
    delta: Float[Array, "b h w c"], gradient: Float[Array, "b h w c"]
) -> Float[Array, " b"]:
    """Return the inner product of each image."""
    return jnp.sum(delta * gradient, axis=(1, 2, 3))
