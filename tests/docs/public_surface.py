"""A typed program that uses every public name: mypy checks it, and no test runs it."""

import pathlib
from typing import assert_type

import flax.linen as nn
import jax
import numpy as np
import optax

import freeadv_jax as fa
from freeadv_jax.attacks import (
    Flag,
    Outcome,
    apgd,
    autoattack,
    bpda,
    fab,
    fgsm,
    fmn,
    pgd,
    red_flags,
    square,
    verdict,
)
from freeadv_jax.attacks.robustness import RobustAccuracy
from freeadv_jax.attacks.threat import L1, L2, Linf
from freeadv_jax.certify import (
    Certificates,
    Smoothed,
    alpha_crown,
    crown,
    interval,
    smooth,
)
from freeadv_jax.corrupted.accuracy import CorruptionAccuracy
from freeadv_jax.errors import InputError, TrainingStoppedError
from freeadv_jax.models.interface import Model, as_model
from freeadv_jax.training.methods import METHODS, Method
from freeadv_jax.weights.classifier import Classifier


def trained(module: nn.Module, images: np.ndarray, labels: np.ndarray) -> Classifier:
    """Return a classifier that was trained, saved and loaded."""
    try:
        classifier = fa.fit(
            module,
            images,
            labels,
            method="free",
            norm="linf",
            epsilon=8 / 255,
            replays=8,
            updates=80,
            batch_size=64,
            optimizer=optax.adam(1e-3),
            validation=100,
            workdir=pathlib.Path("runs/typed"),
            seed=0,
            progress=True,
        )
    except (InputError, TrainingStoppedError) as fault:
        raise SystemExit(str(fault)) from fault
    assert_type(classifier, Classifier)
    classifier.save("exported")
    return fa.load("exported", model=module)


def evaluated(classifier: Classifier, images: jax.Array, labels: jax.Array) -> float:
    """Return a robust accuracy after attacks of every kind."""
    table = fa.robust_accuracy(
        classifier, images, labels, attacks=("natural", "pgd-20")
    )
    assert_type(table, RobustAccuracy)
    flags: list[Flag] = red_flags(classifier, images, labels, norm="l2", epsilon=0.5)
    assert_type(verdict(flags), str)
    errors = fa.corruptions(classifier, images, labels, kinds=["fog"], progress=True)
    assert_type(errors, CorruptionAccuracy)
    rounded = bpda(lambda x: np.round(x), lambda x: x)
    outcomes: list[Outcome] = [
        fgsm(classifier, images, labels, norm="linf", epsilon=8 / 255),
        pgd(classifier, images, labels, norm="linf", epsilon=8 / 255, steps=10),
        apgd(lambda x, keys: rounded(x), images, labels, epsilon=8 / 255, samples=20),
        fab(classifier, images, labels, norm="linf", epsilon=8 / 255),
        fmn(classifier, images, labels, norm="l2"),
        square(classifier, images, labels, norm="linf", epsilon=8 / 255),
        autoattack(classifier, images, labels, norm="linf", epsilon=8 / 255),
    ]
    broken = np.mean([np.mean(outcome.success) for outcome in outcomes])
    accuracy = float(table.rows["pgd-20"]["accuracy"])
    return float(broken) + len(flags) + accuracy - errors.mean_error


def certified(classifier: Classifier, images: jax.Array, labels: jax.Array) -> float:
    """Return a share of certified images after bounds of every kind."""
    found: list[Certificates] = [
        interval(classifier, images, labels, norm="linf", epsilon=8 / 255),
        crown(classifier, images, labels, norm="l2", epsilon=0.1, intermediate="ibp"),
        alpha_crown(classifier, images, labels, epsilon=8 / 255, steps=10),
    ]
    smoothed: Smoothed = smooth(classifier, images, labels, sigma=0.25, samples=100)
    shares = [np.mean(each.certified) for each in found]
    return float(np.mean(shares)) + smoothed.certified_accuracy(0.1)


def named(module: nn.Module) -> tuple[Model, Method, Linf, L2, L1]:
    """Return one object of each class that describes a training."""
    return as_model(module), METHODS["free"], Linf(8 / 255), L2(0.5), L1(12.0)
