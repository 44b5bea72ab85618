"""K-PGD adversarial training: Madry et al. (ICLR 2018); FGSM-RS is its K = 1."""

from freeadv_jax.attacks.losses import cross_entropy
from freeadv_jax.attacks.pgd import projected_ascent
from freeadv_jax.attacks.threat import Threat
from freeadv_jax.training.state import TrainState
from freeadv_jax.training.update import train_logits, unit_range, weight_update


def pgd_train_step(
    state: TrainState,
    batch: dict,
    *,
    model,
    tx,
    threat: Threat,
    step_size: float,
    steps: int,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    axis_name: str | None = None,
) -> tuple[TrainState, dict]:
    """One weight update on images attacked by `steps` PGD steps from a random start.

    The inner attack runs with BatchNorm in train mode (statistics of the attacked
    batch), as the authors' code does; the running averages move only in the update.
    With one step of 1.25 epsilon this is FGSM-RS (Wong et al., ICLR 2020). `delta` of
    the state is not used. Shapes and units as in `free_train_step`.
    """
    images, labels = unit_range(batch["image"]), batch["label"]

    def attack_loss(images):
        logits, _ = train_logits(model, state.params, state.batch_stats, images)
        return cross_entropy(logits, labels)

    start = threat.random_start(
        state.attack_keys(axis_name=axis_name), images.shape[1:]
    )
    adversarial = projected_ascent(
        attack_loss, images, start, threat=threat, steps=steps, step_size=step_size
    )

    def loss_fn(params):
        logits, batch_stats = train_logits(
            model, params, state.batch_stats, adversarial
        )
        return cross_entropy(logits, labels, smoothing=label_smoothing).mean(), (
            logits,
            batch_stats,
        )

    return weight_update(
        loss_fn,
        state,
        labels,
        tx=tx,
        average_decay=average_decay,
        axis_name=axis_name,
    )
