"""A trained model as a function, from a run folder or an exported one."""

from freeadv_jax.errors import InputError
from freeadv_jax.files import local_path
from freeadv_jax.runs.folder import read_run
from freeadv_jax.weights.classifier import Classifier, as_classifier
from freeadv_jax.weights.exported import EXPORTED, load_exported


def load(workdir, *, checkpoint: str = "last") -> Classifier:
    """The trained model of a run folder, from its 'last' or 'best' checkpoint.

    A folder of `freeadv_jax.export` holds but one model, which counts as its last.
    """
    folder = local_path(workdir)
    if (folder / EXPORTED).exists():
        if checkpoint != "last":
            raise InputError(f"{folder} is an exported model; allowed: last")
        return load_exported(folder)
    run = read_run(folder)
    return as_classifier(
        run.model(),
        run.trained_state(checkpoint).variables,
        num_classes=run.num_classes,
        image_shape=run.image_shape,
    )
