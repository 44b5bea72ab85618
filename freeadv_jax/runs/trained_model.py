"""A trained model on disk, opened to be evaluated: a run folder or an exported folder."""

import dataclasses
import zipfile
import zlib
from collections.abc import Callable

import jax
import numpy as np

from freeadv_jax.attacks.draws import randomized as as_randomized
from freeadv_jax.attacks.robustness import epsilon_text
from freeadv_jax.config import base_config, replays
from freeadv_jax.data.dataset import load_dataset
from freeadv_jax.devices import onednn
from freeadv_jax.errors import InputError, require_choice
from freeadv_jax.files import AnyPath, as_path, local_copy, read_json
from freeadv_jax.models.interface import (
    draws_numbers,
    logits_functions,
    random_logits_functions,
)
from freeadv_jax.pixels import check_images, check_labels
from freeadv_jax.runs.build import model_of, network_title
from freeadv_jax.runs.folder import read_run
from freeadv_jax.runs.load import load, trained_state
from freeadv_jax.weights.exported import EXPORTED, described_model
from freeadv_jax.weights.load import load_exported


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained model with the threat it was trained for and its test set.

    `logits_fn` maps images f32[b, h, w, c] in [0, 1] to logits f32[b, num_classes];
    that of a randomised model also takes a key for each image, and is a mean without keys;
    `image_shape` is (h, w, c). `title` says in a few words which model it is. `threat` is
    {norm, epsilon} in [0, 1] pixels, or None where it is unknown. `test_set()` returns the
    test images and labels; None where the data set is unknown. `header` is for results.json.
    `convolutions` says which kernels to attack with on a CPU: 'xla', 'onednn' or 'auto'.
    """

    logits_fn: Callable
    num_classes: int
    image_shape: tuple[int, int, int]
    title: str
    threat: dict | None
    step_size: float | None
    test_set: Callable | None
    header: dict
    batch_size: int = 200
    seed: int = 0
    convolutions: str = onednn.AUTO


def open_trained_model(
    workdir,
    *,
    checkpoint: str = "last",
    dataset: str | None = None,
    data: str | None = None,
    randomized: bool = False,
) -> TrainedModel:
    """Return the model of a run folder or of an exported folder.

    `checkpoint` is 'last' or 'best', by robust validation accuracy. `data` is the folder
    of the data set, if it has moved since the training. `dataset` names the data set of an
    exported model, which has no record of it. A `randomized` model also takes a key for each
    image; it draws random numbers in evaluation mode. Raise InputError where the folder
    holds no such model.
    """
    folder = as_path(workdir)
    if (folder / EXPORTED).exists():
        return _open_exported(folder, checkpoint, dataset, data, randomized)
    if dataset:
        raise InputError("--dataset goes with an exported model; a run names its own")
    return _open_run(folder, checkpoint, data, randomized)


def _open_run(folder, checkpoint, data, randomized):
    run = read_run(folder)
    config = run.config
    state = trained_state(run, checkpoint)

    def test_set():
        given = config.data.to_dict()
        # The images that joined the training set need not be there any more.
        dataset = load_dataset(**given | {"dir": data or given["dir"], "extra": ""})
        run.require_classes(dataset.class_names)
        return dataset.test.images, dataset.test.labels

    updates = int(state.step) * replays(config)
    results = folder / "results.json"
    training = read_json(results).get("training") if results.exists() else None
    # The training time of another checkpoint is unknown.
    if not training or training["updates"] != updates:
        training = {"updates": updates}
    threat = {"norm": config.attack.norm, "epsilon": config.attack.epsilon}
    model, variables = model_of(run), state.variables
    return TrainedModel(
        logits_fn=_random_logits(model, variables, run.image_shape)
        if randomized
        else logits_functions(model)(variables),
        num_classes=run.num_classes,
        image_shape=run.image_shape,
        title=network_title(config, state.variables["params"], f"update {updates:,}"),
        threat=threat,
        step_size=config.evaluation.step_size,
        test_set=test_set,
        header={"config": config.to_dict(), "training": training},
        batch_size=config.evaluation.batch_size,
        seed=config.seed,
        convolutions=onednn.choose_again(config.model.convolutions),
    )


def _open_exported(folder, checkpoint, dataset, data, randomized):
    if randomized:
        require_choice("checkpoint", checkpoint, ("last",))
        classifier = load_exported(folder, randomized=True)
    else:
        classifier = load(folder, checkpoint=checkpoint)
    description = read_json(folder / EXPORTED)

    def test_set():
        given = base_config().data.to_dict()
        given |= {"name": dataset, "dir": data or "", "validation_examples": 0}
        loaded = load_dataset(**given | {"image_size": classifier.image_shape[0]})
        found = loaded.image_shape, len(loaded.class_names)
        if found != (classifier.image_shape, classifier.num_classes):
            raise InputError(
                f"{dataset} has images {found[0]} of {found[1]} classes, and {folder} "
                f"takes {classifier.image_shape} and has {classifier.num_classes} classes"
            )
        return loaded.test.images, loaded.test.labels

    threat = description.get("threat")
    trained = f", trained with {_text(threat)}" if threat else ""
    size = _size(classifier.logits_fn)
    logits_fn = classifier.logits_fn
    if randomized:
        model = described_model(description, randomized=True)
        logits_fn = _random_logits(model, classifier.variables, classifier.image_shape)
    return TrainedModel(
        logits_fn=logits_fn,
        num_classes=classifier.num_classes,
        image_shape=classifier.image_shape,
        title=f"{description['model']} ({size} parameters, exported{trained})",
        threat=threat,
        step_size=None,
        test_set=test_set if dataset else None,
        header={"model": description} | ({"data": dataset} if dataset else {}),
    )


def _random_logits(model, variables, image_shape):
    """Return the logits_fn of images and keys, `draws.randomized`, of a model that draws."""
    logits_fn = random_logits_functions(model)(variables)
    if not draws_numbers(logits_fn, image_shape):
        raise InputError(
            "--eot is for randomised models, and this model draws no random numbers in "
            "evaluation mode: leave --eot out"
        )
    return as_randomized(logits_fn)


def _text(threat):
    return f"{threat['norm']} epsilon {epsilon_text(threat['epsilon'])}"


def _size(variables):
    """The number of trained parameters, without BatchNorm's running averages."""
    paths = jax.tree_util.tree_leaves_with_path(variables)
    return format(
        sum(
            array.size
            for path, array in paths
            if not any(getattr(key, "key", None) == "batch_stats" for key in path)
        ),
        ",",
    )


