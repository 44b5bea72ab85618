"""The one form in which training and evaluation see a model, whatever it is written in.

model = as_model(my_linen_module)  # or an NNX module, or a pair (init, apply)
variables = model.init(key, (32, 32, 3))
logits, collections = model.train_logits(variables, images, key)
logits = model.logits(variables, images)
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
from flax import errors, nnx, traverse_util
from jaxtyping import Array, Float, Key

from freeadv_jax.errors import InputError, one_line
from freeadv_jax.models.fast_conv import with_fast_convolutions
from freeadv_jax.models.normalized import NormalizedNetwork

# `variables["params"]` holds what is trained. Every other entry is a collection that the
# forward pass in training may change, such as BatchNorm's running averages.
Variables = dict[str, Any]

# The keywords by which modules are told their mode, with the value that means training.
_MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "inference": False,
    "use_running_average": False,
}


@runtime_checkable
class Model(Protocol):
    """A network with its normalisation inside: images f32[b, h, w, c] in [0, 1] in."""

    def init(self, key: Key[Array, ""], image_shape: tuple[int, ...]) -> Variables:
        """Return the variables before training, for images of shape (h, w, c)."""

    def train_logits(
        self,
        variables: Variables,
        images: Float[Array, "b h w c"],
        key: Key[Array, ""],
    ) -> tuple[Float[Array, "b k"], Variables]:
        """Return the logits in training mode, and the collections after the pass.

        `key` is for dropout and other noise.
        """

    def logits(
        self, variables: Variables, images: Float[Array, "b h w c"]
    ) -> Float[Array, "b k"]:
        """Return the logits in evaluation mode."""


def as_model(model) -> Model:
    """Return the `Model` of a Flax module, Linen or NNX, or of a pair (init, apply).

    A module is told its mode by the keywords that its `__call__` takes: `train`,
    `training`, `is_training`, `deterministic`, `inference`, `use_running_average`; an NNX
    module by its methods `train()` and `eval()` as well. An NNX module begins with the
    weights that it holds, and stays as it is. The functions of a pair are
    `init(key, image_shape) -> variables`, all of which are trained, and
    `apply(variables, images) -> logits`.

    Raise InputError for anything else, and for a module that needs further arguments.
    """
    if isinstance(model, nn.Module):
        return LinenModel(model, _mode_keywords(model))
    if isinstance(model, nnx.Module):
        return NNXModel.of(model)
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        return FunctionModel(*model)
    if isinstance(model, Model):
        return model
    raise InputError(
        f"the model is a {type(model).__name__}: must be a Flax Linen module, a Flax NNX "
        "module, or a pair of functions (init, apply)"
    )


def loop_model(model) -> Model:
    """Return the `Model` of `model` in a form that is fast inside loops on CPU.

    The networks of this package have that form already. In any other model the
    convolutions are replaced (`with_fast_convolutions`).
    """
    model = as_model(model)
    ours = isinstance(getattr(model, "module", None), NormalizedNetwork)
    if ours or isinstance(model, LoopModel) or jax.default_backend() != "cpu":
        return model
    return LoopModel(model)


@dataclasses.dataclass(frozen=True)
class LoopModel:
    """A model whose convolutions are replaced by those of this package.

    Their kernels are those that are chosen where it is traced, see `devices/onednn.py`.
    """

    model: Model

    def init(self, key, image_shape):
        return self.model.init(key, image_shape)

    def train_logits(self, variables, images, key):
        return _with_chosen_kernels(self.model.train_logits)(variables, images, key)

    def logits(self, variables, images):
        return _with_chosen_kernels(self.model.logits)(variables, images)


_with_chosen_kernels = functools.partial(with_fast_convolutions, kernels=None)


def logits_functions(model) -> Callable:
    """Return a function from variables to a logits_fn, in evaluation mode.

    The logits_fn is a pytree whose leaves are the variables. Those of one model differ in
    their arrays alone, so that a program compiled for one serves all.
    """
    model = as_model(model)
    try:
        return functools.partial(jax.tree_util.Partial, _bound_logits(model))
    except TypeError:  # The module has a field that cannot be hashed, such as a list.
        return functools.partial(jax.tree_util.Partial, model.logits)


@functools.lru_cache(maxsize=64)
def _bound_logits(model):
    """One function object for all equal models."""
    return lambda variables, images: model.logits(variables, images)


def random_logits_functions(model) -> Callable:
    """Return a function from variables to a randomised logits_fn, in evaluation mode.

    The logits_fn is one of images f32[b, h, w, c] and keys [b]; each image is drawn with
    its own key. It is a pytree like that of `logits_functions`. Raise InputError for a
    model that cannot draw in evaluation mode.
    """
    model = as_model(model)
    if not hasattr(model, "drawn_logits"):
        raise InputError(
            f"the model is a {type(model).__name__}, which draws no random numbers in "
            "evaluation mode: must be a Flax module"
        )
    try:
        return functools.partial(jax.tree_util.Partial, _bound_draws(model))
    except TypeError:
        return functools.partial(jax.tree_util.Partial, _draws_of(model))


def draws_numbers(logits_fn: Callable, image_shape: tuple[int, ...]) -> bool:
    """Return whether a function of images and keys draws random numbers with its keys."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    program = jax.make_jaxpr(lambda *given: logits_fn(*given))(image, keys)
    return "random_bits" in set(_primitives(program.jaxpr))


