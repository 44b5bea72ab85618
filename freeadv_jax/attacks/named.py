"""The attacks of a robustness table, by name."""

import dataclasses
import re

from freeadv_jax.attacks.apgd import APGD, auto_pgd
from freeadv_jax.attacks.attack import Attack
from freeadv_jax.attacks.audit import Audit
from freeadv_jax.attacks.checks import (
    check_loss,
    check_samples,
    check_step_size,
    check_threat,
)
from freeadv_jax.attacks.ensemble import audit_of, cascade
from freeadv_jax.attacks.fmn import FMN
from freeadv_jax.attacks.pgd import PGD
from freeadv_jax.attacks.sparse_pgd import SparsePGD
from freeadv_jax.attacks.threat import L0, NORMS, THREATS, as_real
from freeadv_jax.certify.named import CERTIFICATES
from freeadv_jax.errors import InputError, unknown_choice

QUICK = "autoattack-quick"
_CASCADES = {
    "autoattack": "standard",
    "autoattack-plus": "plus",
    QUICK: "quick",
}
_SINGLE = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "fmn", "square")
_LOSSES = {"pgd": "cross-entropy", "cw": "margin", "dlr": "dlr"}
_NUMBERED = re.compile(r"(pgd|cw|dlr)-([1-9]\d{0,5})(?:-x([1-9]\d{0,5}))?")
_ALLOWED = (
    "natural",
    "fgsm",
    *(f"{kind}-<steps>[-x<restarts>]" for kind in _LOSSES),
    *_SINGLE,
    *_CASCADES,
    *CERTIFICATES,
)
_EXAMPLES = (
    *("natural", "fgsm", "pgd-20", "cw-100", "dlr-100"),
    *_SINGLE,
    *_CASCADES,
    *CERTIFICATES,
)


@dataclasses.dataclass(frozen=True)
class NamedAttack:
    """Hold one row of the table: `stages` by name, each on the images not yet broken.

    'natural' has no stage; AutoAttack has several. The stages of an `audit` are for a part
    of the images.
    """

    name: str
    norm: str
    epsilon: float
    stages: dict[str, Attack]
    audit: Audit | None = None

    def record(self, seed: int) -> dict:
        """Return the settings for results.json; null where the stages differ."""
        common = {"norm": self.norm, "epsilon": self.epsilon}
        stages = {name: _settings(stage) for name, stage in self.stages.items()}
        if not stages:
            return common | _NO_ATTACK | {"seed": seed}
        if len(stages) == 1:
            (fields,) = stages.values()
            return common | dict.fromkeys(_NO_ATTACK) | fields | {"seed": seed}
        audit = {"audit": self.audit.share} if self.audit else {}
        several = {"seed": seed, "stages": stages} | audit
        return common | dict.fromkeys(_NO_ATTACK) | several


_NO_ATTACK = {"steps": 0, "step_size": 0.0, "restarts": 1, "loss": "cross-entropy"}


def _settings(stage):
    """Return the fields of an attack for results.json.

    `samples` are left out for a model that draws nothing. Version 0.1 recorded such a model
    by two fields of APGD, and its rows stay valid. `reach` is left out where it is not set.
    """
    fields = dataclasses.asdict(stage)
    if fields.get("reach", 0) is None:
        del fields["reach"]
    if fields["samples"] is None:
        del fields["samples"]
        if isinstance(stage, APGD):
            fields |= {"model": "deterministic", "eot": 1}
    return fields


def attack_by_name(
    name: str,
    *,
    norm: str,
    epsilon: float,
    step_size: float,
    num_classes: int,
    samples: int | None = None,
    audit: float | None = None,
) -> NamedAttack:
    """Return the attack called `name`; `epsilon` and `step_size` are in [0, 1] pixels.

    natural              no attack
    fgsm                 one step of epsilon from the image itself
    pgd-<steps>          PGD from a random start on the cross-entropy
    cw-<steps>           the same on the margin
    dlr-<steps>          the same on the DLR loss, for three classes and more
    ...-x<restarts>      the same with several random starts
    apgd-ce, apgd-dlr, apgd-t, fab-t, square     the attacks of AutoAttack
    fmn                  the fast minimum-norm attack
    autoattack, autoattack-plus                  their cascades
    autoattack-quick     the first steps of autoattack, audited

    `step_size` is for the numbered attacks only. With too few classes for a DLR loss,
    apgd-dlr and apgd-t take the margin. `samples` are the draws of a randomised model
    that each attack averages; autoattack is then its version 'rand'. `audit` is the share
    that autoattack-quick audits, see `ensemble.autoattack`. Raise InputError for
    any other name, and for dlr-<steps> with two classes.
    """
    check_threat(norm, epsilon, norms=THREATS)
    epsilon = as_real(epsilon)
    check_step_size(step_size)
    check_samples(samples)
    threat = {"norm": norm, "epsilon": epsilon, "samples": samples}
    if name == "natural":
        return NamedAttack(name, norm, 0.0, {})
    if name == "fgsm" and norm in NORMS:
        attack = PGD(**threat, steps=1, step_size=epsilon, random_start=False)
    elif numbered := _NUMBERED.fullmatch(name):
        kind, steps, restarts = numbered.groups()
        fields = {
            "epsilon": epsilon,
            "samples": samples,
            "steps": int(steps),
            "step_size": step_size,
            "restarts": int(restarts or 1),
            "loss": _LOSSES[kind],
        }
        attack = SparsePGD(**fields) if norm == L0.norm else PGD(norm, **fields)
    elif norm not in NORMS and name in _EXAMPLES:
        raise InputError(
            f"attack {name!r} has no norm {norm!r}: allowed are natural, pgd-<steps>, "
            "cw-<steps> and dlr-<steps>, each with -x<restarts>"
        )
    elif name in _CASCADES:
        version = _CASCADES[name]
        if samples is not None and version == "standard":
            version = "rand"
        stages = cascade(version, **threat, num_classes=num_classes)
        audited = audit_of(version, audit if version == "quick" else None)
        return NamedAttack(name, norm, epsilon, stages, audited)
    elif name == "fmn":
        attack = FMN(**threat)
    elif name == "apgd-dlr":
        attack = auto_pgd(**threat, loss="dlr" if num_classes > 2 else "margin")
    elif name in _SINGLE:
        attack = cascade("standard", **threat, num_classes=num_classes)[name]
    else:
        raise unknown_choice("attack", name, _EXAMPLES, shown=_ALLOWED)
    check_loss(attack, num_classes)
    return NamedAttack(name, norm, epsilon, {name: attack})
