"""The training methods by name: the one home of each."""

import dataclasses
from collections.abc import Callable, Mapping

from freeadv_jax.training.alp import alp_train_step
from freeadv_jax.training.awp import awp_train_step
from freeadv_jax.training.fgsm_pgi import fgsm_pgi_train_step
from freeadv_jax.training.free import free_train_step
from freeadv_jax.training.gaussian import gaussian_train_step
from freeadv_jax.training.grad_align import grad_align_train_step
from freeadv_jax.training.ibp import crown_ibp_train_step, ibp_train_step
from freeadv_jax.training.llr import llr_train_step
from freeadv_jax.training.mart import mart_train_step
from freeadv_jax.training.n_fgsm import n_fgsm_train_step
from freeadv_jax.training.pgd import fgsm_rs_train_step, pgd_train_step
from freeadv_jax.training.trades import trades_train_step

# The fields of a configuration's `attack` group, such as {"replays": 8, "steps": 7}.
Attack = Mapping


@dataclasses.dataclass(frozen=True)
class Method:
    """A training method: its step, the settings it reads, its cost and its names.

    `step(state, batch, *, model, tx, threat, step_size, <settings>, label_smoothing,
    average_decay, axis_name)` trains on one minibatch. `settings` names the fields of the
    `attack` group that the step takes beside the threat and the step size. A `scheduled`
    step also takes `updates`, the budget of weight updates.
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
    # Whether its loss changes in the course of the budget.
    scheduled: bool = False
    # Whether its metrics have the alignment of gradients.
    aligned: Callable[[Attack], bool] = lambda attack: False


def natural_train_step(state, batch, *, threat, step_size, **common):
    """Train on one minibatch as it is: Free-1 with epsilon 0, which costs the same."""
    del step_size
    threat = dataclasses.replace(threat, epsilon=0.0)
    return free_train_step(
        state, batch, threat=threat, step_size=0.0, replays=1, **common
    )


# The schedule of certified training.
_CERTIFIED = (
    "certified_scale",
    "certified_warmup",
    "certified_rampup",
    "certified_kappa",
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
            settings=("replays", "start", "straight_through", "misalignment"),
            title=lambda attack: f"Free-{attack['replays']}",
            description="saw attacked images at every update: each minibatch is replayed, "
            "and one backward pass serves weights and perturbation (Free-m)",
            updates=lambda attack: attack["replays"],
            passes=lambda attack: attack["replays"],
            forward_passes=lambda attack: 3,
            aligned=lambda attack: attack["replays"] > 1,
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
            step=fgsm_rs_train_step,
            settings=("misalignment",),
            title=lambda attack: "FGSM-RS",
            description="saw images attacked with one step from a random start (FGSM-RS)",
            updates=lambda attack: 1,
            passes=lambda attack: 2,
            forward_passes=lambda attack: 2 + 3,
            aligned=lambda attack: True,
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
        Method(
            name="alp",
            step=alp_train_step,
            settings=("steps", "alp_lambda"),
            title=lambda attack: "ALP",
            description="was taught to give an image and its attacked version the same "
            "logits (ALP)",
            updates=lambda attack: 1,
            # K attack steps, the natural and the attacked images.
            passes=lambda attack: attack["steps"] + 2,
            forward_passes=lambda attack: 2 * attack["steps"] + 2 * 3,
        ),
        Method(
            name="llr",
            step=llr_train_step,
            settings=("steps", "llr_lambda", "llr_mu"),
            title=lambda attack: "LLR",
            description="was taught to have a loss that is nearly linear around each "
            "image (LLR)",
            updates=lambda attack: 1,
            # The natural gradient that the attack compares with, K attack steps, the
            # attacked images, and the natural gradient, which is differentiated again.
            passes=lambda attack: attack["steps"] + 4,
            forward_passes=lambda attack: 2 + 2 * attack["steps"] + 3 + 3 * 2,
        ),
        Method(
            name="mart",
            step=mart_train_step,
            settings=("steps", "mart_lambda"),
            title=lambda attack: "MART",
            description="was taught to classify attacked images, and to keep its class "
            "probabilities where it misses the natural image (MART)",
            updates=lambda attack: 1,
            # K attack steps, the natural and the attacked images.
            passes=lambda attack: attack["steps"] + 2,
            forward_passes=lambda attack: 2 * attack["steps"] + 2 * 3,
        ),
        Method(
            name="awp",
            step=awp_train_step,
            settings=("steps", "awp_gamma"),
            title=lambda attack: "AT-AWP",
            description="saw images attacked with several steps at every update, while its "
            "weights were attacked as well (AWP)",
            updates=lambda attack: 1,
            # K attack steps on the images, one on the weights, and the update.
            passes=lambda attack: attack["steps"] + 2,
            forward_passes=lambda attack: 2 * attack["steps"] + 2 * 3,
        ),
        Method(
            name="n-fgsm",
            step=n_fgsm_train_step,
            settings=("n_fgsm_noise", "misalignment"),
            title=lambda attack: "N-FGSM",
            description="saw images attacked with one step from wide noise (N-FGSM)",
            updates=lambda attack: 1,
            passes=lambda attack: 2,
            forward_passes=lambda attack: 2 + 3,
            aligned=lambda attack: True,
        ),
        Method(
            name="fgsm-pgi",
            step=fgsm_pgi_train_step,
            settings=("pgi_lambda", "misalignment"),
            title=lambda attack: "FGSM-PGI",
            description="saw images attacked with one step from the perturbation of the "
            "minibatch before, and was taught to give both ends of the step the same "
            "logits (FGSM-PGI)",
            updates=lambda attack: 1,
            # The attack step, and the images before and after it in the update.
            passes=lambda attack: 3,
            forward_passes=lambda attack: 2 + 2 * 3,
            aligned=lambda attack: True,
        ),
        Method(
            name="grad-align",
            step=grad_align_train_step,
            settings=("grad_align_lambda",),
            title=lambda attack: "GradAlign",
            description="saw images attacked with one step, and was taught to have equal "
            "gradients around each image (GradAlign)",
            updates=lambda attack: 1,
            # The attack step, the update, and two gradients of images, which are
            # differentiated again.
            passes=lambda attack: 2 + 2 * 2,
            forward_passes=lambda attack: 2 + 3 + 2 * 3 * 2,
            aligned=lambda attack: True,
        ),
        Method(
            name="gaussian",
            step=gaussian_train_step,
            settings=("gaussian_sigma",),
            title=lambda attack: f"Gaussian noise {attack['gaussian_sigma']:g}",
            description="saw images with Gaussian noise, for randomised smoothing",
            updates=lambda attack: 1,
            passes=lambda attack: 1,
            forward_passes=lambda attack: 3,
            adversarial=False,
        ),
        Method(
            name="ibp",
            step=ibp_train_step,
            settings=_CERTIFIED,
            title=lambda attack: "IBP",
            description="was taught to keep its class for certain, by bounds of interval "
            "arithmetic (IBP)",
            updates=lambda attack: 1,
            # The natural images, and the middles and the radii of the intervals.
            passes=lambda attack: 3,
            forward_passes=lambda attack: 3 * 3,
            adversarial=False,
            scheduled=True,
        ),
        Method(
            name="crown-ibp",
            step=crown_ibp_train_step,
            settings=(*_CERTIFIED, "crown_ibp_beta"),
            title=lambda attack: "CROWN-IBP",
            description="was taught to keep its class for certain, by linear bounds from "
            "those of interval arithmetic (CROWN-IBP)",
            updates=lambda attack: 1,
            # Those of IBP, and a backward pass for each of ten classes.
            passes=lambda attack: 3 + 10,
            forward_passes=lambda attack: 3 * 3 + 10 * 3,
            adversarial=False,
            scheduled=True,
        ),
    )
}
