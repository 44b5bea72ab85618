"""Trained models of one data set and one threat, opened for comparison."""

import dataclasses
from collections import Counter
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from freeadv_jax.attacks.robustness import epsilon_text
from freeadv_jax.attacks.threat import NORMS, THREATS
from freeadv_jax.data.dataset import load_dataset
from freeadv_jax.errors import InputError
from freeadv_jax.files import AnyPath, as_path, checksum, read_json
from freeadv_jax.models.interface import logits_functions
from freeadv_jax.runs.build import model_of
from freeadv_jax.runs.folder import Run, read_run
from freeadv_jax.runs.load import trained_state
from freeadv_jax.runs.outcomes import ArrayFile
from freeadv_jax.training.methods import METHODS
from freeadv_jax.weights.exported import EXPORTED
from freeadv_jax.weights.load import load_exported

# Images at a time for exported models, as in freeadv_jax.evaluate.
_BATCH_SIZE = 200


@dataclasses.dataclass(frozen=True)
class ComparedModel:
    """A trained model of a comparison, from a run folder or an exported one.

    `results_folder` holds results.json. `run` is None for an exported model. `data_name`
    names the data set that the models are measured on; it is None where all models are
    exported. `threat` is {norm, epsilon}, `step_size` that of the report's PGD, both in
    [0, 1] pixels. `kind` is the method, such as Free-8, and is shared by runs that differ
    only in their seed; `label` is unique. `checksum` is that of the weights.
    """

    folder: AnyPath
    results_folder: AnyPath
    run: Run | None
    data_name: str | None
    threat: dict
    step_size: float
    batch_size: int
    num_classes: int
    kind: str
    label: str
    logits_fn: Callable
    checksum: int

    @property
    def config(self) -> ConfigDict | None:
        """The run's configuration, None for an exported model."""
        return self.run.config if self.run else None

    def kept_arrays(self, name: str, settings: dict) -> ArrayFile:
        """Return the arrays kept in `name`.npz for this model with these settings."""
        about = {"model": self.checksum} | settings
        return ArrayFile(self.results_folder / f"{name}.npz", about)


@dataclasses.dataclass(frozen=True)
class Examples:
    """The first test images uint8[n, h, w, c], their labels int32[n], all class names."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


def open_models(folders) -> list[ComparedModel]:
    """Return the models of run folders and exported folders.

    Raise InputError unless all folders differ and their models share the data set, the
    threat, the image shape and the number of classes.
    """
    if not folders:
        raise InputError("no model is given: name one or more folders")
    paths = [as_path(folder).resolve() for folder in folders]
    repeated = [str(path) for path, count in Counter(paths).items() if count > 1]
    if repeated:
        raise InputError(f"{repeated[0]} is given twice")
    opened = [_open(as_path(folder)) for folder in folders]
    runs = [one for one in opened if one.run]
    _check_same(runs, "data sets", lambda one: one.run.config.data.name)
    for one in opened:
        if one.threat["norm"] not in NORMS:
            raise InputError(
                f"{one.folder} was trained against the threat {one.threat['norm']!r}: its "
                f"report knows only {', '.join(NORMS)}, so read its results.json"
            )
    _check_same(opened, "threats", lambda one: threat_text(**one.threat))
    _check_same(opened, "image shapes", lambda one: one.image_shape)
    _check_same(opened, "numbers of classes", lambda one: one.num_classes)
    data_name = runs[0].run.config.data.name if runs else None
    functions: dict = {}
    models = []
    kinds = _kinds(opened)
    for one, kind, label in zip(opened, kinds, _labels(opened, kinds)):
        logits_fn = _logits_fn(one, functions)
        config = one.run.config if one.run else None
        models.append(
            ComparedModel(
                folder=one.folder,
                results_folder=one.results_folder,
                run=one.run,
                data_name=data_name,
                threat=one.threat,
                step_size=(
                    config.evaluation.step_size if config else one.threat["epsilon"] / 4
                ),
                batch_size=config.evaluation.batch_size if config else _BATCH_SIZE,
                num_classes=one.num_classes,
                kind=kind,
                label=label,
                logits_fn=logits_fn,
                checksum=checksum(logits_fn),
            )
        )
    return models


def first_examples(
    models: list[ComparedModel], *, data: str, examples: int
) -> Examples:
    """Return the first `examples` test images of the data set that the models share.

    `data` is the folder of the data set, "" for the one of the training. Raise
    InputError if no model names a data set, or if a run was trained on other classes.
    """
    runs = [model.run for model in models if model.run]
    if not runs:
        raise InputError(
            f"{models[0].folder} is an exported model, which names no data set: give a "
            "run folder of the same data set too"
        )
    given = runs[0].config.data.to_dict()
    dataset = load_dataset(**given | {"dir": data or given["dir"], "extra": ""})
    for run in runs:
        run.require_classes(dataset.class_names)
    test = dataset.test
    images = np.asarray(test.images[:examples])
    return Examples(images, test.labels[:examples], dataset.class_names)


def threat_text(norm: str, epsilon: float) -> str:
    """Return a threat as text: 'L-inf epsilon 8/255'."""
    return f"{THREATS[norm].title} epsilon {epsilon_text(epsilon)}"


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A folder before its weights are read."""

    folder: AnyPath
    results_folder: AnyPath
    run: Run | None
    threat: dict
    num_classes: int
    image_shape: tuple[int, ...]
    # The architecture of an exported model.
    network: str = ""


