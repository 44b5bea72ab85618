"""A user's own model, named by where Python finds it: module:my_package.nets:Net."""

import ast
import functools
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from freeadv_jax.errors import InputError, did_you_mean, one_line
from freeadv_jax.models.interface import Model, as_model

PREFIX = "module:"
# A model that `fit` was given as a Python object; no name leads back to it.
OBJECT = "object:"
_FORM = f"{PREFIX}PACKAGE.MODULE:NAME, such as {PREFIX}my_package.nets:Net"
_WORDS = {"true": True, "false": False, "null": None}


def import_model(
    name: str,
    arguments: str = "",
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    seed: int = 0,
    randomized: bool = False,
) -> Model:
    """Return the model that `name`, 'module:PACKAGE.MODULE:NAME', names.

    NAME is a Linen module class, an NNX module class, a function that returns a model,
    or a model: whatever `as_model` takes. Python looks for the module in the working
    directory too. A class or function is called with the keyword `arguments` (see
    `parse_arguments`) and, where its signature has them, with `num_classes`,
    `image_shape` (h, w, c) and `rngs`, an `nnx.Rngs(seed)`. A `randomized` model may draw
    random numbers in evaluation mode.

    Raise InputError where the module cannot be imported, has no such name or refuses the
    arguments, and where the result does not give logits [b, num_classes] for images
    [b, *image_shape].
    """
    target = _imported(name)
    given = parse_arguments(arguments)
    if isinstance(target, nn.Module | nnx.Module | tuple):
        if given:
            raise InputError(
                f"model.arguments = {arguments!r}: must be empty, because {name} is a "
                "model already"
            )
        model = target
    elif callable(target):
        offered = {
            "num_classes": lambda: num_classes,
            "image_shape": lambda: image_shape,
            "rngs": lambda: nnx.Rngs(seed),
        }
        model = _called(name, target, given, offered)
    else:
        raise InputError(
            f"model.name = {name}: is a {type(target).__name__}, must be a Flax module "
            "class, a function that returns a model, or a model"
        )
    try:
        model = as_model(model)
    except InputError as fault:
        raise InputError(f"model.name = {name}: {fault}") from fault
    logits = model.logits
    if randomized and hasattr(model, "drawn_logits"):
        logits = functools.partial(model.drawn_logits, key=jax.random.key(0))
    _check_logits(name, model, logits, num_classes=num_classes, image_shape=image_shape)
    return model


def live_model_error(name: str) -> InputError:
    """Return the error for a model 'object:...', whose weights alone are on disk."""
    return InputError(
        f"the model {name.removeprefix(OBJECT)} was given to Python as an object, and "
        "only its weights are saved: load them with freeadv_jax.load(folder, model=net)"
    )


def parse_arguments(text: str) -> dict[str, Any]:
    """Return the keyword arguments that `text` writes.

    `text` is a JSON object, or 'name=value,...' with numbers (8/255 too), true, false,
    null, [lists] and words, which are strings. Raise InputError for any other text.
    """
    text = text.strip()
    try:
        if text.startswith("{"):
            return json.loads(text)
        source = f"arguments({text})"
        (statement,) = ast.parse(source).body
        call = statement.value
        names = [keyword.arg for keyword in call.keywords]
        if call.args or None in names or not isinstance(call.func, ast.Name):
            raise ValueError("each argument needs a name")
        return {keyword.arg: _value(keyword.value, source) for keyword in call.keywords}
    except (SyntaxError, TypeError, ValueError, AttributeError) as fault:
        raise InputError(
            f"model.arguments = {text!r}: must be a JSON object or name=value,..., such "
            "as width=16,activation=relu"
        ) from fault


def _value(node, source):
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id, node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _value(node.left, source) / _value(node.right, source)
    if isinstance(node, ast.List | ast.Tuple):
        return tuple(_value(item, source) for item in node.elts)
    try:
        return ast.literal_eval(node)
    except ValueError:  # A word with other characters in it, such as fgsm-rs.
        return ast.get_source_segment(source, node)


def _imported(name):
    module, colon, attribute = name.removeprefix(PREFIX).partition(":")
    if not (module and colon and attribute.isidentifier()):
        raise InputError(f"model.name = {name}: must be {_FORM}")
    # A console script does not look there by itself.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        imported = importlib.import_module(module)
    except Exception as fault:  # Anything may go wrong in a user's module.
        raise InputError(
            f"model.name = {name}: cannot be imported: {type(fault).__name__}: "
            f"{one_line(fault)}"
        ) from fault
    if not hasattr(imported, attribute):
        public = [known for known in vars(imported) if not known.startswith("_")]
        hint = did_you_mean(attribute, public)
        raise InputError(
            f"model.name = {name}: {module} has no {attribute!r}; "
            f"{hint}it lies in {getattr(imported, '__file__', None)}"
        )
    return getattr(imported, attribute)


def _called(
    name: str, target: Callable, given: dict, offered: dict[str, Callable[[], Any]]
):
    try:
        # NNX's metaclass hides the signature of the class itself.
        called = target.__init__ if inspect.isclass(target) else target
        known = inspect.signature(called).parameters
        more = {
            keyword: value()
            for keyword, value in offered.items()
            if keyword in known and keyword not in given
        }
        return target(**given, **more)
    except Exception as fault:  # Anything may go wrong in a user's module.
        raise InputError(
            f"model.name = {name} with model.arguments = {given}: "
            f"{type(fault).__name__}: {one_line(fault)}"
        ) from fault


def _check_logits(name, model, logits_of, *, num_classes, image_shape):
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    try:
        variables = jax.eval_shape(
            lambda key: model.init(key, image_shape), jax.random.key(0)
        )
        logits = jax.eval_shape(logits_of, variables, images)
    except Exception as fault:  # Anything may go wrong in a user's module.
        raise InputError(
            f"model.name = {name} cannot take images of shape {list(images.shape)}: "
            f"{type(fault).__name__}: {one_line(fault)}"
        ) from fault
    if getattr(logits, "shape", None) != (2, num_classes):
        raise InputError(
            f"model.name = {name} gives {getattr(logits, 'shape', type(logits).__name__)} "
            f"for images {list(images.shape)}: must be logits (2, {num_classes}), one a "
            "class"
        )
