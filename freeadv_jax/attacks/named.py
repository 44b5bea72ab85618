"""The attacks of a robustness table, by name."""

import dataclasses
import re

from freeadv_jax.attacks.apgd import APGD
from freeadv_jax.attacks.attack import Attack
from freeadv_jax.attacks.autoattack import cascade
from freeadv_jax.attacks.checks import check_loss, check_threat
from freeadv_jax.attacks.pgd import PGD
from freeadv_jax.errors import InputError, unknown_choice

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
    """One row of the table: `stages` in turn, each on what is left standing.

    'natural' has no stage, a cascade several.
    """

    name: str
    norm: str
    epsilon: float
    stages: dict[str, Attack]

    def record(self, seed: int) -> dict:
        """How the figure was made, for results.json; null where stages differ."""
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
    """The attack called `name` on a ball; epsilon and step size in [0, 1] pixels.

    natural; fgsm, one step of epsilon from the image itself; pgd-<steps>, cw-<steps>
    and dlr-<steps>, from a random start, with -x<restarts> for more of them; the four
    attacks of AutoAttack each, and autoattack. `step_size` is that of the numbered
    ones, the others have none to choose. InputError for any other name, and for dlr-
    on fewer than three classes; where there are too few for theirs, apgd-dlr and apgd-t
    take the margin.
    """
    check_threat(norm, epsilon)
    if not step_size > 0:
        raise InputError(f"step size {step_size}: must be above 0, in [0, 1] pixels")
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
