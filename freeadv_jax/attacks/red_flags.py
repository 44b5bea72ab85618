"""Signs that gradients are masked, and that a robust accuracy is therefore too high.

The questions are those of Athalye et al. (ICML 2018) and Carlini et al. (2019).
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from freeadv_jax.attacks.campaign import Campaign, Images
from freeadv_jax.attacks.checks import (
    check_finite,
    check_samples,
    check_step_size,
    check_threat,
    is_probabilities,
    largest_difference,
)
from freeadv_jax.attacks.draws import randomized
from freeadv_jax.attacks.gradients import narrow_floats
from freeadv_jax.attacks.kernels import kernels_for, traced_with
from freeadv_jax.attacks.noise import Noise
from freeadv_jax.attacks.pgd import PGD
from freeadv_jax.attacks.runner import BATCH_SIZE, classes_of, examples_of
from freeadv_jax.attacks.square import Square
from freeadv_jax.attacks.threat import make_threat
from freeadv_jax.devices import onednn
from freeadv_jax.models.user_model import arrays_as_leaves
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
# The share of the correctly classified images at which a gradient may mislead: random points
# raise the loss more, or it promises much less or more than steps give.
MISLED = 0.25
# Random points move the loss by less than the gradient allows, unless the model curves.
VANISHED = 3.0
# A step may rise by so much less than the gradient promises, before the gradient is one of
# another scale.
EXPLODED = 100.0
# The gradients of two means of draws should agree at least so well.
LEAST_AGREEMENT = 0.1
# Attacks on a randomised model are compared with those that average so many times the draws.
MORE_DRAWS = 4
# Where the label leads by the first number, 1 - p rounds to 0 in float32, and the direction
# of the cross-entropy gradient is wrong. Beyond the second all other probabilities are 0,
# and so is the gradient. Trained networks reach the first at some images, and none the
# second.
ROUNDED_LEAD, SATURATED_LEAD = 17.0, 87.0
SATURATED = 0.1
# The part of a pixel that rounding alone can move it.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Flag:
    """Hold the answer to one question: `text` for people, and its `numbers`.

    `advice` says what to try next; it is empty unless the answer is suspicious.
    """

    name: str
    suspicious: bool
    text: str
    numbers: dict
    advice: str = ""


def red_flags(
    logits_fn: Callable,
    images: Numbers | Images,
    labels: Numbers,
    *,
    norm: str = "linf",
    epsilon: float,
    step_size: float | None = None,
    samples: int | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    convolutions: str = onednn.AUTO,
    watch: Callable | None = None,
) -> list[Flag]:
    """Return the answers to 13 questions about masked gradients, from attacks.

    They cover what Athalye et al. (ICML 2018) call shattered, random and vanishing
    gradients, saturated logits, and float types too coarse for gradients. `verdict` puts
    the answers into words.

    Args:
        logits_fn: as for `pgd`.
        images: [n, h, w, c], floats in [0, 1] or uint8; 200 images are enough.
        labels: n integers, an array or a list.
        norm: 'linf', 'l2' or 'l1', as in the evaluation.
        epsilon: the epsilon of the evaluation in [0, 1] pixels, such as `8 / 255`.
        step_size: the step size of the evaluation's PGD; the default is epsilon / 4.
        samples: for a randomised model, the draws that attacks average, as for `pgd`.
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
    check_samples(samples)
    images, labels = examples = examples_of(images, labels, raw=True)
    random = samples is not None
    if random:
        logits_fn = randomized(logits_fn)
    classes_of(logits_fn, examples)
    logits_fn = arrays_as_leaves(logits_fn)
    narrow = narrow_floats(logits_fn, images, randomized=random)
    threat = {"norm": norm, "epsilon": epsilon, "samples": samples}
    pgd = functools.partial(PGD, **threat, steps=STEPS, step_size=step_size)
    square = Square(**threat, steps=SQUARE_QUERIES)
    longest = [pgd(restarts=RESTARTS), square]
    kernels = kernels_for(convolutions, longest, logits_fn, images)
    logits_fn = traced_with(kernels, logits_fn, looped=random)
    campaign = Campaign(batch_size=batch_size, seed=seed)
    logits, again = (campaign.logits(logits_fn, images) for _ in range(2))
    check_finite(logits)
    right = logits.argmax(axis=-1) == labels
    measured, measured_again = (
        campaign.gradients(
            logits_fn,
            images,
            labels,
            **threat,
            step_size=step_size,
            precision=max(
                float(jnp.finfo(getattr(jnp, kind)).eps)
                for kind in (*narrow, "float32")
            ),
        )
        for _ in range(2)
    )
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
        _shattered_gradients(measured, right),
        _vanishing_gradients(measured, right),
        _random_draws(attack, pgd, measured, right, one)
        if random
        else _random_gradients(measured, measured_again),
        _saturated_logits(measured, right),
        _float_type(measured, narrow),
    ]


