"""An exported folder, or a file of PyTorch weights, as a classifier."""

from collections.abc import Iterable

from freeadv_jax.errors import InputError, one_line
from freeadv_jax.files import as_path, read_json
from freeadv_jax.models.imported import OBJECT, PREFIX
from freeadv_jax.weights.classifier import Classifier, as_classifier
from freeadv_jax.weights.exported import (
    EXPORTED,
    TENSORS,
    described_model,
    variable_shapes,
)
from freeadv_jax.weights.from_torch import Numbers, read_model
from freeadv_jax.weights.tensors import fitted, read_tensors
from freeadv_jax.weights.transfer import flat_variables, like_variables

# `Classifier.save` writes these itself.
_WRITTEN = ("num_classes", "image_shape", "freeadv_jax", "source")


def load_exported(folder, model=None, *, randomized: bool = False) -> Classifier:
    """Return the model of a folder that `Classifier.save` or `export` wrote.

    `model` is the user's own model where the folder does not name one that Python can
    import. A `randomized` one may draw random numbers in evaluation mode. Raise InputError
    where the folder holds no model or a damaged one, and where the arrays do not fit the
    model.
    """
    folder = as_path(folder)
    path = folder / EXPORTED
    if not path.is_file():
        raise InputError(f"{folder} holds no exported model: there is no {path}")
    description = read_json(path)
    own = model is not None or str(description.get("model")).startswith(
        (PREFIX, OBJECT)
    )
    try:
        image_shape = tuple(description["image_shape"])
        model = described_model(description, model, randomized=randomized)
        shapes = variable_shapes(model, image_shape)
    except KeyError as fault:
        raise InputError(f"{path} is damaged: it lacks {fault}") from fault
    except (OverflowError, TypeError, ValueError) as fault:
        if own and isinstance(fault, InputError):
            raise InputError(f"{folder}: {fault}") from fault
        raise InputError(f"{path} is damaged: {one_line(fault)}") from fault
    tensors = read_tensors(folder / TENSORS)
    arrays = fitted(folder / TENSORS, tensors, flat_variables(shapes))
    return _classifier(description, model, shapes, arrays)


def load_torch(
    path,
    *,
    model: str | None = None,
    image_shape: tuple[int, ...] | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    key: str | None = None,
    ignore: Iterable[str] = (),
) -> Classifier:
    """Return the model of a file of PyTorch weights; see `read_model` for the arguments."""
    description, arrays = read_model(
        path,
        model=model,
        image_shape=image_shape,
        mean=mean,
        std=std,
        key=key,
        ignore=ignore,
    )
    network = described_model(description)
    shapes = variable_shapes(network, tuple(description["image_shape"]))
    return _classifier(description, network, shapes, arrays)


def _classifier(description, model, shapes, arrays):
    return as_classifier(
        model,
        like_variables(shapes, arrays),
        num_classes=description["num_classes"],
        image_shape=tuple(description["image_shape"]),
        description={
            name: value for name, value in description.items() if name not in _WRITTEN
        },
    )
