"""The model, optimizer and initial state that a configuration describes."""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from freeadv_jax.attacks.robustness import epsilon_text
from freeadv_jax.attacks.threat import make_threat
from freeadv_jax.devices import onednn, parallel
from freeadv_jax.models import build_model
from freeadv_jax.models.imported import OBJECT, PREFIX, import_model, live_model_error
from freeadv_jax.models.interface import as_model
from freeadv_jax.training import optim
from freeadv_jax.training.alignment import ALIGNMENT
from freeadv_jax.training.methods import METHODS
from freeadv_jax.training.multistep import Multistep, minibatches_per_call
from freeadv_jax.training.state import TrainState, create_state
from freeadv_jax.training.update import METRICS


def configured_model(
    config: ConfigDict, *, num_classes: int, image_shape: tuple[int, int, int]
):
    """Return the network of `config.model`.

    The model takes images f32[b, h, w, c] in [0, 1] of `image_shape` (h, w, c). A network
    of ours has its normalisation in front; a user's own, 'module:...', is as it was
    imported. Raise InputError where the network is unknown or cannot take these images.
    """
    model = config.model
    if model.name.startswith(OBJECT):
        raise live_model_error(model.name)
    if model.name.startswith(PREFIX):
        return import_model(
            model.name,
            model.arguments,
            num_classes=num_classes,
            image_shape=image_shape,
            seed=config.seed,
        )
    return build_model(
        model.name,
        num_classes=num_classes,
        image_shape=image_shape,
        normalization=model.normalization,
        mean=tuple(model.mean),
        std=tuple(model.std),
        dtype=model.dtype,
        batch_norm_axis=parallel.AXIS if model.sync_batch_norm else None,
        remat=model.remat,
        drop_path=model.drop_path,
    )


def network_title(config: ConfigDict, params, *rest: str) -> str:
    """Return which network this is, how it is trained and for which threat.

    `params` are the trained arrays or their shapes; `rest` is put at the end.
    """
    size = sum(math.prod(array.shape) for array in jax.tree.leaves(params))
    method = METHODS[config.method].title(config.attack)
    attack = config.attack
    threat = f"{attack.norm} epsilon {epsilon_text(attack.epsilon)}"
    about = f"{size:,} parameters", f"{method} on {config.data.name} with {threat}"
    return f"{config.model.name} ({', '.join([*about, *rest])})"


def model_of(run):
    """Return the network of a `Run`."""
    return configured_model(
        run.config, num_classes=run.num_classes, image_shape=run.image_shape
    )


def configured_convolutions(config: ConfigDict, image_shape) -> str:
    """Return the kernels of the CPU's convolutions for a new training."""
    pixels = config.updates * config.batch_size * math.prod(image_shape[:2])
    return onednn.choose(config.model.convolutions, training_pixels=pixels)


def parameter_shapes(run):
    """Return the shapes of the trained arrays of a `Run`."""
    model = as_model(model_of(run))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), run.image_shape))
    return shapes["params"]


def configured_learning_rate(config: ConfigDict) -> Callable:
    """Return the learning rate as a function of the update, counted from 0."""
    optimizer = config.optimizer
    return optim.learning_rate_schedule(
        optimizer.schedule,
        peak=optimizer.learning_rate,
        updates=config.updates,
        turns=tuple(optimizer.turns),
        warmup=optimizer.warmup,
    )


def configured_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Return the optax transformation of `config.optimizer`."""
    optimizer = config.optimizer
    settings = {
        "momentum": optimizer.momentum,
        "nesterov": optimizer.nesterov,
        "weight_decay": optimizer.weight_decay,
        "decayed": optimizer.decayed,
    }
    learning_rate = configured_learning_rate(config)
    if optimizer.name == "adamw":
        tx = optim.adamw(learning_rate, beta2=optimizer.beta2, **settings)
    else:
        tx = optim.sgd(learning_rate, **settings)
    return optim.clipped(tx, optimizer.clip_norm)


def initial_state(
    config: ConfigDict,
    *,
    model,
    tx,
    image_shape: tuple[int, int, int],
    variables: dict | None = None,
) -> TrainState:
    """Return the state before the first minibatch, a function of `config.seed`.

    The weights are those of `variables` where they are given. One compiled program makes
    the state. `jax.eval_shape` gives its shapes at no cost. Raise InputError for a patch
    larger than the images.
    """
    make_threat(config.attack.norm, config.attack.epsilon).check(image_shape)
    create = functools.partial(
        create_state,
        model,
        tx,
        batch_size=config.batch_size,
        image_shape=image_shape,
        averaged=config.optimizer.average_decay > 0,
        aligned=config.attack.misalignment > 0,
    )
    return jax.jit(lambda seed, variables: create(seed, variables=variables))(
        np.uint32(config.seed), variables
    )


def initial_state_of(run, model=None) -> TrainState:
    """Return the state of a `Run` before the first minibatch; see `initial_state`.

    `model` replaces the network that the configuration describes.
    """
    return initial_state(
        run.config,
        model=model_of(run) if model is None else model,
        tx=configured_optimizer(run.config),
        image_shape=run.image_shape,
    )


def configured_steps(
    config: ConfigDict,
    *,
    model,
    tx,
    convolutions: str = onednn.XLA,
    per_call: int | None = None,
) -> Multistep:
    """Return the training steps of `config.method` over all devices.

    `convolutions` names the CPU's kernels, "xla" or "onednn". `per_call` minibatches go
    into one call of the compiled program: by default as many as `PASSES_PER_CALL` allows.
    """
    attack, method = config.attack, METHODS[config.method]
    train_step = functools.partial(
        method.step,
        model=as_model(model),
        tx=tx,
        threat=make_threat(attack.norm, attack.epsilon),
        step_size=attack.step_size,
        **{name: attack[name] for name in method.settings},
        **({"updates": config.updates} if method.scheduled else {}),
        label_smoothing=config.optimizer.label_smoothing,
        average_decay=config.optimizer.average_decay,
        axis_name=parallel.AXIS,
    )
    per_call = per_call or minibatches_per_call(method.passes(attack))
    traced = onednn.with_kernels(convolutions, train_step)
    metrics = (*METRICS, ALIGNMENT) if method.aligned(attack) else METRICS
    return Multistep(traced, per_call=per_call, metrics=metrics)
