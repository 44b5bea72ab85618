"""Training of anybody's model on anybody's arrays: the function `freeadv_jax.fit`."""

import contextlib
import logging
import pathlib
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from freeadv_jax.config import base_config, validate
from freeadv_jax.console import say
from freeadv_jax.data.arrays import ArrayDataset
from freeadv_jax.data.split import Split, held_out
from freeadv_jax.devices import onednn
from freeadv_jax.errors import InputError, one_line
from freeadv_jax.files import sole_writer
from freeadv_jax.models.imported import OBJECT
from freeadv_jax.models.interface import FunctionModel, as_model
from freeadv_jax.models.user_model import check_output
from freeadv_jax.pixels import Numbers, as_array, channels_first
from freeadv_jax.runs.build import configured_convolutions, configured_optimizer
from freeadv_jax.runs.folder import open_run
from freeadv_jax.runs.load import saved_variables
from freeadv_jax.runs.train import train
from freeadv_jax.weights.classifier import Classifier, as_classifier
from freeadv_jax.weights.transfer import transferred

_LOGGER = logging.getLogger(__name__)

# Where the schedules turn unless the caller says so, in fractions of the budget: Shafahi
# et al. (2019) for 'step', Wong et al. (2020) for 'triangular'.
_TURNS = {"step": (0.5, 0.75), "triangular": (0.5,), "cosine": ()}


