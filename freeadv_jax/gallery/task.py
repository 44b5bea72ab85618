"""The task of a gallery: its images, its threat and the networks that were trained."""

import dataclasses
import functools
import pathlib
import shutil

import flax.linen as nn
import numpy as np

from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.data.split import Split
from freeadv_jax.gallery.training import Loss, train_on
from freeadv_jax.models.normalized import NormalizedNetwork
from freeadv_jax.models.small_cnn import SmallCNN
from freeadv_jax.runs.fit import fit
from freeadv_jax.weights.classifier import Classifier
from freeadv_jax.weights.load import load_exported


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The sizes of a task: network, threat and training.

    `epsilon` is in [0, 1] pixels. `updates` are the weight updates of a training. Adversarial
    training makes `robust_minibatches`, with about eight passes each whatever the method.
    """

    features: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    epsilon: float
    updates: int
    robust_minibatches: int
    batch_size: int
    learning_rate: float
    pad: int
    flip: bool


# Small enough that all defences are trained and attacked in half an hour on two cores.
RECIPES = {
    "digits": Recipe(
        features=(32, 64),
        mean=(0.0,),
        std=(1.0,),
        epsilon=0.2,
        updates=600,
        robust_minibatches=250,
        batch_size=64,
        learning_rate=0.05,
        pad=0,
        flip=False,
    ),
    "cifar10": Recipe(
        features=(16, 32, 64),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        epsilon=8 / 255,
        updates=600,
        robust_minibatches=250,
        batch_size=64,
        learning_rate=0.05,
        pad=2,
        flip=True,
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A data set with its recipe. Networks that were trained are kept in `folder`."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    recipe: Recipe
    folder: pathlib.Path
    seed: int = 0

    @classmethod
    def load(
        cls, name: str, directory: str, *, folder: pathlib.Path, seed: int = 0
    ) -> "Task":
        """Return the task of a data set of RECIPES, whose files are in `directory`.

        Raise InputError where the files are missing or damaged.
        """
        data = load_arrays(name, directory, validation_examples=0)
        recipe = RECIPES[name]
        return cls(name, data.train, data.test, data.class_names, recipe, folder, seed)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Return (h, w, c)."""
        return self.train.images.shape[1:]

    def network(self) -> NormalizedNetwork:
        """Return the network of the task, a small convolutional one."""
        return NormalizedNetwork(
            self.bare_network(), "mean_std", self.recipe.mean, self.recipe.std
        )

    def bare_network(self) -> nn.Module:
        """Return the network without its normalisation, for inputs of any kind."""
        return SmallCNN(
            num_classes=len(self.class_names),
            batch_norm=False,
            features=self.recipe.features,
        )

    @functools.cached_property
    def natural(self) -> Classifier:
        """Return the naturally trained network, on which most defences are built."""
        return self.fit("natural", method="natural")

    def fit(self, name: str, *, model=None, **options) -> Classifier:
        """Return the network `name`, trained by `freeadv_jax.fit` with its `options`.

        It is trained once and kept. `model` is by default that of the task, and the budget
        that of the recipe.
        """
        model = self.network() if model is None else model
        recipe = self.recipe
        settings = {
            "epsilon": recipe.epsilon,
            "updates": recipe.updates,
            "batch_size": recipe.batch_size,
            "learning_rate": recipe.learning_rate,
            "schedule": "triangular",
            "turns": (0.3,),
            "nesterov": True,
            "weight_decay": 5e-4,
            "pad": recipe.pad,
            "flip": recipe.flip,
            "seed": self.seed,
        }
        return self._kept(
            name,
            model,
            lambda: fit(
                model, self.train.images, self.train.labels, **(settings | options)
            ),
        )

    def tuned(self, name: str, change) -> Classifier:
        """Return the natural network trained on for half as long on changed images.

        `change(key, images) -> images` is applied to each batch, f32[b, h, w, c].
        """
        return self.fit(
            name,
            method="natural",
            init=self.natural.variables,
            augment=change,
            updates=self.recipe.updates // 2,
        )

    def train_on(self, name: str, loss: Loss, **options) -> Classifier:
        """Return the network `name`, trained on a loss of its own; see `training.train_on`."""
        recipe = self.recipe
        settings = {
            "updates": recipe.updates,
            "batch_size": recipe.batch_size,
            "learning_rate": recipe.learning_rate,
            "pad": recipe.pad,
            "flip": recipe.flip,
            "seed": self.seed,
        }
        model, classes = self.network(), len(self.class_names)
        return self._kept(
            name,
            model,
            lambda: train_on(
                loss, model, self.train, num_classes=classes, **(settings | options)
            ),
        )

    def examples(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the first `count` test images, float32 in [0, 1], and their labels."""
        images = self.test.images[:count].astype(np.float32) / np.float32(255)
        return images, self.test.labels[:count]

    def _kept(self, name, model, train):
        """Return the network of that name, trained and saved where the folder lacks it."""
        folder = self.folder / f"{self.name}-{name}"
        if not folder.exists():
            partial = folder.with_name(f".{folder.name}.tmp")
            shutil.rmtree(partial, ignore_errors=True)
            folder.parent.mkdir(parents=True, exist_ok=True)
            train().save(partial)
            partial.rename(folder)
        return load_exported(folder, model)
