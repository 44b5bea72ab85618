"""Train the most robust CIFAR-10 model that an hour of two cores can train.

    python -m benchmarks.speedrun --data=DIR [--minutes=60] [--runs=3]
    python -m benchmarks.speedrun --data=DIR --probe [NAME ...] [--minutes=10]

Squares of 2 x 2 pixels become one pixel of 12 channels, so that a residual network of the
usual width works on a quarter of the pixels: two cores compute wide convolutions at twice
the rate of thin ones. Minibatches are cropped, mirrored and attacked by N-FGSM, one step
from wide noise, two passes an update. Epsilon rises from 0, because the first weights know
nothing that could be attacked. The learning rate rises and falls once, and the model is a
moving average of the weights.

The budget is time. The clock starts with the images in memory, before any compilation.
Epsilon and the learning rate are functions of the fraction of the time that is spent, so
that both end where it ends. The weights are then evaluated in float32, by AutoAttack on
test images.

--probe trains CANDIDATES for a short time without the held-out images, and evaluates them
on those by APGD-CE. The same command continues after an interruption, and begins again with
the training that was cut off.
"""

import dataclasses
import functools
import itertools
import json
import math
import pathlib
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import freeadv_jax as fa
from benchmarks.ablation import HELD_OUT
from benchmarks.record import write_record
from freeadv_jax.attacks.robustness import named_attacks
from freeadv_jax.attacks.threat import make_threat
from freeadv_jax.command import Parser, count, number, run_command
from freeadv_jax.config import base_config
from freeadv_jax.console import say
from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.data.sampling import array_batches
from freeadv_jax.devices import onednn, parallel
from freeadv_jax.devices.parallel import REPLICATED, SPLIT
from freeadv_jax.errors import InputError, TrainingStoppedError
from freeadv_jax.files import sole_writer
from freeadv_jax.models import DTYPES
from freeadv_jax.models.fast_conv import convolution_flop
from freeadv_jax.models.imported import OBJECT
from freeadv_jax.models.interface import as_model, logits_functions
from freeadv_jax.models.normalized import NormalizedNetwork
from freeadv_jax.models.preact_resnet import PreActResNet
from freeadv_jax.progress import duration
from freeadv_jax.recipes import CIFAR_10_STANDARDISATION
from freeadv_jax.runs.results import ResultsFolder, evaluate_and_record
from freeadv_jax.training.methods import METHODS
from freeadv_jax.training.multistep import STATE_LAYOUT
from freeadv_jax.training.optim import sgd
from freeadv_jax.training.state import create_state
from freeadv_jax.weights.classifier import as_classifier

