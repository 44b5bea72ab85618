"""The training methods by name: the one home of each."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from freeadv_jax.training.free import free_train_step
from freeadv_jax.training.pgd import pgd_train_step
from freeadv_jax.training.trades import trades_train_step

# The fields of a configuration's `attack` group, such as {"replays": 8, "steps": 7}.
Attack = Mapping


@dataclasses.dataclass(frozen=True)
class Method:
    """A training method: its step, the settings it reads, its cost and its names.

    `step(state, batch, *, model, tx, threat, step_size, <settings>, label_smoothing,
    average_decay, axis_name)` trains on one minibatch. `settings` names the fields of the
    `attack` group that the step takes beside the threat and the step size.
    """

    name: str
    step: Callable
    settings: tuple[str, ...]
    # A row's title in tables, such as Free-8.
    title: Callable[[Attack], str]
    # The network's training as the predicate of a sentence: 'saw only ...'.
    description: str
    # Weight updates from one minibatch.
    updates: Callable[[Attack], int]
    # Forward and backward passes for one minibatch.
    passes: Callable[[Attack], int]
    # The cost of one weight update in forward passes. The gradient of the weights and that
    # of the images cost a forward pass each.
    forward_passes: Callable[[Attack], int]
    # Whether it trains on attacked images.
    adversarial: bool = True


def natural_train_step(state, batch, *, threat, step_size, **common):
    """Train on one minibatch as it is: Free-1 with epsilon 0, which costs the same."""
    del step_size
    threat = dataclasses.replace(threat, epsilon=0.0)
    return free_train_step(
        state, batch, threat=threat, step_size=0.0, replays=1, **common
    )


METHODS = {
    method.name: method
    for method in (
        Method(
            name="natural",
            step=natural_train_step,
            settings=(),
            title=lambda attack: "Natural",
            description="saw only the images as they are",
            updates=lambda attack: 1,
            passes=lambda attack: 1,
            forward_passes=lambda attack: 3,
            adversarial=False,
        ),
        Method(
            name="free",
            step=free_train_step,
            settings=("replays", "start", "straight_through"),
            title=lambda attack: f"Free-{attack['replays']}",
            description="saw attacked images at every update: each minibatch is replayed, "
            "and one backward pass serves weights and perturbation (Free-m)",
            updates=lambda attack: attack["replays"],
            passes=lambda attack: attack["replays"],
            forward_passes=lambda attack: 3,
        ),
        Method(
            name="pgd",
            step=pgd_train_step,
            settings=("steps",),
            title=lambda attack: f"{attack['steps']}-PGD",
            description="saw images attacked with several steps before every update "
            "(K-PGD), which costs K more passes",
            updates=lambda attack: 1,
            passes=lambda attack: attack["steps"] + 1,
            forward_passes=lambda attack: 2 * attack["steps"] + 3,
        ),
        Method(
            name="fgsm-rs",
            step=functools.partial(pgd_train_step, steps=1),
            settings=(),
            title=lambda attack: "FGSM-RS",
            description="saw images attacked with one step from a random start (FGSM-RS)",
            updates=lambda attack: 1,
            passes=lambda attack: 2,
            forward_passes=lambda attack: 2 + 3,
        ),
        Method(
            name="trades",
            step=trades_train_step,
            settings=("steps", "beta"),
            title=lambda attack: "TRADES",
            description="was taught to give an image and its attacked version the same "
            "class probabilities (TRADES)",
            updates=lambda attack: 1,
            # K attack steps, the natural and the attacked images, and the natural logits
            # that the attack moves away from.
            passes=lambda attack: attack["steps"] + 2,
            forward_passes=lambda attack: 1 + 2 * attack["steps"] + 2 * 3,
        ),
    )
}
