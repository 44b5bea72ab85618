"""Runs of a report made up from a few numbers, for what needs no training."""

import pathlib

import numpy as np
from tiny_run import tiny_config

from freeadv_jax.analysis.comparison import Subject, method_name
from freeadv_jax.analysis.measurement import Measured
from freeadv_jax.intervals import wilson
from freeadv_jax.report.published import published_row
from freeadv_jax.report.shown import Shown
from freeadv_jax.runs.folder import Run


def row(correct, examples=200, **attack):
    made = {"norm": "linf", "epsilon": 0.2, "steps": 20, "seed": 0} | attack
    return {
        "accuracy": correct / examples,
        "interval": list(wilson(correct, examples)),
        "correct": correct,
        "examples": examples,
        "attack": made,
    }


def shown(rows, *, place=0, label=None, measured=None, metrics=(), **fields):
    """A run of `tiny_config(**fields)` with these rows of results.json."""
    config = tiny_config(**fields)
    kind = method_name(config)
    return Shown(
        subject=Subject(
            Run(pathlib.Path("runs/fake"), config, 10, (8, 8, 1)),
            kind,
            label or kind,
            _nothing,
            0,
        ),
        place=place,
        results={"training": {"seconds": 60.0, "updates": 64}},
        rows=rows,
        outcomes={},
        metrics=list(metrics),
        measured=measured,
        published=published_row(config),
    )


def measured(labels, transferred, *, class_names=("a", "b", "c")):
    """All images right as they are; `transferred` has what is said of the attacked."""
    labels = np.array(labels)
    logits = np.eye(len(class_names), dtype=np.float32)[labels]
    return Measured(
        images=np.zeros((len(labels), 2, 2, 1), np.uint8),
        labels=labels,
        class_names=class_names,
        logits=logits,
        attacked=np.full((len(labels), 2, 2, 1), 0.2, np.float32),
        attacked_logits=logits[::-1],
        by_epsilon={0.0: labels >= 0, 0.2: labels == 0},
        by_steps={1: labels >= 0, 20: labels == 0},
        transferred={name: np.array(said) for name, said in transferred.items()},
    )


def _nothing(images):
    raise AssertionError("a made-up run has no model")