EPSILON = 8 / 255
IMAGE_SHAPE = (32, 32, 3)
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that is chosen. Fractions are those of the time."""

    # The network: so many pixels a side are one; units and their width by stage.
    patch: int = 2
    features: tuple[int, ...] = (64, 128, 256)
    units: tuple[int, ...] = (2, 2, 2)
    dtype: str = "bfloat16"
    # The method: a name of METHODS, its settings and its step in epsilons.
    method: str = "n-fgsm"
    settings: tuple[tuple[str, object], ...] = (("n_fgsm_noise", 2.0),)
    step: float = 1.0
    # Epsilon rises from 0 in this first part.
    epsilon_rise: float = 0.2
    batch_size: int = 64
    # Pixels of zeros on each side, before the random crop.
    pad: int = 2
    # The peak of the learning rate, and the part in which it is reached.
    rate: float = 0.1
    rate_rise: float = 0.2
    weight_decay: float = 5e-4
    # Smoothing gained nothing under AutoAttack (docs/ablation.md).
    label_smoothing: float = 0.0
    average_decay: float = 0.998


RECIPE = Recipe()
_RANDOM = (("start", "random"), ("straight_through", False))
# Changes to the recipe that --probe compares with it.
CANDIDATES = {
    "recipe": {},
    "float32": {"dtype": "float32"},
    "half as many units": {"units": (1, 1, 1)},
    "1.5 times as wide": {"features": (96, 192, 384)},
    "PreActResNet-18 at half width": {
        "patch": 1,
        "features": (32, 64, 128, 256),
        "units": (2, 2, 2, 2),
    },
    "WRN-16-2 with a wider stem": {"patch": 1, "features": (32, 64, 128)},
    "less noise": {"settings": (("n_fgsm_noise", 1.0),)},
    "FGSM-RS": {"method": "fgsm-rs", "settings": (), "step": 1.25},
    "Free-2": {
        "method": "free",
        "settings": (("replays", 2), *_RANDOM),
        "step": 2.0,
    },
    "Free-4": {"method": "free", "settings": (("replays", 4), *_RANDOM)},
    "epsilon from the start": {"epsilon_rise": 0.0},
    "twice the rate": {"rate": 0.2},
    "half the rate": {"rate": 0.05},
    "batches of 128": {"batch_size": 128, "rate": 0.2},
    "label smoothing": {"label_smoothing": 0.1},
}
# Minibatches in a call of the compiled program, a few seconds of two cores.
PER_CALL = 8
SECONDS_BETWEEN_LINES = 30


class Patches(nn.Module):
    """Apply `network` to images whose squares of `side` pixels have become one pixel."""

    side: int
    network: nn.Module

    def __call__(self, images, *, train):
        b, h, w, c = images.shape
        s = self.side
        tiles = images.reshape(b, h // s, s, w // s, s, c).transpose(0, 1, 3, 2, 4, 5)
        return self.network(tiles.reshape(b, h // s, w // s, s * s * c), train=train)


def network(recipe, dtype):
    """Return the network for images in [0, 1], computed in `dtype`."""
    residual = PreActResNet(
        stem_features=recipe.features[0],
        features=recipe.features,
        units=recipe.units,
        num_classes=CLASSES,
        dtype=DTYPES[dtype],
        batch_norm_axis=parallel.AXIS,
    )
    return NormalizedNetwork(
        Patches(recipe.patch, residual), **CIFAR_10_STANDARDISATION
    )


def learning_rate(recipe, fraction):
    """Return the rate after this fraction of the time: it rises and falls along lines."""
    rising = fraction / recipe.rate_rise
    falling = (1 - fraction) / (1 - recipe.rate_rise)
    return recipe.rate * jnp.minimum(rising, falling)


def epsilon(recipe, fraction):
    """Return the radius to train for after this fraction of the time."""
    if not recipe.epsilon_rise:
        return EPSILON
    return EPSILON * jnp.minimum(fraction / recipe.epsilon_rise, 1)


def optimizer(recipe, fraction):
    """Return SGD with Nesterov's momentum at the learning rate of this moment."""
    return sgd(
        lambda _: learning_rate(recipe, fraction),
        momentum=0.9,
        nesterov=True,
        weight_decay=recipe.weight_decay,
        decayed="kernels",
    )


def attack_settings(recipe):
    """Return the settings of the method, and the fields that its cost depends on."""
    attack = base_config().attack.to_dict() | dict(recipe.settings)
    names = METHODS[recipe.method].settings
    return {name: attack[name] for name in names}, attack


def training_steps(recipe):
    """Return the function (state, minibatches, fraction) -> (state, mean metrics)."""
    settings, _ = attack_settings(recipe)
    model = as_model(network(recipe, recipe.dtype))

    def train_steps(state, minibatches, fraction):
        radius = epsilon(recipe, fraction)
        step = functools.partial(
            METHODS[recipe.method].step,
            model=model,
            tx=optimizer(recipe, fraction),
            threat=make_threat("linf", radius),
            step_size=recipe.step * radius,
            label_smoothing=recipe.label_smoothing,
            average_decay=recipe.average_decay,
            axis_name=parallel.AXIS,
            **settings,
        )
        stacked = jax.tree.map(lambda *arrays: jnp.stack(arrays), *minibatches)
        state, metrics = lax.scan(step, state, stacked)
        return state, jax.tree.map(jnp.mean, metrics)

    return train_steps


