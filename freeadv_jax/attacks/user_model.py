"""A user's model: checked, and as a function that hands its weights over as arrays."""

import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from freeadv_jax.attacks.checks import num_classes_of
from freeadv_jax.errors import InputError


def check_model(logits_fn, images) -> int:
    """Return the model's number of classes, from the shape of its output for `images`.

    Raise InputError unless the model is a function of the images alone that JAX can
    differentiate, is in evaluation mode, and returns logits [b, k].
    """
    if not callable(logits_fn):
        raise InputError(
            f"the model is a {type(logits_fn).__name__}: must be a function from images "
            "[b, h, w, c] in [0, 1] to logits [b, k]"
        )
    if missing := _missing_arguments(logits_fn):
        raise InputError(
            f"the model needs {', '.join(missing)} beside the images: must take images "
            "alone, such as functools.partial(model.apply, variables, train=False)"
        )
    _check_mode(logits_fn)
    try:
        return num_classes_of(logits_fn, images)
    except jax.errors.TracerArrayConversionError as fault:
        raise InputError(
            "the model turns its images into NumPy arrays, which have no gradient: must "
            "be written in jax.numpy"
        ) from fault


def _missing_arguments(logits_fn):
    """The arguments without default that a call with images alone leaves open."""
    try:
        parameters = inspect.signature(logits_fn).parameters.values()
    except (TypeError, ValueError):  # Some built-in callables have no signature.
        return []
    optional = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    required = [
        parameter
        for parameter in parameters
        if parameter.default is parameter.empty and parameter.kind not in optional
    ]
    positional = [p for p in required if p.kind is not p.KEYWORD_ONLY]
    return [p.name for p in required if p not in positional[:1]]


def _check_mode(logits_fn):
    """InputError for a Flax NNX module, or a part of one, in training mode."""
    nnx = sys.modules.get("flax.nnx")  # Imported by everyone who has such a module.
    if nnx is None or not isinstance(logits_fn, nnx.Module):
        return
    modes = {"deterministic": False, "use_running_average": False}
    for _, part in nnx.iter_graph(logits_fn):
        for name, training in modes.items():
            if getattr(part, name, None) is training:
                raise InputError(
                    f"the model is in training mode ({type(part).__name__} has {name} = "
                    f"{training}): call model.eval() first"
                )


def arrays_as_leaves(logits_fn: Callable) -> Callable:
    """Return `logits_fn` as a callable pytree whose leaves are arrays alone.

    Weights that are leaves are arguments of a compiled program, which then serves all
    models of the same structure. Functions and other values among the leaves, such as the
    activation of an Equinox module, become a part of the structure. A `Classifier` gives
    its `logits_fn`. A plain function stays as it is.
    """
    logits_fn = _function_of_classifier(logits_fn)
    if jax.tree_util.all_leaves([logits_fn]):
        return logits_fn
    leaves, structure = jax.tree.flatten(logits_fn)
    if all(map(_is_array, leaves)):
        return logits_fn
    rest = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
    arrays = [leaf for leaf in leaves if _is_array(leaf)]
    return jax.tree_util.Partial(_Structure(structure, rest), arrays)


@dataclasses.dataclass(frozen=True)
class _Structure:
    """A callable pytree without its arrays; equal for models of one structure."""

    structure: Any
    # The leaves that are no arrays, and None for each array.
    rest: tuple

    def __call__(self, arrays, *arguments):
        arrays = iter(arrays)
        leaves = [next(arrays) if leaf is None else leaf for leaf in self.rest]
        return jax.tree.unflatten(self.structure, leaves)(*arguments)


def _is_array(leaf):
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def _function_of_classifier(logits_fn):
    """The function of a `Classifier`, which unlike it hands over the weights.

    The class itself belongs to freeadv_jax.weights, a layer that attacks do not know.
    """
    if not dataclasses.is_dataclass(logits_fn):
        return logits_fn
    fields = {field.name for field in dataclasses.fields(logits_fn)}
    known = {"logits_fn", "num_classes", "image_shape"} <= fields
    return logits_fn.logits_fn if known else logits_fn
