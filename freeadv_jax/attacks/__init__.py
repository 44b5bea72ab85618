"""Attacks on image classifiers: functions of a model, images and labels.

Every attack takes a `logits_fn` that maps images f32[b, h, w, c] in [0, 1] to logits
[b, k], and returns an `Outcome`; `red_flags` returns a list of `Flag`. With `samples=` the
model is randomised: it also takes a key for each image.
"""

from freeadv_jax.attacks.apgd import apgd
from freeadv_jax.attacks.bpda import bpda
from freeadv_jax.attacks.ensemble import autoattack
from freeadv_jax.attacks.fab import fab
from freeadv_jax.attacks.fmn import fmn
from freeadv_jax.attacks.pgd import fgsm, pgd
from freeadv_jax.attacks.red_flags import Flag, red_flags, verdict
from freeadv_jax.attacks.runner import Outcome
from freeadv_jax.attacks.square import square

__all__ = [
    "Flag",
    "Outcome",
    "apgd",
    "autoattack",
    "bpda",
    "fab",
    "fgsm",
    "fmn",
    "pgd",
    "red_flags",
    "square",
    "verdict",
]