def _open(folder):
    """The run or exported model that a folder, or a folder inside it, belongs to."""
    if (folder / EXPORTED).exists():
        return _open_exported(folder, _results_folder(folder))
    if (folder / "results.json").exists() and (folder.parent / EXPORTED).exists():
        return _open_exported(folder.parent, folder)
    run = read_run(folder)
    attack = run.config.attack
    threat = {"norm": attack.norm, "epsilon": attack.epsilon}
    return _Opened(folder, folder, run, threat, run.num_classes, tuple(run.image_shape))


def _results_folder(exported):
    """The folder of an exported model's only evaluation, itself without any."""
    if (exported / "results.json").exists():
        return exported
    found = sorted(path.parent for path in exported.glob("*/results.json"))
    if len(found) > 1:
        raise InputError(
            f"{exported} holds several evaluations; name one of these folders: "
            f"{', '.join(map(str, found))}"
        )
    return found[0] if found else exported


def _open_exported(folder, results_folder):
    description = read_json(folder / EXPORTED)
    try:
        return _Opened(
            folder,
            results_folder,
            None,
            description.get("threat") or _evaluated_threat(folder, results_folder),
            description["num_classes"],
            tuple(description["image_shape"]),
            description["model"],
        )
    except KeyError as fault:
        raise InputError(f"{folder / EXPORTED} is damaged: it lacks {fault}") from fault


def _evaluated_threat(folder, results_folder):
    """The only ball that a model without a training threat was attacked in."""
    path = results_folder / "results.json"
    rows = read_json(path).get("evaluation", {}) if path.exists() else {}
    balls = {
        (row["attack"]["norm"], row["attack"]["epsilon"])
        for name, row in rows.items()
        if name != "natural"
    }
    if len(balls) != 1:
        listed = ", ".join(threat_text(*ball) for ball in sorted(balls)) or "none"
        raise InputError(
            f"{folder} was trained for no threat, so that it must be attacked within "
            f"exactly one; its evaluation has: {listed}"
        )
    norm, epsilon = balls.pop()
    return {"norm": norm, "epsilon": epsilon}


def _logits_fn(opened, functions):
    if not opened.run:
        return load_exported(opened.folder).logits_fn
    # Runs of one architecture share a function and its compiled programs.
    architecture = repr((opened.run.config.model, opened.num_classes))
    if architecture not in functions:
        functions[architecture] = logits_functions(model_of(opened.run))
    make = functions[architecture]
    return make(trained_state(opened.run, "last").variables)


def _kinds(opened):
    """The methods, numbered where one was used with several recipes."""
    recipes = [_recipe(one.run.config) if one.run else one.folder for one in opened]
    methods = [_method(one) for one in opened]
    kinds = []
    for method, recipe in zip(methods, recipes):
        of_method = []
        for other, used in zip(recipes, methods):
            if used == method and other not in of_method:
                of_method.append(other)
        which = of_method.index(recipe) + 1
        kinds.append(f"{method}, recipe {which}" if len(of_method) > 1 else method)
    return kinds


def _method(opened):
    """The title of a run's method, or an exported model's network and folder."""
    if opened.run:
        config = opened.run.config
        return METHODS[config.method].title(config.attack)
    return f"{opened.network} ({opened.folder.resolve().name})"


def _recipe(config):
    """The fields that decide the weights, without the seed."""
    apart = ("seed", "validation", "checkpoint", "logging", "evaluation")
    recipe = {
        name: value for name, value in config.to_dict().items() if name not in apart
    }
    reading = dict.fromkeys(("dir", "manual_dir", "prefetch"))
    return recipe | {"data": recipe["data"] | reading}


def _labels(opened, kinds):
    """The kinds, with the seed or the folder where a kind alone is ambiguous."""
    shared = Counter(kinds)
    for suffix in (
        lambda one: f", seed {one.run.config.seed}" if one.run else "",
        lambda one: f" ({one.folder.name})",
        lambda one: f" ({one.folder.resolve()})",
    ):
        labels = [
            kind if shared[kind] == 1 else kind + suffix(one)
            for one, kind in zip(opened, kinds)
        ]
        if len(set(labels)) == len(labels):
            break
    return labels


def _check_same(opened, what, of):
    """Raise InputError naming the first folder with another value of `of(one)`."""
    for one in opened[1:]:
        if of(one) != of(opened[0]):
            raise InputError(
                f"models of different {what}: {opened[0].folder} has {of(opened[0])}, "
                f"{one.folder} has {of(one)}; compare them separately"
            )
