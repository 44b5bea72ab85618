"""AutoAttack: an ensemble of attacks without parameters to tune."""

import dataclasses
import logging
from collections.abc import Callable, Iterable

import jax
import numpy as np

from freeadv_jax.attacks.apgd import auto_pgd
from freeadv_jax.attacks.attack import Attack
from freeadv_jax.attacks.audit import SHARE, Audit, check_share
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.checks import (
    check_samples,
    check_threat,
    largest_difference,
)
from freeadv_jax.attacks.draws import randomized
from freeadv_jax.attacks.fab import FAB
from freeadv_jax.attacks.red_flags import MISSED, NO_GRADIENT
from freeadv_jax.attacks.runner import (
    BATCH_SIZE,
    Outcome,
    classes_of,
    examples_of,
    run,
)
from freeadv_jax.attacks.square import Square
from freeadv_jax.attacks.threat import Real
from freeadv_jax.errors import InputError, require_choice
from freeadv_jax.models.user_model import arrays_as_leaves
from freeadv_jax.pixels import Numbers

VERSIONS = ("standard", "plus", "rand", "quick")

# The draws over which the authors average the gradients of a randomised model.
SAMPLES = 20

# The short versions of targeted APGD and Square, which are the first steps of the long
# ones. The rises of the loss usually shrink from period to period: on held-out images of
# six networks of `benchmarks.quick`, one boundary farther than three times the last rise
# was reached and none farther than four times, and this is half as far again.
_REACH, _QUERIES = 6.0, 300
# The stages that `quick` leaves out, and their names where they audit it.
_LEFT_OUT = ("apgd-t", "fab-t", "square")
AUDIT = tuple(f"audit {name}" for name in _LEFT_OUT)

# The part of the largest logit that may change by rounding, when an image is evaluated
# among other images.
_MOST_ROUNDING = 1e-3

_LOGGER = logging.getLogger(__name__)
# The DLR losses of these attacks need at least this many classes.
_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}


def cascade(
    version: str,
    *,
    norm: str,
    epsilon: Real,
    num_classes: int,
    samples: int | None = None,
) -> dict[str, Attack]:
    """Return the attacks of a version by name, in the order of the authors' code.

    The attacks are those of section 6 of the paper with the parameters of
    fra31/auto-attack. 'plus' has five restarts and adds the untargeted attacks. 'rand' is
    for randomised models, with two untargeted attacks. `samples` are the draws of a
    randomised model that each attack averages, 20 for 'rand'. The targeted DLR loss needs
    four classes and the DLR loss three; with fewer classes the margin replaces them. The
    number of targets is at most that of the other classes. In L1, apgd-ce has five restarts
    and apgd-t five targets (Croce & Hein, ICML 2021).

    'quick' makes the first steps of 'standard' from the same starts: all of apgd-ce, of
    each target of apgd-t only while its boundary is within reach, and 300 queries of
    Square. Its last stages, those of AUDIT, are what it left out, for a part of the images.
    """
    require_choice("AutoAttack version", version, VERSIONS)
    if version == "quick" and norm not in ("linf", "l2"):
        raise InputError(f"AutoAttack version 'quick' is for linf and l2: not {norm}")
    if version == "quick" and samples is not None:
        raise InputError(
            "AutoAttack version 'quick' is for models that draw nothing: must go without "
            "samples"
        )
    targets = min(9, num_classes - 1)
    sparse = norm == "l1" and version == "standard"
    restarts, apgd_targets = (5, min(5, targets)) if sparse else (1, targets)
    if version == "rand" and samples is None:
        samples = SAMPLES
    threat = {"norm": norm, "epsilon": epsilon, "samples": samples}
    targeted = {"goal": "multi-target", "targets": targets}
    dlr = {"loss": "dlr" if num_classes >= 3 else "margin"}
    targeted_dlr = {"loss": "dlr" if num_classes >= 4 else "margin"}
    if version == "rand":
        return {
            "apgd-ce": auto_pgd(**threat),
            "apgd-dlr": auto_pgd(**threat, **dlr),
        }
    fewer = targeted | {"targets": apgd_targets}
    apgd_t = auto_pgd(**threat, **fewer, **targeted_dlr)
    fab_t = FAB(**threat, **targeted)
    # The authors cut off the schedule of 10,000 queries; they do not rescale it.
    square = Square(**threat, rescaled=False)
    if version == "standard":
        return {
            "apgd-ce": auto_pgd(**threat, restarts=restarts),
            "apgd-t": apgd_t,
            "fab-t": fab_t,
            "square": square,
        }
    if version == "quick":
        left_out = zip(AUDIT, (apgd_t, fab_t, square), strict=True)
        return {
            "apgd-ce": auto_pgd(**threat),
            "apgd-t": dataclasses.replace(apgd_t, reach=_REACH),
            "square": dataclasses.replace(square, steps=_QUERIES),
        } | dict(left_out)
    return {
        "apgd-ce": auto_pgd(**threat, restarts=5),
        "apgd-dlr": auto_pgd(**threat, **dlr, restarts=5),
        "fab": FAB(**threat, goal="untargeted", targets=1, restarts=5),
        "square": square,
        "apgd-t": apgd_t,
        "fab-t": fab_t,
    }


