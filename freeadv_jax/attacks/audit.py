"""Audits: what a shortened cascade may have missed, from a part that was finished."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from freeadv_jax.errors import InputError
from freeadv_jax.intervals import clopper_pearson

# The share of the survivors that is audited where nothing else is asked for. With it
# `quick` stays below a fifth of the passes of `standard` (benchmarks.quick).
SHARE = 0.04
# An audit's bound is wrong with this probability at most.
_ALPHA = 0.05


class Audit(NamedTuple):
    """Hold the `share` of the images, and the `stages` that only they go through."""

    share: float
    stages: tuple[str, ...]

    def chosen(self, images: int, seed: int | np.integer) -> Bool[np.ndarray, " n"]:
        """Return which of so many images are audited; those of fewer images stay."""
        return np.random.default_rng(np.uint32(seed)).random(images) < self.share

    def bound(
        self,
        robust: Bool[np.ndarray, " n"],
        standing: Mapping[str, int],
        seed: int | np.integer,
    ) -> dict:
        """Return {share, audited, survived, broken, missed_at_most, accuracy_at_least}.

        `robust` are the images left after all stages, and `standing` counts those left
        after each. `audited` images went into the audit, which broke `broken` of them and
        left `survived`. With 95 % confidence, its stages would break at most
        `missed_at_most` of the survivors that it left out, and leave an accuracy of at
        least `accuracy_at_least`: the upper end of Clopper & Pearson (1934).
        """
        counts = list(standing.values())
        before = counts[len(counts) - len(self.stages) - 1]
        left = int(robust.sum())
        broken = before - left
        survived = int((robust & self.chosen(len(robust), seed)).sum())
        audited = broken + survived
        kept = clopper_pearson(survived, audited, alpha=_ALPHA)
        missed = int((1 - kept) * before) - broken if audited < before else 0
        missed = min(max(missed, 0), before - audited)
        return {
            "share": self.share,
            "audited": audited,
            "survived": survived,
            "broken": broken,
            "missed_at_most": missed,
            "accuracy_at_least": (left - missed) / len(robust),
        }


def audit_text(found: Mapping) -> str:
    """Return in words what `Audit.bound` found."""
    return (
        f"an audit of {found['audited']} survivors broke {found['broken']}; the standard "
        f"version leaves at least {found['accuracy_at_least']:.2%} (95 %)"
    )


def check_share(share: float) -> None:
    """Raise InputError unless this is a share of the images."""
    if not 0 <= share <= 1:
        raise InputError(f"audit is {share}: must be a share from 0 to 1")
