"""Signs that gradients are masked, and that a robust accuracy is therefore too high.

The questions are those of Athalye et al. (ICML 2018) and Carlini et al. (2019).
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from freeadv_jax.attacks.campaign import Campaign, Images
from freeadv_jax.attacks.checks import (
    check_finite,
    check_step_size,
    check_threat,
    is_probabilities,
    largest_difference,
)
from freeadv_jax.attacks.kernels import kernels_for, traced_with
from freeadv_jax.attacks.noise import Noise
from freeadv_jax.attacks.pgd import PGD
from freeadv_jax.attacks.runner import BATCH_SIZE, classes_of, examples_of
from freeadv_jax.attacks.square import Square
from freeadv_jax.attacks.threat import make_threat
from freeadv_jax.attacks.user_model import arrays_as_leaves
from freeadv_jax.devices import onednn
from freeadv_jax.pixels import Numbers

# A sample of this size is large enough for all questions.
CHECKED_IMAGES = 200
FEW_STEPS, STEPS = 10, 50
# Images that resist the cross-entropy are attacked on the margin from twice the starts,
# in half the steps of twice the size. On digits that broke more images than as many
# longer ascents.
RESTARTS = 4
# The steps together are 2.5 times as long as the radius.
UNBOUNDED_STEPS, UNBOUNDED_PATH = 100, 2.5
NOISE_POINTS, SQUARE_QUERIES = 200, 500
# The radii of the curve, as multiples of the epsilon of the evaluation.
GRID = (0.25, 0.5, 1, 2, 4)

# Chance decides which of two attacks breaks an image near the border. One is called
# weaker if the images that only one of the two broke speak against it so clearly that a
# fair coin would do so in less than 1 of 100 cases: all of 7, or 16 of 20.
SIGNIFICANCE = 0.01
# More starts break a few more images of any model: 4 points of Free-8 on digits, and 9
# in L2, for which it was not trained. Beyond this, one start is no measure of the model.
RESTART_GAIN = 0.1
# The share of images by which PGD on one loss may be weaker than on the other. Some
# models differ by a few points without masking their gradients.
LOSS_GAP = 0.1
# The share of all images that attacks without gradients may break beyond PGD. One image
# is always allowed: a share below it cannot be told from none.
MISSED = 0.002
# The share of the correctly classified images whose gradient may be zero without a reason.
# Every unit can be off at an image, which says nothing about its neighbourhood: such
# images are suspicious if an attack without gradients breaks what PGD left, or if they
# are many.
NO_GRADIENT, MOST_WITHOUT_GRADIENT = 0.01, 0.5
# The part of a pixel that rounding alone can move it.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Flag:
    """Hold the answer to one question: `text` for people, and its `numbers`."""

    name: str
    suspicious: bool
    text: str
    numbers: dict


def red_flags(
    logits_fn: Callable,
    images: Numbers | Images,
    labels: Numbers,
    *,
    norm: str = "linf",
    epsilon: float,
    step_size: float | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    convolutions: str = onednn.AUTO,
    watch: Callable | None = None,
) -> list[Flag]:
    """Return the answers to eight questions about masked gradients, from attacks.

    Args:
        logits_fn: as for `pgd`.
        images: [n, h, w, c], floats in [0, 1] or uint8; 200 images are enough.
        labels: n integers, an array or a list.
        norm: 'linf' or 'l2', as in the evaluation.
        epsilon: the epsilon of the evaluation in [0, 1] pixels, such as `8 / 255`.
        step_size: the step size of the evaluation's PGD; the default is epsilon / 4.
        batch_size: the images attacked at a time. It bounds the memory and does not
            change the answers.
        seed: the seed of all random choices.
        convolutions: 'auto', 'xla' or 'onednn', as for `robust_accuracy`.
        watch: is called as `watch(attack, done, standing)` during an attack, with its
            name, the attempts decided, with a fraction for those under way, and bool[n]:
            the images not broken so far.

    Returns:
        A list of `Flag`.

    Raises:
        InputError: for unusable images, labels, settings or logits.
    """
    check_threat(norm, epsilon)
    step_size = epsilon / 4 if step_size is None else step_size
    check_step_size(step_size)
    images, labels = examples = examples_of(images, labels, raw=True)
    classes_of(logits_fn, examples)
    logits_fn = arrays_as_leaves(logits_fn)
    threat = {"norm": norm, "epsilon": epsilon}
    pgd = functools.partial(PGD, **threat, steps=STEPS, step_size=step_size)
    square = Square(**threat, steps=SQUARE_QUERIES)
    longest = [pgd(restarts=RESTARTS), square]
    kernels = kernels_for(convolutions, longest, logits_fn, images)
    logits_fn = traced_with(kernels, logits_fn)
    campaign = Campaign(batch_size=batch_size, seed=seed)
    logits, again = (campaign.logits(logits_fn, images) for _ in range(2))
    check_finite(logits)
    right = logits.argmax(axis=-1) == labels
    largest = make_threat(norm, epsilon).box_radius(images.shape[1:])

    def attack(attack, of=right, **options):
        """Return which of the images are not broken, bool[n]."""
        if watch:
            name = type(attack).__name__
            options["watch"] = lambda done, robust, _: watch(name, done, robust)
        return campaign.attack(attack, logits_fn, images, labels, of, **options)

    one = attack(pgd())
    finished = np.zeros((RESTARTS, len(images)), bool)
    finished[0] = True
    several = attack(pgd(restarts=RESTARTS), one, finished=finished)
    by_margin = attack(pgd(loss="margin"))
    margin = {"loss": "margin", "steps": STEPS // 2, "step_size": 2 * step_size}
    left = attack(pgd(**margin, restarts=2 * RESTARTS), several)
    noise = Noise(**threat, steps=NOISE_POINTS)
    after_noise = attack(noise)
    after_square = attack(square, left)
    missed = left & ~(after_noise & after_square)
    still = _without_gradient(attack, pgd, images.shape, right)
    gradients = _gradients(still, right, missed)
    # These images have their own question.
    excused = np.logical_and.reduce([*still.values(), ~missed])
    excused &= not gradients.suspicious
    return [
        _steps_and_restarts(attack, pgd, one, several),
        _losses(one, by_margin),
        _unbounded_attack(attack, pgd, largest, excused),
        _random_noise(noise, after_noise, one, left),
        _square(square, after_square, left),
        gradients,
        _forward_pass(logits, again),
        _epsilon_curve(attack, pgd, largest, right, one),
    ]


def _steps_and_restarts(attack, pgd, one, several):
    """Ask whether more steps weaken the attack, and whether it lives on its restarts.

    Steps are compared by the last iterate: the best of more iterates is never worse.
    """
    few, many = (
        attack(pgd(steps=steps, last_iterate=True)) for steps in (FEW_STEPS, STEPS)
    )
    return Flag(
        "steps and restarts",
        weaker(many, few) or bool(one.mean() - several.mean() > RESTART_GAIN),
        f"the last iterate of PGD leaves {few.mean():.2%} after {FEW_STEPS} steps, "
        f"{many.mean():.2%} after {STEPS} (fallen to the few alone: "
        f"{np.sum(many & ~few)}, to the many alone: {np.sum(few & ~many)}); the best "
        f"leaves {one.mean():.2%} from one start, {several.mean():.2%} from {RESTARTS}",
        {
            "accuracy_by_steps": {FEW_STEPS: few.mean(), STEPS: many.mean()},
            "accuracy_by_starts": {1: one.mean(), RESTARTS: several.mean()},
        },
    )


def _losses(cross_entropy, margin):
    """Ask whether PGD on one of the two losses is weaker than on the other."""
    weak, strong = "cross-entropy", "margin"
    if margin.mean() > cross_entropy.mean():
        weak, strong = strong, weak
    apart = abs(float(margin.mean() - cross_entropy.mean()))
    differ = weaker(cross_entropy, margin) or weaker(margin, cross_entropy)
    suspicious = differ and apart > LOSS_GAP
    advice = f"; the {weak} is weaker here, believe the {strong}" if suspicious else ""
    return Flag(
        "losses",
        suspicious,
        f"PGD on the cross-entropy leaves {cross_entropy.mean():.2%}, on the margin "
        f"{margin.mean():.2%}{advice}",
        {
            "accuracy_by_loss": {
                "cross-entropy": cross_entropy.mean(),
                "margin": margin.mean(),
            }
        },
    )


def _unbounded_attack(attack, pgd, largest, excused):
    """Ask whether an attack without bound breaks every image with a gradient.

    It starts at the images themselves: random starts so far away break any model. An image
    at which every unit is off has nowhere to go from there, and is excused.
    """
    unbounded = functools.partial(
        pgd,
        epsilon=largest,
        steps=UNBOUNDED_STEPS,
        step_size=UNBOUNDED_PATH * largest / UNBOUNDED_STEPS,
        random_start=False,
    )
    left = attack(unbounded(loss="margin"), attack(unbounded()))
    nowhere = int(np.sum(left & excused))
    without = f"; {nowhere} have no gradient where they are" if nowhere else ""
    return Flag(
        "unbounded attack",
        bool(np.any(left & ~excused)),
        f"PGD with epsilon {largest:.4g} leaves {left.mean():.2%} ({left.sum()} of "
        f"{len(left)} images{without})",
        {"epsilon": largest, "accuracy": left.mean()},
    )


def _random_noise(noise, standing, one, left):
    """Ask whether noise is stronger than PGD, or breaks what all PGD did not."""
    missed, allowed = _missed(left, standing)
    return Flag(
        "random noise",
        missed > allowed or weaker(one, standing),
        f"{noise.steps} random points leave {standing.mean():.2%}, PGD "
        f"{one.mean():.2%}; they break {missed} of the {left.sum()} images that all "
        f"PGD left ({allowed} allowed)",
        {"accuracy": standing.mean(), "pgd": one.mean(), "missed": missed},
    )


def _square(square, standing, left):
    """Ask whether Square breaks more of the images that PGD left than chance allows."""
    missed, allowed = _missed(left, standing)
    point = 100 / len(left)
    return Flag(
        "Square",
        missed > allowed,
        f"{square.steps} queries break {missed} of the {left.sum()} images that all PGD "
        f"left: {missed * point:.2f} points, allowed {allowed * point:.2f} ({allowed} of "
        f"{len(left)} images)",
        {"accuracy": standing.mean(), "pgd": left.mean(), "missed": missed},
    )


def _without_gradient(attack, pgd, shape, right):
    """Return, by the loss, the images from which a step of PGD leads nowhere, bool[n]."""
    still = {}
    for loss in ("cross-entropy", "margin"):
        before, after = np.zeros((2, *shape), np.float32)
        step = functools.partial(pgd, loss=loss, random_start=False, last_iterate=True)
        attack(step(steps=0), adversarial=before)
        attack(step(steps=1, step_size=pgd().epsilon), adversarial=after)
        moved = abs(after - before).max(axis=(1, 2, 3)) > _ROUNDING
        still[loss] = right & ~moved
    return still


def _gradients(still, right, missed):
    """Ask at how many images the gradient is zero, and whether that hides successes."""
    broken = any(np.any(missed & images) for images in still.values())
    limit = NO_GRADIENT if broken else MOST_WITHOUT_GRADIENT
    zero = {
        loss: float(images.sum() / max(1, right.sum()))
        for loss, images in still.items()
    }
    return Flag(
        "gradients",
        max(zero.values()) > limit,
        f"zero in float32 at {zero['cross-entropy']:.2%} of the images classified "
        f"right for the cross-entropy, at {zero['margin']:.2%} for the margin",
        {"zero": zero},
    )


def _forward_pass(logits, again):
    """Ask whether two passes are equal, and whether the model returns logits."""
    equal = np.array_equal(logits, again, equal_nan=True)
    probabilities = is_probabilities(logits)
    apart = largest_difference(logits, again)
    passes = "are equal to the bit" if equal else f"differ by up to {apart:.3g}"
    kind = "probabilities, not logits," if probabilities else "logits"
    return Flag(
        "forward pass",
        not equal or probabilities,
        f"two passes over {len(logits)} images {passes}; the model gives {kind} from "
        f"{logits.min():.4g} to {logits.max():.4g}",
        {"difference": apart, "probabilities": probabilities},
    )


def _epsilon_curve(attack, pgd, largest, right, one):
    """Ask whether accuracy falls with epsilon; step sizes are in proportion."""
    usual = pgd()
    standing = {0.0: right}
    for part in GRID:
        radius = min(part * usual.epsilon, largest)
        sized = pgd(epsilon=radius, step_size=usual.step_size * radius / usual.epsilon)
        standing[radius] = one if part == 1 else attack(sized)
    rises = [
        f"; it rises from {smaller:.4g} to {larger:.4g}"
        for smaller, larger in itertools.pairwise(standing)
        if weaker(standing[larger], standing[smaller])
    ]
    curve = {radius: images.mean() for radius, images in standing.items()}
    shown = ", ".join(f"{curve[radius]:.2%} at {radius:.4g}" for radius in curve)
    text = f"accuracy {shown}{''.join(rises)}"
    return Flag("epsilon curve", bool(rises), text, {"accuracy": curve})


def _missed(left, standing):
    """Return how many of the images left an attack broke, and how many it may."""
    return int(np.sum(left & ~standing)), max(1, int(MISSED * len(left)))


def weaker(one, other):
    """Return whether the attack that left `one` unbroken is weaker than that of `other`."""
    against, in_favour = int(np.sum(one & ~other)), int(np.sum(other & ~one))
    tosses = against + in_favour
    tail = sum(math.comb(tosses, heads) for heads in range(against, tosses + 1))
    return tail / 2**tosses < SIGNIFICANCE