def audit_of(version: str, share: float | None) -> Audit | None:
    """Return the audit of a version, None for one that leaves nothing out.

    `share` is that of the images, by default 0.04. Raise InputError for an impossible one,
    and for one of a version without an audit.
    """
    if version != "quick":
        if share is not None:
            raise InputError(
                f"audit is for AutoAttack version 'quick': not {version!r}"
            )
        return None
    share = SHARE if share is None else share
    check_share(share)
    return Audit(float(share), AUDIT)


def warn_of_few_classes(num_classes: int, stages: Iterable[str]) -> None:
    """Log a warning if the margin replaces a DLR loss that needs more classes."""
    if any(num_classes < _CLASSES.get(name, 0) for name in stages):
        lost = "targeted DLR" if num_classes == 3 else "DLR"
        _LOGGER.warning(
            "on %d classes the %s loss of AutoAttack does not exist, the margin is "
            "attacked instead",
            num_classes,
            lost,
        )


def autoattack(
    logits_fn: Callable,
    images: Numbers,
    labels: Numbers,
    *,
    norm: str = "linf",
    epsilon: Real,
    version: str | None = None,
    samples: int | None = None,
    audit: float | None = None,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    watch: Callable | None = None,
) -> Outcome:
    """Attack with AutoAttack, the worst case over four attacks (Croce & Hein, ICML 2020).

    Each attack runs on the images that the attacks before did not break: APGD on the
    cross-entropy, targeted APGD on the DLR loss, targeted FAB and Square.

    Args:
        logits_fn: maps images f32[b, h, w, c] in [0, 1] to logits [b, k], normalisation
            included; with `samples`, images and one key for each of them. A callable
            pytree such as jax.tree_util.Partial hands over its arrays; a second call with
            the same structure and shapes compiles nothing.
        images: floats [n, h, w, c] in [0, 1].
        labels: n integers, an array or a list.
        norm: 'linf', 'l2' or 'l1'.
        epsilon: the radius of the ball in [0, 1] pixels, such as `8 / 255`.
        version: 'standard'; 'plus', with five restarts and two untargeted attacks more;
            'rand', the two untargeted attacks that the authors run on randomised models; or
            'quick', the first steps of 'standard' with an audit, for 'linf' and 'l2'.
            The default is 'rand' where `samples` are given, else 'standard'.
        samples: for a randomised model, the draws that each attack averages, as for `pgd`;
            20 for 'rand', the number of the authors.
        audit: of 'quick', the share of the survivors, drawn by `seed`, that go through what
            it left out; the default is 0.04. With 1 the images that are robust are those of
            'standard', at a higher price.
        batch_size: the images attacked at a time. It bounds the memory and does not
            change the result.
        seed: the seed of all random choices.
        watch: is called as `watch(attack, done, standing)` during an attack, with its
            name, the attempts decided, with a fraction for those under way, and bool[n]:
            the images not broken so far.

    Returns:
        An `Outcome`, with `audit` for 'quick': how many images the audit broke, and how
        many more 'standard' would break at most. All devices take part. Inside jax.jit all
        images are one batch, and `audit` is None. A warning is logged if Square breaks
        images that the attacks by gradients left, if gradients are zero, if two passes
        differ, and if images influence one another.

    Raises:
        InputError: for unusable images, labels, settings or logits.
    """
    if version is None:
        version = "standard" if samples is None else "rand"
    require_choice("AutoAttack version", version, VERSIONS)
    check_threat(norm, epsilon)
    check_samples(samples)
    audited = audit_of(version, audit)
    random = version == "rand" or samples is not None
    examples = examples_of(images, labels)
    if random:
        logits_fn = randomized(logits_fn)
    num_classes = classes_of(logits_fn, examples)
    logits_fn = arrays_as_leaves(logits_fn)
    threat = {"norm": norm, "epsilon": epsilon, "samples": samples}
    attacks = cascade(version, **threat, num_classes=num_classes)
    warn_of_few_classes(num_classes, attacks)
    outcome = run(
        attacks,
        logits_fn,
        examples,
        batch_size=batch_size,
        seed=seed,
        audit=audited,
        watch=watch,
    )
    if isinstance(outcome.images, jax.core.Tracer):
        return outcome
    campaign = Campaign(batch_size=batch_size, seed=seed)
    _warn_of_square(outcome)
    if not random:
        _warn_of_model(campaign, logits_fn, *examples)
    compilations = outcome.compilations + campaign.compilations
    return outcome._replace(compilations=compilations)


