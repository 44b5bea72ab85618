"""Certificates: what no attack can do to a model, for certain.

Each function takes a `logits_fn` that maps images f32[b, h, w, c] in [0, 1] to logits
[b, k]. The bounds return `Certificates`: lower bounds of every margin, and which images keep
their class everywhere in the ball. Attacks give the other side: images that are broken.
`smooth` certifies the classifier that a model becomes with noise on its images.
"""

from freeadv_jax.certify.certificates import (
    Certificates,
    alpha_crown,
    crown,
    interval,
)
from freeadv_jax.certify.smoothing import Smoothed, smooth

__all__ = [
    "Certificates",
    "Smoothed",
    "alpha_crown",
    "crown",
    "interval",
    "smooth",
]