def train(recipe, split, *, seed, minutes, title, clock=time.perf_counter):
    """Return the averaged variables after so many minutes, and what the training took.

    Raise TrainingStoppedError where the loss is not finite, and InputError where the time
    ends before the first update.
    """
    begun, budget = clock(), 60 * minutes
    batches = array_batches(
        split, batch_size=recipe.batch_size, seed=seed, pad=recipe.pad, flip=True
    )(0)
    minibatches = tuple(itertools.islice(batches, PER_CALL))
    state = parallel.place(first_state(recipe, seed), STATE_LAYOUT)
    kernels = onednn.choose(onednn.AUTO)
    program = parallel.pmap(
        onednn.with_kernels(kernels, training_steps(recipe)),
        inputs=(STATE_LAYOUT, SPLIT, REPLICATED),
        outputs=(STATE_LAYOUT, REPLICATED),
        donate=0,
    )
    program = program.lower(state, minibatches, np.float32(0)).compile()
    compiled = spent = clock() - begun
    calls, call, next_line, metrics = 0, 0.0, 0.0, {}
    # A call that would not end in time is not begun.
    while spent + call < budget:
        state, metrics = program(state, minibatches, np.float32(spent / budget))
        minibatches = tuple(itertools.islice(batches, PER_CALL))
        metrics = {name: float(value) for name, value in metrics.items()}
        now = clock() - begun
        calls, call, spent = calls + 1, now - spent, now
        if not math.isfinite(metrics["loss"]):
            raise TrainingStoppedError(f"{title}: the loss is {metrics['loss']}")
        if spent > next_line:
            next_line = spent + SECONDS_BETWEEN_LINES
            said = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            times = f"{duration(spent)} of {duration(budget)}"
            say(f"{title}: {times}, {calls * PER_CALL} minibatches  {said}")
    if not calls:
        raise InputError(f"--minutes {minutes:g}: compilation takes {compiled:.0f} s")
    variables = parallel.fetch(state).variables
    seconds = clock() - begun
    return variables, {
        "seconds": seconds,
        "compile_seconds": compiled,
        "convolutions": kernels,
        **amounts(recipe, variables, calls * PER_CALL, len(split.labels)),
        **metrics,
    }


def first_state(recipe, seed):
    """Return the state before the first minibatch."""
    create = functools.partial(
        create_state,
        network(recipe, recipe.dtype),
        optimizer(recipe, 0.0),
        batch_size=recipe.batch_size,
        image_shape=IMAGE_SHAPE,
        averaged=True,
    )
    return jax.jit(create)(np.uint32(seed))


def amounts(recipe, variables, minibatches, examples):
    """Return the updates, passes over the data and FLOP of so many minibatches."""
    method, (_, attack) = METHODS[recipe.method], attack_settings(recipe)
    updates = minibatches * method.updates(attack)
    image = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), jnp.float32)
    logits = as_model(network(recipe, "float32")).logits
    forward = convolution_flop(logits, variables, image)
    passes = method.forward_passes(attack) * updates
    return {
        "updates": updates,
        "passes_over_the_data": minibatches * recipe.batch_size / examples,
        "flop": forward * passes * recipe.batch_size,
    }


def finished(
    recipe, folder, *, seed, minutes, train_on, evaluate_on, attacks, examples
):
    """Train and evaluate a model unless `folder` has it; return its results.json.

    Raise InputError where the folder holds a model of another recipe.
    """
    title, model_folder = folder.name, folder / "model"
    made = {"recipe": dataclasses.asdict(recipe), "seed": seed, "minutes": minutes}
    made = json.loads(json.dumps(made))  # A tuple is a list in a file.
    model = network(recipe, "float32")
    folder.mkdir(parents=True, exist_ok=True)
    with sole_writer(folder):
        if not model_folder.exists():
            variables, training = train(
                recipe, train_on, seed=seed, minutes=minutes, title=title
            )
            as_classifier(
                model,
                variables,
                num_classes=CLASSES,
                image_shape=IMAGE_SHAPE,
                description={
                    "model": f"{OBJECT}speedrun",
                    "threat": {"norm": "linf", "epsilon": EPSILON},
                    "training": made | training,
                },
            ).save(model_folder)
        classifier = fa.load(model_folder, model=model)
        training = classifier.description["training"]
        if {name: training[name] for name in made} != made:
            raise InputError(
                f"{folder} has a model of another recipe; use another --folder"
            )
        return evaluate_and_record(
            logits_functions(model)(classifier.variables),
            evaluate_on.images,
            evaluate_on.labels,
            named_attacks(
                attacks,
                norm="linf",
                epsilon=EPSILON,
                step_size=EPSILON / 4,
                num_classes=CLASSES,
            ),
            into=ResultsFolder(folder, {"training": training}),
            batch_size=64,
            seed=0,
            examples=examples,
        )


