"""A trained model as a function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from freeadv_jax.errors import InputError
from freeadv_jax.models.imported import OBJECT
from freeadv_jax.models.interface import as_model
from freeadv_jax.version import __version__
from freeadv_jax.weights.exported import new_folder, write_exported
from freeadv_jax.weights.transfer import flat_variables


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Classifier:
    """A trained model: classifier(images) -> logits.

    `images` are float [b, h, w, c] in [0, 1], `image_shape` is (h, w, c), the logits are
    float32 [b, num_classes]. Calls can be differentiated and traced by jax.jit.
    `variables` are the weights. `description` says how `freeadv_jax.load` rebuilds the
    model, and for which threat it was trained.
    """

    logits_fn: Callable
    num_classes: int
    image_shape: tuple[int, int, int]
    variables: Any = None
    description: dict = dataclasses.field(default_factory=dict)

    def __call__(self, images):
        """Return the logits; raise InputError for images of another shape or type."""
        if np.shape(images)[1:] != self.image_shape or np.ndim(images) != 4:
            raise InputError(
                f"images of shape {np.shape(images)}: this model takes "
                f"[b, {', '.join(map(str, self.image_shape))}]"
            )
        images = jnp.asarray(images)
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(
                f"images of type {images.dtype}: this model takes floats in [0, 1]; "
                "divide by 255"
            )
        return self.logits_fn(images)

    def save(self, folder) -> None:
        """Write the model into the new `folder`, from which `freeadv_jax.load` reads it.

        A model named 'module:...' is imported again when it is loaded. Any other model of
        the user's own has to be given again: `freeadv_jax.load(folder, model=net)`. Raise
        InputError where something lies in `folder` or it cannot be written.
        """
        write_exported(new_folder(folder), *saved_form(self))

    def __repr__(self) -> str:
        """Return one line."""
        count = sum(np.size(leaf) for leaf in jax.tree.leaves(self._params()))
        sides = ", ".join(map(str, self.image_shape))
        return (
            f"Classifier({self.description.get('model')}: images [b, {sides}] in [0, 1] "
            f"to {self.num_classes} logits, {count:,} parameters)"
        )

    def _params(self):
        """The trained variables, without BatchNorm's running averages."""
        variables = self.variables
        return variables.get("params") if isinstance(variables, dict) else variables


def saved_form(classifier: Classifier) -> tuple[dict, dict]:
    """Return the description and {path: array} that `Classifier.save` writes.

    Raise InputError for a classifier without variables.
    """
    if classifier.variables is None:
        raise InputError("this classifier holds no variables to save")
    description = {
        "model": None,
        "num_classes": classifier.num_classes,
        "image_shape": list(classifier.image_shape),
        "threat": None,
        "updates": None,
        "freeadv_jax": __version__,
        "source": "freeadv_jax",
    }
    arrays = flat_variables(jax.device_get(classifier.variables))
    return description | classifier.description, arrays


def as_classifier(
    model,
    variables,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    description: dict | None = None,
) -> Classifier:
    """Return the classifier of a model and its variables.

    `model` is what `as_model` takes. Jitted functions that take `classifier.logits_fn` as
    an argument take the variables as arguments too. `description` is that of
    `Classifier`; without one the model cannot be imported again.
    """
    logits = as_model(model).logits
    variables = jax.device_put(variables)

    @jax.jit
    def logits_fn(variables, images):
        return logits(variables, images)

    return Classifier(
        logits_fn=jax.tree_util.Partial(logits_fn, variables),
        num_classes=num_classes,
        image_shape=(*image_shape,),
        variables=variables,
        description=description or {"model": f"{OBJECT}{type(model).__name__}"},
    )
