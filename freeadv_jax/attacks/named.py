"""The attacks of a robustness table, by name."""

import dataclasses
import re

from freeadv_jax.attacks.apgd import APGD
from freeadv_jax.attacks.attack import Attack
from freeadv_jax.attacks.checks import check_loss, check_step_size, check_threat
from freeadv_jax.attacks.ensemble import cascade
from freeadv_jax.attacks.pgd import PGD
from freeadv_jax.errors import unknown_choice

_CASCADES = {"autoattack": "standard", "autoattack-plus": "plus"}
_SINGLE = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
_LOSSES = {"pgd": "cross-entropy", "cw": "margin", "dlr": "dlr"}
_NUMBERED = re.compile(r"(pgd|cw|dlr)-([1-9]\d{0,5})(?:-x([1-9]\d{0,5}))?")
_ALLOWED = (
    "natural",
    "fgsm",
    *(f"{kind}-<steps>[-x<restarts>]" for kind in _LOSSES),
    *_SINGLE,
    *_CASCADES,
)
_EXAMPLES = ("natural", "fgsm", "pgd-20", "cw-100", "dlr-100", *_SINGLE, *_CASCADES)


@dataclasses.dataclass(frozen=True)
class NamedAttack:
    """Hold one row of the table: `stages` by name, each on the images not yet broken.

    'natural' has no stage; AutoAttack has several.
    """

    name: str
    norm: str
    epsilon: float
    stages: dict[str, Attack]

    def record(self, seed: int) -> dict:
        """Return the settings for results.json; null where the stages differ."""
        common = {"norm": self.norm, "epsilon": self.epsilon}
        stages = {
            name: dataclasses.asdict(stage) for name, stage in self.stages.items()
        }
        if not stages:
            return common | _NO_ATTACK | {"seed": seed}
        if len(stages) == 1:
            (fields,) = stages.values()
            return common | dict.fromkeys(_NO_ATTACK) | fields | {"seed": seed}
        return common | dict.fromkeys(_NO_ATTACK) | {"seed": seed, "stages": stages}


_NO_ATTACK = {"steps": 0, "step_size": 0.0, "restarts": 1, "loss": "cross-entropy"}


def attack_by_name(
    name: str, *, norm: str, epsilon: float, step_size: float, num_classes: int
) -> NamedAttack:
    """Return the attack called `name`; `epsilon` and `step_size` are in [0, 1] pixels.

    natural              no attack
    fgsm                 one step of epsilon from the image itself
    pgd-<steps>          PGD from a random start on the cross-entropy
    cw-<steps>           the same on the margin
    dlr-<steps>          the same on the DLR loss, for three classes and more
    ...-x<restarts>      the same with several random starts
    apgd-ce, apgd-dlr, apgd-t, fab-t, square     the attacks of AutoAttack
    autoattack, autoattack-plus                  their cascades

    `step_size` is for the numbered attacks only. With too few classes for a DLR loss,
    apgd-dlr and apgd-t take the margin. Raise InputError for any other name, and for
    dlr-<steps> with two classes.
    """
    check_threat(norm, epsilon)
    check_step_size(step_size)
    threat = {"norm": norm, "epsilon": epsilon}
    if name == "natural":
        return NamedAttack(name, norm, 0.0, {})
    if name == "fgsm":
        attack = PGD(**threat, steps=1, step_size=epsilon, random_start=False)
    elif numbered := _NUMBERED.fullmatch(name):
        kind, steps, restarts = numbered.groups()
        attack = PGD(
            **threat,
            steps=int(steps),
            step_size=step_size,
            restarts=int(restarts or 1),
            loss=_LOSSES[kind],
        )
    elif name in _CASCADES:
        stages = cascade(_CASCADES[name], **threat, num_classes=num_classes)
        return NamedAttack(name, norm, epsilon, stages)
    elif name == "apgd-dlr":
        attack = APGD(**threat, loss="dlr" if num_classes > 2 else "margin")
    elif name in _SINGLE:
        attack = cascade("standard", **threat, num_classes=num_classes)[name]
    else:
        raise unknown_choice("attack", name, _EXAMPLES, shown=_ALLOWED)
    check_loss(attack, num_classes)
    return NamedAttack(name, norm, epsilon, {name: attack})
