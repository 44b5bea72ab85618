"""A trained model as a function, from a run folder or an exported one."""

import contextlib

import jax
from ml_collections import ConfigDict

from freeadv_jax.config import replays
from freeadv_jax.console import say
from freeadv_jax.errors import InputError, require_choice
from freeadv_jax.files import local_path
from freeadv_jax.models.imported import OBJECT, PREFIX
from freeadv_jax.models.interface import as_model
from freeadv_jax.runs.build import configured_model, initial_state_of, model_of
from freeadv_jax.runs.folder import Run, read_run
from freeadv_jax.training.state import TrainState
from freeadv_jax.weights.classifier import Classifier, as_classifier
from freeadv_jax.weights.exported import EXPORTED, TENSORS
from freeadv_jax.weights.load import load_exported
from freeadv_jax.weights.tensors import read_tensors
from freeadv_jax.weights.transfer import transferred


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
    state = trained_state(run, checkpoint, model)
    return as_classifier(
        model_of(run) if model is None else model,
        state.variables,
        num_classes=run.num_classes,
        image_shape=run.image_shape,
        description=_description(
            run.config, updates=int(state.step) * replays(run.config)
        ),
    )


def trained_state(run: Run, checkpoint: str, model=None) -> TrainState:
    """Return the state of the 'last' or 'best' checkpoint of a run, as NumPy arrays.

    `model` replaces the network that the configuration describes. Raise InputError where
    there is no such checkpoint or none that can be read.
    """
    require_choice("checkpoint", checkpoint, ("last", "best"))
    if not run.saved_updates():
        raise InputError(f"{run.workdir} holds no checkpoint yet")
    like = jax.eval_shape(lambda: initial_state_of(run, model))
    with contextlib.closing(run.checkpoints()) as checkpoints:
        # `fit` may have had an optimizer of the user's, which no file describes.
        given = run.config.model.name.startswith(OBJECT)
        state, _ = checkpoints.restore(like, checkpoint, any_optimizer=given)
    return state


def saved_variables(folder) -> dict:
    """Return the variables in a run folder, as a tree, or in an exported folder, by path.

    The model of an exported folder need not be imported. Raise InputError where the
    folder holds no model.
    """
    folder = local_path(folder)
    if (folder / EXPORTED).exists():
        return read_tensors(folder / TENSORS)
    return trained_state(read_run(folder), "last").variables


def initial_variables(
    config: ConfigDict, *, num_classes: int, image_shape: tuple[int, int, int]
) -> dict | None:
    """Return the variables that training begins with, those of `config.init`.

    The last layer is new, and a line is printed, where the folder's model has another
    number of classes. Return None without `config.init`. Raise InputError that lists the
    arrays of another shape.
    """
    if not config.init:
        return None
    shape = {"num_classes": num_classes, "image_shape": image_shape}
    model = as_model(configured_model(config, **shape))
    fresh = jax.jit(lambda key: model.init(key, image_shape))(
        jax.random.key(config.seed)
    )
    source = f"init = {config.init}"
    variables, new = transferred(
        fresh, saved_variables(config.init), num_classes=num_classes, source=source
    )
    if new:
        say(f"{source}: the last layer is new ({', '.join(new)})")
    return variables


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
