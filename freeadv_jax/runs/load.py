"""A trained model as a function, from a run folder or an exported one."""

from freeadv_jax.config import replays
from freeadv_jax.errors import InputError
from freeadv_jax.files import local_path
from freeadv_jax.models.imported import PREFIX
from freeadv_jax.runs.folder import read_run
from freeadv_jax.weights.classifier import Classifier, as_classifier
from freeadv_jax.weights.exported import EXPORTED
from freeadv_jax.weights.load import load_exported


def load(workdir, *, checkpoint: str = "last", model=None) -> Classifier:
    """Return the trained model of a run folder or of an exported folder.

    `checkpoint` is 'last' or 'best', by robust validation accuracy; an exported folder
    holds one model, its last. `model` is the user's own model where the folder holds the
    weights of one that Python cannot import by a name. Raise InputError where the folder
    holds no such model.
    """
    folder = local_path(workdir)
    if (folder / EXPORTED).exists():
        if checkpoint != "last":
            raise InputError(f"{folder} is an exported model; allowed: last")
        return load_exported(folder, model)
    run = read_run(folder)
    state = run.trained_state(checkpoint, model)
    return as_classifier(
        run.model() if model is None else model,
        state.variables,
        num_classes=run.num_classes,
        image_shape=run.image_shape,
        description=_description(
            run.config, updates=int(state.step) * replays(run.config)
        ),
    )


def _description(config, *, updates):
    """The description of a run's model for `Classifier.save`."""
    model = config.model
    if model.name.startswith(PREFIX):
        rebuilt = {"arguments": model.arguments}
    else:
        rebuilt = {
            "normalization": model.normalization,
            "mean": list(model.mean),
            "std": list(model.std),
            "dtype": model.dtype,
        }
    threat = {"norm": config.attack.norm, "epsilon": config.attack.epsilon}
    return {"model": model.name, **rebuilt, "threat": threat, "updates": updates}
