"""A user's model: checked, and as a function that hands its weights over as arrays."""

import contextlib
import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from freeadv_jax.errors import InputError, one_line


def check_model(logits_fn, images) -> int:
    """Return the model's number of classes, from the shape of its output for `images`.

    Raise InputError unless the model is a function of the images alone that JAX can
    differentiate, is in evaluation mode, and returns logits [b, k].
    """
    _check_kind(logits_fn)
    if missing := _missing_arguments(logits_fn, given=1):
        raise InputError(
            f"the model needs {', '.join(missing)} beside the images: must take images "
            "alone, such as functools.partial(model.apply, variables, train=False); a "
            "randomised model, a function of images and keys, goes with samples= (20 are usual)"
        )
    return _num_classes(logits_fn, images)


def check_randomized_model(logits_fn) -> None:
    """Raise InputError unless the model is a function of images and of their keys."""
    _check_kind(logits_fn)
    missing = _missing_arguments(logits_fn, given=2)
    if missing or not _takes_two(logits_fn):
        needs = f"needs {', '.join(missing)} too" if missing else "takes images alone"
        raise InputError(
            f"the model {needs}: a randomised model must be a function of images "
            "[b, h, w, c] and one key for each of them; a model that draws nothing goes "
            "without samples"
        )


def _num_classes(logits_fn, images):
    """The number of classes, or InputError in place of what the model raises."""
    python = jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError
    try:
        return num_classes_of(logits_fn, images)
    except InputError:
        raise
    except jax.errors.TracerArrayConversionError as fault:
        raise InputError(
            "the model turns its images into NumPy arrays, which have no gradient: must "
            "be written in jax.numpy"
        ) from fault
    except python as fault:
        raise InputError(
            "the model turns its images into Python numbers, or branches on them: must "
            "be written in jax.numpy, with jnp.where for a branch"
        ) from fault
    except Exception as fault:  # A user's model may raise anything.
        shape, reason = list(np.shape(images)), one_line(fault)
        if _takes_channels_first(logits_fn, shape):
            reason = (
                "it takes the channels first; must take [b, h, w, c], such as lambda x: "
                "model(jnp.moveaxis(x, -1, 1))"
            )
        raise InputError(
            f"the model fails on images of shape {shape}: {reason}"
        ) from fault


def _takes_channels_first(logits_fn, shape):
    """Whether the model has logits for images [b, c, h, w] of the `shape` [b, h, w, c]."""
    batch, *sides, channels = shape
    # A model that raises here too has another fault.
    with contextlib.suppress(Exception):
        num_classes_of(logits_fn, np.zeros((batch, channels, *sides), np.float32))
        return True
    return False


def _missing_arguments(logits_fn, *, given):
    """The arguments without default beyond so many `given` ones."""
    required = [
        parameter
        for parameter in _parameters(logits_fn)
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    positional = [p for p in required if p.kind is not p.KEYWORD_ONLY]
    return [p.name for p in required if p not in positional[:given]]


def _takes_two(logits_fn):
    """Whether a call with two positional arguments is possible, as far as is known."""
    parameters = _parameters(logits_fn)
    positional = [p for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD]
    rest = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return not parameters or rest or len(positional) >= 2


def _parameters(logits_fn):
    try:
        return list(inspect.signature(logits_fn).parameters.values())
    except (TypeError, ValueError):  # Some built-in callables have no signature.
        return []


def _check_kind(logits_fn):
    """InputError for what is no model in evaluation mode: a class, a module of PyTorch."""
    if not callable(logits_fn) or inspect.isclass(logits_fn):
        kind = "class" if callable(logits_fn) else type(logits_fn).__name__
        raise InputError(
            f"the model is a {kind}: must be a function from images "
            "[b, h, w, c] in [0, 1] to logits [b, k]"
        )
    if _is_module(logits_fn, "torch.nn"):
        raise InputError(
            "the model is a module of PyTorch: must be a function of JAX, which computes "
            "the gradients"
        )
    if _is_module(logits_fn, "flax.linen") and logits_fn.scope is None:
        raise InputError(
            "the model is a Flax Linen module without variables: give "
            "functools.partial(model.apply, variables), with train=False if it takes that"
        )
    if _is_module(logits_fn, "flax.nnx"):
        _check_mode(logits_fn)


def _is_module(logits_fn, library):
    """Whether the model is a `Module` of a library that may not be imported."""
    imported = sys.modules.get(library)
    return imported is not None and isinstance(logits_fn, imported.Module)


def _check_mode(logits_fn):
    """InputError for a Flax NNX module, or a part of one, in training mode."""
    nnx = sys.modules["flax.nnx"]
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


def num_classes_of(logits_fn, images) -> int:
    """Return the model's number of classes, from its output for `images`.

    Raise InputError as `check_output` does.
    """
    of_floats = jax.ShapeDtypeStruct(np.shape(images), np.float32)
    # The lambda is for callables that JAX cannot wrap, such as equinox.filter_jit's.
    logits = jax.eval_shape(lambda x: logits_fn(x), of_floats)
    return check_output(logits, len(images))


def check_output(logits, images: int) -> int:
    """Return k of the shape of a model's output for so many images.

    Raise InputError unless the output is one array [images, k] of floats, with k of 2 or
    more.
    """
    if not isinstance(logits, jax.ShapeDtypeStruct):
        raise InputError(
            f"the model gives a {type(logits).__name__} of arrays: must be the logits "
            "alone"
        )
    shape = logits.shape
    if shape in ((images,), (images, 1)):
        together = "stack" if len(shape) == 1 else "concatenate"
        raise InputError(
            f"the model gives one output an image, {shape}: must be a logit for each "
            "class; of two classes, with z before the sigmoid, they are "
            f"jnp.{together}([jnp.zeros_like(z), z], axis=-1)"
        )
    if len(shape) != 2 or shape[0] != images or shape[1] < 2:
        raise InputError(
            f"the model gives {shape} for {images} images: must be ({images}, classes), "
            "with two classes or more"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise InputError(
            f"the model gives logits of type {logits.dtype}, which has no gradient: must "
            "be floats"
        )
    return shape[1]
