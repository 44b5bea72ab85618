"""Whole runs of a benchmark: trained, evaluated, and resumed if interrupted."""

import dataclasses
import pathlib

import numpy as np
from ml_collections import ConfigDict

from freeadv_jax.config import validate
from freeadv_jax.data.dataset import load_dataset
from freeadv_jax.files import sole_writer
from freeadv_jax.runs.folder import open_run, saved_updates
from freeadv_jax.runs.load import initial_variables
from freeadv_jax.runs.results import evaluate_run
from freeadv_jax.runs.train import train_run


def finish(
    config: ConfigDict, workdir: pathlib.Path, *, part="test", validates=True
) -> dict:
    """Finish the run in `workdir` and return its results.json.

    It is evaluated on a part of its data set, 'test' or 'validation'. Configurations are
    chosen on 'validation'. Without `validates` the held-out images are not looked at
    during the training.
    """
    validate(config)
    dataset = load_dataset(**config.data)
    of_model = {
        "num_classes": len(dataset.class_names),
        "image_shape": dataset.image_shape,
    }
    begins = not saved_updates(workdir, config)
    variables = initial_variables(config, **of_model) if begins else None
    run = open_run(workdir, config, **of_model, class_names=dataset.class_names)
    print(f"{workdir}: {config.method}, seed {config.seed}", flush=True)
    trained_on = dataset
    if not validates:
        nothing = dataset.validation.take(np.arange(0))
        trained_on = dataclasses.replace(dataset, validation=nothing)
    with sole_writer(workdir):
        state, training = train_run(run, trained_on, variables=variables)
        split = getattr(dataset, part)
        return evaluate_run(run, state.variables, split, training=training)
