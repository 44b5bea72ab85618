"""Runs of one data set and one threat, opened side by side."""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from freeadv_jax.data.dataset import load_dataset
from freeadv_jax.errors import InputError
from freeadv_jax.files import checksum
from freeadv_jax.models.interface import logits_functions
from freeadv_jax.runs.folder import Run, read_run
from freeadv_jax.runs.outcomes import ArrayFile


@dataclasses.dataclass(frozen=True)
class Subject:
    """A trained model of the comparison.

    `kind` is its method ('Free-8'), shared by runs that differ in their seed alone;
    `label` tells it from all others. `checksum` is of its weights.
    """

    run: Run
    kind: str
    label: str
    logits_fn: Callable
    checksum: int

    def kept(self, name: str, about: dict) -> ArrayFile:
        """The arrays kept in `name`.npz of the run, those of this model and `about`."""
        about = {"model": self.checksum} | about
        return ArrayFile(self.run.workdir / f"{name}.npz", about)


@dataclasses.dataclass(frozen=True)
class Examples:
    """The first images of the test set: uint8[n, h, w, c], int32[n], the classes."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


def open_subjects(workdirs) -> list[Subject]:
    """The models of run folders; InputError unless they can be compared.

    They must differ, and share the data set and the threat.
    """
    if not workdirs:
        raise InputError("no run is given: name one or more run folders")
    folders = [pathlib.Path(workdir).expanduser().resolve() for workdir in workdirs]
    twice = [str(folder) for folder, count in Counter(folders).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]} is given twice")
    runs = [read_run(workdir) for workdir in workdirs]
    _check_same(runs, "data sets", lambda config: config.data.name)
    _check_same(runs, "threats", lambda config: threat_text(**threat(config)))
    functions: dict = {}
    subjects = []
    kinds = _kinds(runs)
    for run, kind, label in zip(runs, kinds, _labels(runs, kinds)):
        variables = run.trained_state("last").variables
        # Two runs of one architecture share a function, and so its compilations.
        model = run.model()
        logits_fn_of = functions.setdefault(repr(model), logits_functions(model))
        subjects.append(
            Subject(run, kind, label, logits_fn_of(variables), checksum(variables))
        )
    return subjects


def first_examples(subjects: list[Subject], *, data: str, examples: int) -> Examples:
    """The first `examples` of the test set the subjects share.

    `data` is where it lies, if not where it did in training.
    """
    given = subjects[0].run.config.data.to_dict()
    dataset = load_dataset(**given | {"dir": data or given["dir"]})
    for subject in subjects:
        subject.run.require_classes(dataset.class_names)
    few = slice(examples)
    test = dataset.test
    images = np.asarray(test.images[few])
    return Examples(images, test.labels[few], dataset.class_names)


def threat(config: ConfigDict) -> dict:
    """The ball of a configuration, {norm, epsilon}."""
    return {"norm": config.attack.norm, "epsilon": config.attack.epsilon}


def threat_text(norm: str, epsilon: float) -> str:
    """Such as 'L-inf epsilon 8/255'."""
    return f"{'L-inf' if norm == 'linf' else 'L2'} epsilon {number(epsilon)}"


def number(epsilon: float) -> str:
    """A radius as people write it: 0.2, but 8/255."""
    levels = epsilon * 255
    if abs(round(epsilon, 3) - epsilon) > 1e-9 and abs(round(levels) - levels) < 1e-6:
        return f"{round(levels)}/255"
    return f"{epsilon:.4g}"


def method_name(config: ConfigDict) -> str:
    """A method as the papers call it: Free-8, 7-PGD."""
    return {
        "natural": "Natural",
        "free": f"Free-{config.attack.replays}",
        "pgd": f"{config.attack.steps}-PGD",
        "fgsm-rs": "FGSM-RS",
        "trades": "TRADES",
    }[config.method]


def _kinds(runs):
    """The methods, numbered where one was used with several recipes."""
    recipes = [_recipe(run.config) for run in runs]
    methods = [method_name(run.config) for run in runs]
    kinds = []
    for method, recipe in zip(methods, recipes):
        of_method = []
        for other, used in zip(recipes, methods):
            if used == method and other not in of_method:
                of_method.append(other)
        which = of_method.index(recipe) + 1
        kinds.append(f"{method}, recipe {which}" if len(of_method) > 1 else method)
    return kinds


def _recipe(config):
    """What makes a difference to the weights, the seed apart."""
    apart = ("seed", "validation", "checkpoint", "logging", "evaluation")
    recipe = {
        name: value for name, value in config.to_dict().items() if name not in apart
    }
    reading = dict.fromkeys(("dir", "manual_dir", "prefetch"))
    return recipe | {"data": recipe["data"] | reading}


def _labels(runs, kinds):
    """The kinds, with the seed or the folder where they do not tell runs apart."""
    shared = Counter(kinds)
    for tell in (
        lambda run: f", seed {run.config.seed}",
        lambda run: f" ({run.workdir.name})",
        lambda run: f" ({run.workdir.resolve()})",
    ):
        labels = [
            kind if shared[kind] == 1 else kind + tell(run)
            for run, kind in zip(runs, kinds)
        ]
        if len(set(labels)) == len(labels):
            break
    return labels


def _check_same(runs, what, of):
    """InputError naming the first two runs that differ in `of(config)`."""
    first = runs[0]
    for run in runs[1:]:
        if of(run.config) != of(first.config):
            raise InputError(
                f"runs of different {what}: {first.workdir} has {of(first.config)}, "
                f"{run.workdir} has {of(run.config)}; compare them apart"
            )
