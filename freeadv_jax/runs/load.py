"""A trained model as a function, from a run, an export, a PyTorch file or the zoo."""

import contextlib
from collections.abc import Iterable

import jax
import numpy as np
from ml_collections import ConfigDict

from freeadv_jax.config import replays
from freeadv_jax.console import say
from freeadv_jax.errors import InputError, require_choice
from freeadv_jax.files import as_path
from freeadv_jax.models.imported import OBJECT, PREFIX
from freeadv_jax.models.interface import as_model
from freeadv_jax.runs.build import configured_model, initial_state_of, model_of
from freeadv_jax.runs.folder import Run, read_run
from freeadv_jax.training.state import TrainState
from freeadv_jax.weights.classifier import Classifier, as_classifier
from freeadv_jax.weights.exported import EXPORTED, TENSORS
from freeadv_jax.weights.from_torch import Numbers, is_weights_file, read_variables
from freeadv_jax.weights.load import load_exported, load_torch
from freeadv_jax.weights.tensors import read_tensors
from freeadv_jax.weights.transfer import transferred


def load(
    workdir,
    *,
    checkpoint: str = "last",
    model=None,
    image_shape: tuple[int, ...] | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    key: str | None = None,
    ignore: Iterable[str] = (),
) -> Classifier:
    """Return the trained model of a run folder, an export, a PyTorch file or the zoo.

    `checkpoint` is 'last' or 'best', by robust validation accuracy; an exported folder
    holds one model, its last. `model` is the user's own model where the folder holds the
    weights of one that Python cannot import by a name.

    A file of PyTorch weights, `.safetensors`, `.npy` or as `torch.save` writes it, is
    read without running code. The network is found by the names and shapes of its
    tensors. `model` is its name where several have the same tensors. `image_shape` is
    (h, w, c), by default 32 x 32 pixels for networks of CIFAR and 224 x 224 for those
    of ImageNet. The network takes (images - mean) / std of images in [0, 1]; `mean`
    and `std`, one number or one a channel, are given where the file does not hold
    them. `key` is that of the state_dict where the file holds several, and tensors
    whose names match a pattern of `ignore` are left out.

    'robustbench:NAME' stands for the file of a model of RobustBench, in the cache folder
    or downloaded there; it needs no further argument. NAME is that of CIFAR-10 and Linf,
    or data set, threat and name, such as 'imagenet/Linf/Salman2020Do_R18'. The file must
    have the SHA-256 that is published or was kept when it was first read.

    Raise InputError where there is no such model; for a file whose tensors fit no network
    it names the nearest network and the tensors that differ.
    """
    folder = as_path(workdir)
    of_file = {
        "image_shape": image_shape,
        "mean": mean,
        "std": std,
        "key": key,
        "ignore": ignore or None,
    }
    of_file = {name: value for name, value in of_file.items() if value is not None}
    if is_weights_file(folder):
        if checkpoint != "last":
            raise InputError(f"{folder} is a file of weights; allowed: last")
        if not isinstance(model, str | None):
            raise InputError(
                f"the model for {folder} is a {type(model).__name__}: must be the name of a "
                "network of this package"
            )
        return load_torch(folder, model=model, **of_file)
    if of_file:
        raise InputError(
            f"{next(iter(of_file))} goes with a file of PyTorch weights, not with {folder}"
        )
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
    """Return the variables of a run folder, as a tree, or of an export or file, by path.

    The file holds PyTorch weights, or is one of the zoo. The model of an exported folder
    need not be imported.
    Raise InputError where there is no model.
    """
    folder = as_path(folder)
    if is_weights_file(folder):
        return read_variables(folder)[0]
    if (folder / EXPORTED).exists():
        return read_tensors(folder / TENSORS)
    return trained_state(read_run(folder), "last").variables


def initial_variables(
    config: ConfigDict, *, num_classes: int, image_shape: tuple[int, int, int]
) -> dict | None:
    """Return the variables that training begins with, those of `config.init`.

    A line is printed where the last layer is new, because the weights are for another
    number of classes, and where a file of PyTorch weights says that its network
    normalises otherwise. Return None without `config.init`. Raise InputError that lists
    the arrays of another shape.
    """
    if not config.init:
        return None
    shape = {"num_classes": num_classes, "image_shape": image_shape}
    model = as_model(configured_model(config, **shape))
    fresh = jax.jit(lambda key: model.init(key, image_shape))(
        jax.random.key(config.seed)
    )
    source = f"init = {config.init}"
    path, stored = as_path(config.init), []
    if is_weights_file(path):
        given, stored = read_variables(path)
    else:
        given = saved_variables(path)
    variables, new = transferred(fresh, given, num_classes=num_classes, source=source)
    if new:
        say(f"{source}: the last layer is new ({', '.join(new)})")
    other = _other_normalization(config.model, stored)
    if other and not config.model.name.startswith(PREFIX):
        say(
            f"{source}: the network of the file normalises by {other}, this one does not"
        )
    return variables


def _other_normalization(model, stored) -> str | None:
    """The first normalisation [(mean, std)] of a file that `config.model` does not have."""
    by_channel = model.normalization == "mean_std"
    for pair in stored:
        ours = zip((model.mean, model.std), pair, strict=True)
        if not by_channel or not all(np.allclose(*each, atol=1e-4) for each in ours):
            return "mean {}, std {}".format(*(",".join(map(str, x)) for x in pair))
    return None


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