def verdict(flags: Iterable[Flag]) -> str:
    """Put red flags into words: which are raised, their numbers, and what to try next.

    The first line says how many are raised, each of them has a line of its own, and so has
    each thing to try.
    """
    flags = list(flags)
    raised = [flag for flag in flags if flag.suspicious]
    lines = [verdict_line(len(raised), len(flags))]
    lines += [f"{flag.name}: {flag.text}" for flag in raised]
    lines += [
        f"try next: {advice}" for advice in {flag.advice: None for flag in raised}
    ]
    return "\n".join(lines)


def verdict_line(raised: int, questions: int) -> str:
    """Return what so many raised flags mean, in one line."""
    if not raised:
        return f"none of the {questions} questions points to masked gradients"
    return (
        f"{raised} of {questions} red flags are raised: the robust accuracy may be lower "
        "than measured"
    )


_BPDA = (
    "BPDA, which gives the part without a useful gradient another's "
    "(freeadv_jax.attacks.bpda); without knowing that part, a transfer attack: images made "
    "on another model of the same data"
)
_RESTARTS = (
    "more restarts and smaller steps (pgd-100-x10), and APGD, which sizes its steps"
)
_EOT = (
    "EOT: write the model as a function of images and keys, and give samples=, over which "
    "gradients are averaged"
)
_LOGITS = "leave the softmax out, so that attacks see the logits"
_MARGIN = (
    "attacks on the margin (cw-100, apgd-t), or on the logits divided by their temperature; "
    "other people's attacks on the cross-entropy fail here"
)
_FLOATS = (
    "the same weights in float32; or make the images on a float32 copy and classify them "
    "by this model (a transfer attack)"
)


def _flag(name, suspicious, text, numbers, *, advice):
    """Return a flag that gives its advice only where it is suspicious."""
    suspicious = bool(suspicious)
    return Flag(name, suspicious, text, numbers, advice if suspicious else "")