def fit(
    model,
    images: Numbers,
    labels: Numbers,
    *,
    method: str = "free",
    norm: str = "linf",
    epsilon: float = 8 / 255,
    step_size: float | None = None,
    replays: int = 8,
    start: str = "carried",
    straight_through: bool = True,
    steps: int = 7,
    beta: float = 6.0,
    alp_lambda: float = 0.5,
    llr_lambda: float = 4.0,
    llr_mu: float = 3.0,
    mart_lambda: float = 5.0,
    awp_gamma: float = 0.01,
    n_fgsm_noise: float = 2.0,
    pgi_lambda: float = 10.0,
    misalignment: float = 0.0,
    grad_align_lambda: float = 0.2,
    gaussian_sigma: float = 0.25,
    certified_scale: float = 1.0,
    certified_warmup: float = 0.05,
    certified_rampup: float = 0.5,
    certified_kappa: float = 0.5,
    crown_ibp_beta: float = 0.0,
    updates: int = 80_000,
    batch_size: int = 128,
    optimizer: optax.GradientTransformation | str = "sgd",
    learning_rate: float = 0.1,
    schedule: str = "step",
    turns: tuple[float, ...] | None = None,
    warmup: float = 0.0,
    momentum: float = 0.9,
    beta2: float = 0.999,
    nesterov: bool = False,
    weight_decay: float = 2e-4,
    decayed: str = "kernels",
    clip_norm: float = 0.0,
    label_smoothing: float = 0.0,
    average_decay: float = 0.0,
    pad: int = 0,
    flip: bool = False,
    augment: Callable | None = None,
    validation: tuple[Numbers, Numbers] | int = 0,
    validation_every_passes: float = 1.0,
    stop_on_collapse: bool = False,
    init=None,
    workdir: str | pathlib.Path | None = None,
    checkpoint_every_updates: int = 2_000,
    seed: int = 0,
    convolutions: str = "auto",
    progress: bool | Callable[[str], None] = False,
) -> Classifier:
    """Train `model` to be robust on `images` [n, h, w, c] and `labels` [n].

    `model` is a Flax Linen module, a Flax NNX module, which stays as it is, or a pair
    of functions `init(key, image_shape) -> variables`, `apply(variables, images) ->
    logits`; see `freeadv_jax.models.interface.as_model`. It gets images f32[b, h, w, c]
    in [0, 1], normalises them itself if it wants to, and returns logits [b, k].

    `images` are uint8, or floats in [0, 1]; `labels` are whole numbers of any type from 0
    to k - 1. All devices take part, and `batch_size` must divide over them.

    `method` is 'free' (Free-m, Shafahi et al. 2019, with m = `replays`), 'natural', 'pgd'
    (K-PGD, Madry et al. 2018, with K = `steps`), 'fgsm-rs' (Wong et al. 2020), 'n-fgsm'
    (de Jorge et al. 2022, `n_fgsm_noise` in epsilons), 'fgsm-pgi' (Jia et al. 2022,
    `pgi_lambda`), 'grad-align' (Andriushchenko & Flammarion 2020, `grad_align_lambda`),
    'gaussian' (Cohen et al. 2019, noise of `gaussian_sigma` for
    `freeadv_jax.certify.smooth`), 'ibp' (Gowal et al. 2018) or 'crown-ibp' (Zhang et al.
    2020, `crown_ibp_beta`), certified training with the schedule of `certified_scale`,
    `certified_warmup`, `certified_rampup` and `certified_kappa`
    (`freeadv_jax.training.ibp`), or with `steps` as well 'trades' (Zhang et al. 2019,
    `beta`), 'alp' (Kannan et al. 2018, `alp_lambda`), 'llr' (Qin et al. 2019,
    `llr_lambda` and `llr_mu`), 'mart' (Wang et al. 2020, `mart_lambda`) or 'awp' (Wu et
    al. 2020, `awp_gamma`); these numbers are the papers'. `norm` is 'linf', 'l2' or 'l1',
    and for certified training one of the first two; `epsilon` and `step_size` are in
    [0, 1] pixels, such as `8 / 255`, and `step_size` is epsilon by default. `updates`
    counts weight updates, whatever the method. With `straight_through` the perturbation of
    Free-m can leave pixels of exactly 0 and 1. `misalignment` above 0 shortens the step
    of Free-m and of the single-step methods where it bends the loss, against collapse
    (`freeadv_jax.training.alignment.bounded_step`).

    `optimizer` is 'sgd' or 'adamw', with `learning_rate`, `schedule` ('step',
    'triangular', 'cosine'), `turns`, `warmup`, `momentum`, `beta2` (of AdamW),
    `nesterov`, `weight_decay`, `decayed` and `clip_norm`; or it is any optax
    transformation. With `average_decay` above 0 the trained model is the moving average
    of the weights. These keywords are the fields of a configuration, explained by
    `freeadv-train --help`.

    Images are cropped at random after `pad` pixels of zeros on each side, mirrored at
    random with `flip`, and given to `augment(key, images) -> images`, with images
    f32[b, h, w, c] in [0, 1]. `validation` is a pair of images and labels, or how many
    training images to hold out.

    `init` gives weights to begin with: variables as the model's own `init` returns them,
    a run folder, an exported folder, or a file of PyTorch weights for a network of
    `freeadv_jax.models.build_model`. The last layer is made new where the number of
    classes differs. With `workdir` checkpoints and metrics go to that folder, and the
    same call goes on where it was cut off; without it nothing is written.
    `convolutions` names the kernels of the model's convolutions on a CPU, 'xla', 'onednn'
    or 'auto', which takes oneDNN's for long trainings; results are equal to rounding.
    `progress` prints lines, or hands them to a function.

    Return the trained `Classifier`, with `variables` and `save(folder)`. Raise InputError
    in one line for unusable input, and TrainingStoppedError where the loss is not finite
    or, with `stop_on_collapse`, robust validation accuracy collapses.
    """
    config = _configuration(
        {
            "method": method,
            "updates": updates,
            "batch_size": batch_size,
            "seed": seed,
            "data.name": "arrays",
            "data.pad": pad,
            "data.flip": flip,
            "model.name": f"{OBJECT}{type(model).__name__}",
            "model.convolutions": convolutions,
            "attack.norm": norm,
            "attack.epsilon": epsilon,
            "attack.step_size": epsilon if step_size is None else step_size,
            "attack.replays": replays,
            "attack.start": start,
            "attack.straight_through": straight_through,
            "attack.steps": steps,
            "attack.beta": beta,
            "optimizer.name": optimizer if isinstance(optimizer, str) else "sgd",
            "attack.alp_lambda": alp_lambda,
            "attack.llr_lambda": llr_lambda,
            "attack.llr_mu": llr_mu,
            "attack.mart_lambda": mart_lambda,
            "attack.awp_gamma": awp_gamma,
            "attack.n_fgsm_noise": n_fgsm_noise,
            "attack.pgi_lambda": pgi_lambda,
            "attack.misalignment": misalignment,
            "attack.grad_align_lambda": grad_align_lambda,
            "attack.gaussian_sigma": gaussian_sigma,
            "attack.certified_scale": certified_scale,
            "attack.certified_warmup": certified_warmup,
            "attack.certified_rampup": certified_rampup,
            "attack.certified_kappa": certified_kappa,
            "attack.crown_ibp_beta": crown_ibp_beta,
            "optimizer.learning_rate": learning_rate,
            "optimizer.schedule": schedule,
            "optimizer.turns": _TURNS.get(schedule, ()) if turns is None else turns,
            "optimizer.warmup": warmup,
            "optimizer.momentum": momentum,
            "optimizer.beta2": beta2,
            "optimizer.nesterov": nesterov,
            "optimizer.weight_decay": weight_decay,
            "optimizer.decayed": decayed,
            "optimizer.clip_norm": clip_norm,
            "optimizer.label_smoothing": label_smoothing,
            "optimizer.average_decay": average_decay,
            "validation.every_passes": validation_every_passes,
            "validation.stop_on_collapse": stop_on_collapse,
            "checkpoint.every_updates": checkpoint_every_updates,
        }
    )
    network = as_model(model)
    dataset, num_classes = _dataset(
        network, images, labels, validation, config, augment=augment
    )
    tx = configured_optimizer(config) if isinstance(optimizer, str) else optimizer
    write = say if progress is True else progress or (lambda line: None)
    variables = init if init is None else _given(init, network, dataset, config)
    with contextlib.ExitStack() as stack:
        run = None
        if workdir is None:
            kernels = configured_convolutions(config, dataset.image_shape)
        else:
            run = open_run(
                workdir,
                config,
                num_classes=num_classes,
                image_shape=dataset.image_shape,
                training_images=len(dataset.train.labels),
                arrays=_shapes(network, dataset.image_shape),
            )
            stack.enter_context(sole_writer(run.workdir))
            kernels = onednn.choose_again(run.convolutions)
        state, _ = train(
            config,
            dataset,
            model=network,
            tx=tx,
            num_classes=num_classes,
            convolutions=kernels,
            run=run,
            variables=variables,
            write=write,
        )
    return as_classifier(
        network,
        state.variables,
        num_classes=num_classes,
        image_shape=dataset.image_shape,
        description={
            "model": config.model.name,
            "threat": {"norm": norm, "epsilon": float(epsilon)},
            "updates": config.updates,
        },
    )