def _primitives(program):
    for equation in program.eqns:
        yield equation.primitive.name
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _primitives(getattr(inner, "jaxpr", inner))


@functools.lru_cache(maxsize=64)
def _bound_draws(model):
    """One function object for all equal models."""
    return _draws_of(model)


def _draws_of(model):
    def logits(variables, images, keys):
        def of_one(image, key):
            return model.drawn_logits(variables, image[None], key)[0]

        return jax.vmap(of_one)(images, keys)

    return logits


@dataclasses.dataclass(frozen=True)
class LinenModel:
    """A Flax Linen module with any collections of variables."""

    module: nn.Module
    modes: tuple[str, ...]

    def init(self, key, image_shape):
        images = jnp.zeros((1, *image_shape))
        keys = {"params": key, "dropout": key}
        variables = self.module.init(keys, images, **_flags(self.modes, train=False))
        # Sown values are results of a pass, not state.
        return {"batch_stats": {}} | {
            name: part for name, part in variables.items() if name != "intermediates"
        }

    def train_logits(self, variables, images, key):
        collections = [name for name in variables if name != "params"]
        # Flax draws from "params" for every name that has no key of its own.
        keys = {"dropout": key, "params": jax.random.fold_in(key, 1)}
        logits, changed = self.module.apply(
            variables,
            images,
            **_flags(self.modes, train=True),
            mutable=collections,
            rngs=keys,
        )
        return logits, {name: changed.get(name, {}) for name in collections}

    def logits(self, variables, images):
        with _without_keys(
            "the model draws random numbers in evaluation mode",
            "must draw them in training mode alone, such as "
            "nn.Dropout(rate, deterministic=not train), with `train` as an argument",
        ):
            return self.module.apply(
                variables, images, **_flags(self.modes, train=False)
            )

    def drawn_logits(self, variables, images, key):
        keys = {"dropout": key, "params": jax.random.fold_in(key, 1)}
        flags = _flags(self.modes, train=False)
        return self.module.apply(variables, images, **flags, rngs=keys)