def _steps_and_restarts(attack, pgd, one, several):
    """Ask whether more steps weaken the attack, and whether it lives on its restarts.

    Steps are compared by the last iterate: the best of more iterates is never worse.
    """
    few, many = (
        attack(pgd(steps=steps, last_iterate=True)) for steps in (FEW_STEPS, STEPS)
    )
    return _flag(
        "steps and restarts",
        weaker(many, few) or one.mean() - several.mean() > RESTART_GAIN,
        f"the last iterate of PGD leaves {few.mean():.2%} after {FEW_STEPS} steps, "
        f"{many.mean():.2%} after {STEPS} (fallen to the few alone: "
        f"{np.sum(many & ~few)}, to the many alone: {np.sum(few & ~many)}); the best "
        f"leaves {one.mean():.2%} from one start, {several.mean():.2%} from {RESTARTS}",
        {
            "accuracy_by_steps": {FEW_STEPS: few.mean(), STEPS: many.mean()},
            "accuracy_by_starts": {1: one.mean(), RESTARTS: several.mean()},
        },
        advice=_RESTARTS,
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
    return _flag(
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
        advice="AutoAttack, which attacks several losses",
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
    return _flag(
        "unbounded attack",
        np.any(left & ~excused),
        f"PGD with epsilon {largest:.4g} leaves {left.mean():.2%} ({left.sum()} of "
        f"{len(left)} images{without})",
        {"epsilon": largest, "accuracy": left.mean()},
        advice=_BPDA,
    )


def _random_noise(noise, standing, one, left):
    """Ask whether noise is stronger than PGD, or breaks what all PGD did not."""
    missed, allowed = _missed(left, standing)
    return _flag(
        "random noise",
        missed > allowed or weaker(one, standing),
        f"{noise.steps} random points leave {standing.mean():.2%}, PGD "
        f"{one.mean():.2%}; they break {missed} of the {left.sum()} images that all "
        f"PGD left ({allowed} allowed)",
        {"accuracy": standing.mean(), "pgd": one.mean(), "missed": missed},
        advice=_BPDA,
    )


def _square(square, standing, left):
    """Ask whether Square breaks more of the images that PGD left than chance allows."""
    missed, allowed = _missed(left, standing)
    point = 100 / len(left)
    return _flag(
        "Square",
        missed > allowed,
        f"{square.steps} queries break {missed} of the {left.sum()} images that all PGD "
        f"left: {missed * point:.2f} points, allowed {allowed * point:.2f} ({allowed} of "
        f"{len(left)} images)",
        {"accuracy": standing.mean(), "pgd": left.mean(), "missed": missed},
        advice=f"Square with its 5,000 queries, and {_BPDA}",
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
    return _flag(
        "gradients",
        max(zero.values()) > limit,
        f"zero in float32 at {zero['cross-entropy']:.2%} of the images classified "
        f"right for the cross-entropy, at {zero['margin']:.2%} for the margin",
        {"zero": zero},
        advice=_BPDA,
    )


def _forward_pass(logits, again):
    """Ask whether two passes are equal, and whether the model returns logits."""
    equal = np.array_equal(logits, again, equal_nan=True)
    probabilities = is_probabilities(logits)
    apart = largest_difference(logits, again)
    passes = "are equal to the bit" if equal else f"differ by up to {apart:.3g}"
    kind = "probabilities, not logits," if probabilities else "logits"
    return _flag(
        "forward pass",
        not equal or probabilities,
        f"two passes over {len(logits)} images {passes}; the model gives {kind} from "
        f"{logits.min():.4g} to {logits.max():.4g}",
        {"difference": apart, "probabilities": probabilities},
        advice=_LOGITS if equal else _EOT,
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
    numbers = {"accuracy": curve}
    return _flag("epsilon curve", rises, text, numbers, advice=_RESTARTS)


def _shattered_gradients(measured, right):
    """Ask whether random points of the ball raise the loss more than the gradient does.

    Shattered gradients are missing or wrong (Athalye et al., 3.1). An image around which
    nothing raises the loss says nothing.
    """
    raised = measured.surge > measured.rounding
    stuck = _share(raised & (measured.rise.max(axis=-1) < measured.surge), right)
    return _flag(
        "shattered gradients",
        stuck > MISLED,
        f"random points raise the loss more than a step along the gradient at {stuck:.2%} of "
        f"the images classified right ({MISLED:.0%} allowed)",
        {"stuck": stuck},
        advice=_BPDA,
    )


def _vanishing_gradients(measured, right):
    """Ask whether the size of the gradient fits what steps and random points give.

    Vanishing and exploding gradients come from long computations (Athalye et al., 3.3). A
    random point moves the loss by at most the dual norm of the gradient times epsilon, as
    far as the loss is linear.
    """
    moves = measured.swing > measured.rounding
    vanished = _share(moves & (measured.swing > VANISHED * measured.most), right)
    little = ~(measured.rise * EXPLODED >= measured.promised)
    little &= measured.promised > measured.rounding[:, None]
    exploded = _share(little.all(axis=-1), right)
    return _flag(
        "vanishing gradients",
        max(vanished, exploded) > MISLED,
        f"random points move the loss {VANISHED:g} times as far as the gradient allows at "
        f"{vanished:.2%} of the images classified right; steps give less than 1 / "
        f"{EXPLODED:g} of what the gradient promises at {exploded:.2%} ({MISLED:.0%} "
        "allowed)",
        {"vanished": vanished, "exploded": exploded},
        advice=_BPDA,
    )


def _random_gradients(measured, again):
    """Ask whether the gradients of two passes are equal."""
    differ = np.zeros(len(measured.lead), bool)
    for one, other in zip(measured, again, strict=True):
        close = np.isclose(one, other, rtol=1e-5, atol=0, equal_nan=True)
        differ |= ~close.reshape(len(differ), -1).all(axis=-1)
    return _flag(
        "random gradients",
        differ.any(),
        f"two passes have different gradients at {differ.mean():.2%} of the images",
        {"different": float(differ.mean())},
        advice=_EOT,
    )


def _random_draws(attack, pgd, measured, right, one):
    """Ask whether so many draws are enough for the gradient of a randomised model."""
    samples = pgd().samples
    more = attack(pgd(samples=MORE_DRAWS * samples))
    agreement = float(np.median(measured.agreement[right])) if right.any() else 1.0
    return _flag(
        "random gradients",
        weaker(one, more) or agreement < LEAST_AGREEMENT,
        f"PGD leaves {one.mean():.2%} with the mean of {samples} draws, {more.mean():.2%} "
        f"of {MORE_DRAWS * samples}; the gradients of two means of {samples} draws have "
        f"the cosine {agreement:.2f} (median)",
        {
            "accuracy_by_draws": {
                samples: one.mean(),
                MORE_DRAWS * samples: more.mean(),
            },
            "agreement": agreement,
        },
        advice=f"more draws: samples={MORE_DRAWS * samples}",
    )


def _saturated_logits(measured, right):
    """Ask whether the logits are so large that the cross-entropy has no gradient."""
    rounded = _share(measured.lead > ROUNDED_LEAD, right)
    saturated = _share(measured.lead > SATURATED_LEAD, right)
    lead = float(np.median(measured.lead[right])) if right.any() else 0.0
    return _flag(
        "saturated logits",
        saturated > SATURATED,
        f"the label leads by {lead:.3g} (median); by more than {ROUNDED_LEAD:g}, where 1 - p "
        f"rounds to 0 in float32, at {rounded:.2%}, and by more than {SATURATED_LEAD:g}, "
        f"where the cross-entropy has no gradient, at {saturated:.2%} "
        f"({SATURATED:.0%} allowed)",
        {"lead": lead, "rounded": rounded, "saturated": saturated},
        advice=_MARGIN,
    )


def _float_type(measured, narrow):
    """Ask whether the model computes its gradients in a float type of 16 bits or fewer."""
    zeros = float(np.mean(measured.zeros))
    kinds = " and ".join(narrow)
    bits = (
        f"in {kinds}, in which gradients are quantised"
        if narrow
        else "in float32 or finer"
    )
    return _flag(
        "float type",
        narrow,
        f"the model computes {bits}; {zeros:.2%} of the pixels have a gradient of zero",
        {"narrow": list(narrow), "zeros": zeros},
        advice=_FLOATS,
    )


def _share(images, right):
    """Return the share of the images classified right at which something holds."""
    return float(np.sum(images & right) / max(1, right.sum()))


def _missed(left, standing):
    """Return how many of the images left an attack broke, and how many it may."""
    return int(np.sum(left & ~standing)), max(1, int(MISSED * len(left)))


def weaker(one, other):
    """Return whether the attack that left `one` unbroken is weaker than that of `other`."""
    against, in_favour = int(np.sum(one & ~other)), int(np.sum(other & ~one))
    tosses = against + in_favour
    tail = sum(math.comb(tosses, heads) for heads in range(against, tosses + 1))
    return tail / 2**tosses < SIGNIFICANCE