def _warn_of_square(outcome):
    """Log a warning if Square broke images that all attacks before it left.

    In version 'quick' that is seen on the audited images alone.
    """
    last = "audit square" if outcome.audit else "square"
    names = list(outcome.standing)
    if last not in names:
        return
    before = outcome.standing[names[names.index(last) - 1]]
    missed = before - outcome.standing[last]
    if outcome.audit:
        before = outcome.audit["survived"] + missed
    allowed = max(1, int(MISSED * before))
    if missed > allowed:
        _LOGGER.warning(
            "Square, which uses no gradients, broke %d of the %d images that the attacks by "
            "gradients left: the model masks its gradients, and its accuracy is lower than "
            "measured",
            missed,
            before,
        )


def _warn_of_model(campaign, logits_fn, images, labels):
    """Log a warning for a model whose gradients or logits AutoAttack cannot rely on."""
    logits, again = (campaign.logits(logits_fn, images) for _ in range(2))
    apart = largest_difference(logits, again)
    if apart > 0:
        _LOGGER.warning(
            "two passes over the same images differ by up to %.3g: the model is randomised, "
            "make it a function of images and keys, and give samples",
            apart,
        )
        return
    # With every second image twice, each image has other neighbours in its batch.
    twice = images[np.arange(len(images)) // 2 * 2]
    among_others = campaign.logits(logits_fn, twice)[::2]
    largest = max(1.0, float(np.max(np.abs(logits[np.isfinite(logits)]))))
    apart = largest_difference(logits[::2], among_others)
    if apart > _MOST_ROUNDING * largest:
        _LOGGER.warning(
            "the logits of an image change by up to %.3g with the other images of its "
            "batch: put the model into evaluation mode (BatchNorm with running averages)",
            apart,
        )
    right = logits.argmax(axis=-1) == labels
    zero = int((campaign.zero_gradients(logits_fn, images, labels) & right).sum())
    if zero > max(1, NO_GRADIENT * right.sum()):
        _LOGGER.warning(
            "the gradient is zero at %d of the %d images classified correctly: attacks by "
            "gradients are weak there, see freeadv_jax.attacks.red_flags",
            zero,
            int(right.sum()),
        )