def probe(names, options, minutes):
    """Return {candidate: training and evaluation on held-out images}, and print them."""
    dataset = load_arrays("cifar10", options.data, validation_examples=HELD_OUT)
    found = {}
    for name in names:
        results = finished(
            dataclasses.replace(RECIPE, **CANDIDATES[name]),
            options.folder / f"probe-{minutes:g}-minutes" / name.replace(" ", "-"),
            seed=0,
            minutes=minutes,
            train_on=dataset.train,
            evaluate_on=dataset.validation,
            attacks=("natural", "apgd-ce"),
            examples=options.examples,
        )
        found[name] = _outcome(results)
        show(name, found[name])
    say("\nby accuracy under APGD-CE on held-out images:")
    best = sorted(found, key=lambda name: -_accuracy(found[name], "apgd-ce"))
    for name in best:
        show(name, found[name])
    return found


def measure(options, minutes):
    """Return the runs of the recipe, and the mean and deviation of their accuracies."""
    dataset = load_arrays("cifar10", options.data, validation_examples=0)
    runs = []
    for seed in range(options.runs):
        results = finished(
            RECIPE,
            options.folder / f"{minutes:g}-minutes" / f"run-{seed}",
            seed=seed,
            minutes=minutes,
            train_on=dataset.train,
            evaluate_on=dataset.test,
            attacks=("natural", "autoattack"),
            examples=options.examples,
        )
        runs.append(_outcome(results))
        show(f"run {seed}", runs[-1])
    summary = {}
    for attack in ("natural", "autoattack"):
        values = [_accuracy(run, attack) for run in runs]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        summary[attack] = {"mean": statistics.mean(values), "deviation": deviation}
        say(f"{attack}: mean {statistics.mean(values):.2%} of {len(values)} runs")
    return {"minutes": minutes, "runs": runs, "accuracy": summary}


def _outcome(results):
    names = ("training", "evaluation", "environment")
    return {name: results[name] for name in names}


def _accuracy(outcome, attack):
    return outcome["evaluation"][attack]["accuracy"]


def show(name, outcome):
    """Print one line: the training's amounts and the accuracies."""
    training, evaluation = outcome["training"], outcome["evaluation"]
    accuracies = "".join(
        f"  {attack} {row['accuracy']:6.2%}" for attack, row in evaluation.items()
    )
    say(
        f"{name:30}{training['seconds'] / 60:6.2f} min{training['updates']:7} updates"
        f"{training['passes_over_the_data']:6.1f} passes{training['flop']:9.2e} FLOP"
        f"{accuracies}"
    )


def main(argv):
    options = _parser().parse_args(argv[1:])
    probing = options.probe is not None
    minutes = (
        (10.0 if probing else 60.0) if options.minutes is None else options.minutes
    )
    if minutes <= 0:
        raise InputError(f"--minutes {minutes:g}: must be above 0")
    if probing:
        results = probe(options.probe or CANDIDATES, options, minutes)
    else:
        results = measure(options, minutes)
    name = "speedrun_probe" if probing else "speedrun"
    write_record(options.out or f"benchmarks/results/{name}.json", results)


def _parser():
    parser = Parser("benchmarks.speedrun", __doc__)
    add = parser.add_argument
    add("--data", metavar="DIR", required=True, help="the folder of CIFAR-10")
    add(
        "--minutes",
        type=number,
        help="time of each training, compilation included; default: 60, with --probe 10",
    )
    add("--runs", type=count, default=3, help="trainings, each with its own seed")
    add(
        "--probe",
        nargs="*",
        choices=CANDIDATES,
        metavar="NAME",
        help="candidates to compare; without a name all; default: none",
    )
    add("--examples", type=count, default=1000, help="images to evaluate on")
    add(
        "--folder",
        metavar="DIR",
        type=pathlib.Path,
        default="runs/speedrun",
        help="folder for the models",
    )
    add(
        "--out",
        metavar="FILE",
        help="the record to write; default: in benchmarks/results",
    )
    return parser


if __name__ == "__main__":
    run_command(main)
