"""Rows of a gallery made from a few numbers, for tests that need no training."""

import numpy as np

from freeadv_jax.gallery.defences import DEFENCES
from freeadv_jax.gallery.row import Row

ANSWER = {"text": "it was seen <here>", "advice": "BPDA (freeadv_jax.attacks.bpda)"}


def fake_row(name, *, natural=0.9, naive=0.8, adaptive=0.02, flags=(), shown=True):
    """Return a row of the defence `name` with these figures and pictures of noise."""
    images = np.random.default_rng(0).uniform(0, 1, (6, 8, 8, 1)).astype(np.float32)
    labels = np.arange(6)
    record = {
        "defence": name,
        "masks": DEFENCES[name].masks,
        "natural": natural,
        "naive": naive,
        "adaptive": adaptive,
        "published": DEFENCES[name].published,
        "flags": list(flags),
        "adaptive_by_attack": {"BPDA": adaptive},
        "answers": {flag: ANSWER for flag in flags},
        "data": "digits",
        "norm": "linf",
        "epsilon": 0.2,
        "examples": 60,
        "flagged": 40,
        "seconds": 2.0,
        "processor_seconds": 1.5,
    }
    seen = images if shown else images[:0]
    pictures = {
        "images": images,
        "shown": seen,
        "attacked": 1 - images,
        "attacked_shown": seen,
        "labels": labels,
        "classes": labels,
        "attacked_classes": np.array([1, 1, 2, -1, 4, 5]),
        "class_names": np.array([str(number) for number in range(10)]),
    }
    return Row(record, pictures)