def _configuration(fields: dict) -> ConfigDict:
    """The configuration of the keywords; InputError by the keyword's own name."""
    config = base_config()
    kinds = {name: type(value) for name, value in _flat(config).items()}
    try:
        for name, value in fields.items():
            kind = kinds[name]
            if kind is float and isinstance(value, int | np.number):
                fields[name] = float(value)
            elif kind is tuple:
                fields[name] = tuple(map(float, value))
            elif kind is int and isinstance(value, np.integer):
                fields[name] = int(value)
        config.update_from_flattened_dict(fields)
        validate(config)
    except (InputError, TypeError, ValueError) as fault:
        text = one_line(fault).replace("optimizer.name", "optimizer")
        raise InputError(
            re.sub(r"\b(attack|data|model|optimizer)\.", "", text)
        ) from fault
    return config


def _flat(config, prefix=""):
    flat = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _dataset(network, images, labels, validation, config, *, augment):
    """The arrays as a data set, and the number of classes of the model."""
    split = _split(images, labels, "images")
    image_shape = split.images.shape[1:]
    num_classes = _num_classes(network, image_shape)
    if isinstance(validation, int | np.integer):
        kept, held = held_out(
            int(validation), examples=len(split.labels), name="images"
        )
        split, validation = split.take(kept), split.take(held)
    else:
        validation = _split(*validation, "validation")
        if validation.images.shape[1:] != image_shape:
            raise InputError(
                f"validation images are {list(validation.images.shape[1:])}: must be "
                f"{list(image_shape)} as the training images"
            )
    for part in (split, validation):
        if len(part.labels) and not 0 <= part.labels.min() <= part.labels.max() < (
            num_classes
        ):
            raise InputError(
                f"labels range from {part.labels.min()} to {part.labels.max()}: must be 0 "
                f"to {num_classes - 1}, as the model has {num_classes} classes"
            )
    dataset = ArrayDataset(
        name="arrays",
        train=split,
        validation=validation,
        test=validation.take(np.arange(0)),
        class_names=tuple(map(str, range(num_classes))),
        pad=config.data.pad,
        flip=config.data.flip,
        augment=augment,
    )
    return dataset, num_classes


