"""AutoAttack: an ensemble without a parameter to tune (Croce & Hein, ICML 2020)."""

import logging
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from freeadv_jax.attacks.apgd import APGD, keys_or_mean
from freeadv_jax.attacks.attack import Attack, as_pytree
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.checks import (
    check_images,
    check_labels,
    check_logits,
    check_threat,
    num_classes_of,
)
from freeadv_jax.attacks.fab import FAB
from freeadv_jax.attacks.square import Square
from freeadv_jax.attacks.threat import Real
from freeadv_jax.errors import require_choice

VERSIONS = ("standard", "plus", "rand")

# Passes over which 'rand' averages the gradients of a randomised model.
_EOT = 20

_LOGGER = logging.getLogger(__name__)
# So many the DLR losses of these want.
_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}


class AutoAttack(NamedTuple):
    """The outcome: `images` f32[n, h, w, c] inside ball and box, `success` bool[n].

    `standing` says how many images stood: as they are ('natural'), and after each
    attack of the cascade. `compilations` counts the programs compiled.
    """

    images: np.ndarray
    success: np.ndarray
    standing: dict[str, int]
    compilations: int


def cascade(
    version: str, *, norm: str, epsilon: Real, num_classes: int
) -> dict[str, Attack]:
    """The attacks of a version by name, in the order of the authors' code.

    Section 6 of the paper, with the parameters published as fra31/auto-attack:
    'standard'; 'plus' with five restarts and the untargeted attacks; 'rand' for
    randomised models, with gradients averaged over 20 passes. Below four classes the
    targeted DLR loss does not exist, below three none does: the margin takes its place.
    Targets are at most all other classes.
    """
    require_choice("AutoAttack version", version, VERSIONS)
    targets = min(9, num_classes - 1)
    threat = {"norm": norm, "epsilon": epsilon}
    targeted = {"goal": "multi-target", "targets": targets}
    dlr = {"loss": "dlr" if num_classes >= 3 else "margin"}
    targeted_dlr = {"loss": "dlr" if num_classes >= 4 else "margin"}
    if version == "rand":
        averaged = threat | {"model": "randomized", "eot": _EOT}
        return {"apgd-ce": APGD(**averaged), "apgd-dlr": APGD(**averaged, **dlr)}
    apgd_t = APGD(**threat, **targeted, **targeted_dlr)
    fab_t = FAB(**threat, **targeted)
    # The authors cut the schedule of 10,000 queries off rather than rescale it.
    square = Square(**threat, rescaled=False)
    if version == "standard":
        return {
            "apgd-ce": APGD(**threat),
            "apgd-t": apgd_t,
            "fab-t": fab_t,
            "square": square,
        }
    return {
        "apgd-ce": APGD(**threat, restarts=5),
        "apgd-dlr": APGD(**threat, **dlr, restarts=5),
        "fab": FAB(**threat, goal="untargeted", targets=1, restarts=5),
        "square": square,
        "apgd-t": apgd_t,
        "fab-t": fab_t,
    }


def warn_of_few_classes(num_classes: int, stages: Iterable[str]) -> None:
    """Says where the loss of one of these had to give way, because it does not exist."""
    if any(num_classes < _CLASSES.get(name, 0) for name in stages):
        lost = "targeted DLR" if num_classes == 3 else "DLR, targeted or not"
        _LOGGER.warning(
            "on %d classes the %s loss of AutoAttack does not exist, the margin is "
            "attacked instead",
            num_classes,
            lost,
        )


def autoattack(
    logits_fn: Callable,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    norm: str = "linf",
    epsilon: Real,
    version: str = "standard",
    batch_size: int = 128,
    seed: int = 0,
    watch: Callable | None = None,
) -> AutoAttack:
    """Worst case over the cascade, each attack on what the ones before left standing.

    `logits_fn` maps images [b, h, w, c] in [0, 1] to logits [b, k]; any callable, its
    arrays handed over if it is a pytree (see `attack.as_pytree`). For version 'rand'
    it takes a key for each image as well. All devices take part. `watch(attack, done,
    standing)` is told how many attempts of each attack are decided. InputError in one
    line for images, labels, epsilon, version or model that cannot be.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    check_threat(norm, epsilon)
    check_images(images, labels)
    require_choice("AutoAttack version", version, VERSIONS)
    campaign = Campaign(batch_size=batch_size, seed=seed)
    if version == "rand":
        logits_fn = jax.tree_util.Partial(keys_or_mean, as_pytree(logits_fn), _EOT)
    num_classes_of(logits_fn, images[:1])
    logits = campaign.logits(logits_fn, images)
    check_logits(logits)
    num_classes = logits.shape[1]
    check_labels(labels, num_classes)
    attacks = cascade(version, norm=norm, epsilon=epsilon, num_classes=num_classes)
    warn_of_few_classes(num_classes, attacks)

    standing = logits.argmax(axis=-1) == labels
    counts = {"natural": int(standing.sum())}
    adversarial = images.astype(np.float32)
    for name, attack in attacks.items():
        standing = campaign.attack(
            attack,
            logits_fn,
            images,
            labels,
            standing,
            adversarial=adversarial,
            watch=watch and (lambda *progress, name=name: watch(name, *progress)),
        )
        counts[name] = int(standing.sum())
    return AutoAttack(adversarial, ~standing, counts, campaign.compilations)
