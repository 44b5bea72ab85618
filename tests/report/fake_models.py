"""Reported models made from a few numbers, for tests that need no training."""

import pathlib

import numpy as np
from tiny_run import tiny_config

from freeadv_jax.analysis.comparison import ComparedModel
from freeadv_jax.analysis.measurement import Measurements
from freeadv_jax.intervals import wilson
from freeadv_jax.report.published import published_row
from freeadv_jax.report.reported import ReportedModel
from freeadv_jax.runs.folder import Run
from freeadv_jax.training.methods import METHODS


def row(correct, examples=200, **attack):
    """Return a row of results.json."""
    settings = {"norm": "linf", "epsilon": 0.2, "steps": 20, "seed": 0} | attack
    return {
        "accuracy": correct / examples,
        "interval": list(wilson(correct, examples)),
        "correct": correct,
        "examples": examples,
        "attack": settings,
    }


def reported(
    rows, *, place=0, label=None, measured=None, metrics=(), outcomes=None, **fields
):
    """Return a model with `tiny_config(**fields)` and these rows of results.json."""
    config = tiny_config(**fields)
    kind = METHODS[config.method].title(config.attack)
    folder = pathlib.Path("runs/fake")
    attack = config.attack
    return ReportedModel(
        model=ComparedModel(
            folder=folder,
            results_folder=folder,
            run=Run(folder, config, 10, (8, 8, 1)),
            data_name="digits",
            threat={"norm": attack.norm, "epsilon": attack.epsilon},
            step_size=config.evaluation.step_size,
            batch_size=config.evaluation.batch_size,
            num_classes=10,
            kind=kind,
            label=label or kind,
            logits_fn=_no_model,
            checksum=0,
        ),
        place=place,
        results={"training": {"seconds": 60.0, "updates": 64}},
        rows=rows,
        outcomes=outcomes or {},
        images=None,
        metrics=list(metrics),
        measured=measured,
        published=published_row(config),
    )


def measured(labels, transferred, *, class_names=("a", "b", "c")):
    """Return measurements of a model that classifies every natural image correctly.

    `transferred` has its predictions on the images attacked on each model.
    """
    labels = np.array(labels)
    logits = np.eye(len(class_names), dtype=np.float32)[labels]
    return Measurements(
        images=np.zeros((len(labels), 2, 2, 1), np.uint8),
        labels=labels,
        class_names=class_names,
        logits=logits,
        attacked=np.full((len(labels), 2, 2, 1), 0.2, np.float32),
        attacked_logits=logits[::-1],
        by_epsilon={0.0: labels >= 0, 0.2: labels == 0},
        by_steps={1: labels >= 0, 20: labels == 0},
        transferred={
            name: np.array(predicted) for name, predicted in transferred.items()
        },
    )


def _no_model(images):
    raise AssertionError("a made-up model has no logits")