def _split(images, labels, name):
    """Checked images, uint8 or float32, and labels int32."""
    images, labels = (np.asarray(as_array(values)) for values in (images, labels))
    if images.ndim != 4 or not len(images):
        raise InputError(
            f"{name} of shape {list(images.shape)}: must be [n, height, width, channels], "
            "at least one"
        )
    if channels_first(images.shape):
        raise InputError(
            f"{name} of shape {list(images.shape)} have the channels first: must be [n, "
            f"height, width, channels]; np.moveaxis({name}, 1, -1) moves them"
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"labels of shape {list(labels.shape)} and type {labels.dtype}: must be "
            f"{len(images)} whole numbers, one for each of the {name}"
        )
    if images.dtype != np.uint8:
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(
                f"{name} of type {images.dtype}: must be uint8, or floats in [0, 1]"
            )
        images = images.astype(np.float32)
        lowest, highest = images.min(), images.max()
        if not (lowest >= 0 and highest <= 1):
            raise InputError(
                f"{name} range from {lowest:.4g} to {highest:.4g}: floats must be in "
                "[0, 1]; normalisation belongs into the model"
            )
    return Split(images, labels.astype(np.int32))


def _shapes(network, image_shape):
    """Shapes of the model's variables; InputError with the model's own first line."""
    try:
        return jax.eval_shape(
            lambda: network.init(jax.random.key(0), tuple(image_shape))
        )
    except InputError:
        raise
    except Exception as fault:  # A user's model may raise anything.
        raise InputError(
            f"the model cannot be initialised for images of shape {list(image_shape)}: "
            f"{one_line(fault)}"
        ) from fault


def _num_classes(network, image_shape):
    """k of the model's logits [b, k], in training and in evaluation mode."""
    variables = _shapes(network, image_shape)
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        trained, _ = jax.eval_shape(network.train_logits, variables, images, key)
        logits = jax.eval_shape(network.logits, variables, images)
    except InputError:
        raise
    except Exception as fault:  # A user's model may raise anything.
        raise InputError(
            f"the model fails on images of shape {list(images.shape)}: {one_line(fault)}"
        ) from fault
    check_output(trained, 2)
    return check_output(logits, 2)


def _given(init, network, dataset, config):
    """The variables that `init` gives, with a new last layer where classes differ."""
    if isinstance(init, str | pathlib.Path):
        source, given = f"init = {init}", saved_variables(init)
    else:
        source, given = "init", init
        if isinstance(network, FunctionModel):
            given = {"params": init}
    fresh = network.init(jax.random.key(config.seed), dataset.image_shape)
    variables, new = transferred(
        fresh, given, num_classes=len(dataset.class_names), source=source
    )
    if new:
        _LOGGER.info("%s: the last layer is new (%s)", source, ", ".join(new))
    return variables
