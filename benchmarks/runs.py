"""Whole runs for a benchmark: trained, evaluated, and resumed where cut off."""

import pathlib

from ml_collections import ConfigDict

from freeadv_jax.config import validate
from freeadv_jax.data.arrays import ArrayDataset
from freeadv_jax.evaluation import evaluate_run
from freeadv_jax.run import open_run
from freeadv_jax.train import train


def finish(
    config: ConfigDict, dataset: ArrayDataset, workdir: pathlib.Path, *, part="test"
) -> dict:
    """The results of the run in `workdir`, on a part of the data set.

    Choices between configurations are made on `part='validation'`.
    """
    validate(config)
    run = open_run(
        workdir,
        config,
        num_classes=dataset.num_classes,
        image_shape=dataset.image_shape,
    )
    print(f"{workdir}: {config.method}, seed {config.seed}", flush=True)
    state, training = train(run, dataset)
    split = getattr(dataset, part)
    return evaluate_run(run, state.variables, split, training=training)