@dataclasses.dataclass(frozen=True)
class NNXModel:
    """A Flax NNX module: its structure in either mode, and the arrays it began with."""

    training: nnx.GraphDef
    evaluation: nnx.GraphDef
    modes: tuple[str, ...]
    initial: Variables = dataclasses.field(compare=False)
    # Nested dicts whose keys are those of the module, numbers for the items of lists.
    layout: Variables = dataclasses.field(compare=False)

    @classmethod
    def of(cls, module: nnx.Module) -> "NNXModel":
        """Return the model of `module`, which is copied."""
        module = nnx.clone(module)
        module.train()
        training = nnx.graphdef(module)
        module.eval()
        parts = _split(module)
        return cls(
            training=training,
            evaluation=nnx.graphdef(module),
            modes=_mode_keywords(module),
            initial={
                "params": _with_text_keys(parts["params"]),
                "collections": _with_text_keys(parts["collections"]),
            },
            layout=jax.tree.map(lambda array: None, parts)
            | {"random": parts["random"]},
        )

    def init(self, key, image_shape):
        return self.initial

    def train_logits(self, variables, images, key):
        module = self._merged(self.training, variables, key)
        with _without_keys("the model draws random numbers", "give its layers rngs"):
            logits = module(images, **_flags(self.modes, train=True))
        collections = _with_text_keys(_split(module)["collections"])
        return logits, {"collections": collections}

    def logits(self, variables, images):
        return self.drawn_logits(variables, images, jax.random.key(0))

    def drawn_logits(self, variables, images, key):
        module = self._merged(self.evaluation, variables, key)
        return module(images, **_flags(self.modes, train=False))

    def _merged(self, graphdef, variables, key):
        """The module with these variables, its random streams begun from `key`."""
        streams, structure = jax.tree.flatten(self.layout["random"])
        streams = [
            jax.random.fold_in(key, number)
            if jnp.issubdtype(stream.dtype, jax.dtypes.prng_key)
            else jnp.zeros_like(stream)
            for number, stream in enumerate(streams)
        ]
        return nnx.merge(
            graphdef,
            _with_keys_of(self.layout["params"], variables["params"]),
            jax.tree.unflatten(structure, streams),
            _with_keys_of(self.layout["collections"], variables["collections"]),
        )


@dataclasses.dataclass(frozen=True)
class FunctionModel:
    """A pair of plain functions, the same in training and evaluation."""

    initialize: Callable
    apply: Callable

    def init(self, key, image_shape):
        return {"params": self.initialize(key, image_shape)}

    def train_logits(self, variables, images, key):
        return self.logits(variables, images), {}

    def logits(self, variables, images):
        with _without_keys(
            "`apply` of the pair (init, apply) draws random numbers",
            "give the Flax module in place of the pair",
        ):
            return self.apply(variables["params"], images)


@contextlib.contextmanager
def _without_keys(fault, cure):
    """InputError with the cure in place of what Flax raises for dropout without a key."""
    try:
        yield
    except (errors.InvalidRngError, ValueError) as raised:
        said = one_line(raised).split(" (http")[0]
        # NNX has no type of its own for it.
        if not isinstance(raised, errors.InvalidRngError) and "`rngs`" not in said:
            raise
        raise InputError(f"{fault} without a key ({said}): {cure}") from raised


def _mode_keywords(module):
    """The keywords of `module` that set its mode; InputError for others without default."""
    _, *rest = inspect.signature(module.__call__).parameters.values() or (None,)
    required = [
        argument.name
        for argument in rest
        if argument.name not in _MODES
        and argument.default is inspect.Parameter.empty
        and argument.kind not in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD)
    ]
    if required:
        raise InputError(
            f"{type(module).__name__} needs {', '.join(required)} beside the images: must "
            f"take images alone, and {', '.join(_MODES)} if it likes"
        )
    return tuple(argument.name for argument in rest if argument.name in _MODES)


def _flags(modes, *, train):
    return {name: _MODES[name] == train for name in modes}


def _split(module):
    """The arrays of an NNX module: trained, random, and all others."""
    _, params, random, collections = nnx.split(module, nnx.Param, nnx.RngState, ...)
    states = {"params": params, "random": random, "collections": collections}
    return {name: nnx.to_pure_dict(state) for name, state in states.items()}


def _with_text_keys(tree):
    """Nested dicts with strings for keys, as files have them."""
    flat = traverse_util.flatten_dict(tree)
    named = {tuple(map(str, path)): array for path, array in flat.items()}
    return traverse_util.unflatten_dict(named)


def _with_keys_of(layout, tree):
    """The arrays of `tree` under the keys of `layout`."""
    flat = traverse_util.flatten_dict(tree)
    paths = traverse_util.flatten_dict(layout)
    return traverse_util.unflatten_dict(
        {path: flat[tuple(map(str, path))] for path in paths}
    )