def read_images(path: AnyPath, model: TrainedModel) -> tuple[np.ndarray, np.ndarray]:
    """Return the user's images [n, h, w, c] and labels [n] of an .npz file.

    The images are uint8, or floats in [0, 1]. Raise InputError where the file cannot be
    read, where it lacks `images` or `labels`, and where they do not fit the model.
    """
    try:
        with local_copy(path) as copy, np.load(copy, allow_pickle=False) as file:
            images, labels = file["images"], file["labels"]
    except FileNotFoundError as fault:
        raise InputError(f"{path} does not exist") from fault
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        RuntimeError,
        TypeError,  # The file is no archive but a single array.
        zipfile.BadZipFile,
        zlib.error,
    ) as fault:
        reason = " ".join(str(fault).split())
        raise InputError(
            f"{path} must be an .npz file with images and labels: {reason}"
        ) from fault
    if images.shape[1:] != model.image_shape:
        raise InputError(
            f"{path}: images of shape {images.shape}, the model takes "
            f"[n, {', '.join(map(str, model.image_shape))}]"
        )
    if np.issubdtype(images.dtype, np.floating):
        images = images.astype(np.float32)
    check_images(images, labels, raw=True)
    check_labels(labels, model.num_classes)
    return images, labels.astype(np.int32)
