"""Describe a defence of the gallery, and put it before any model."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from freeadv_jax.attacks.apgd import apgd
from freeadv_jax.attacks.pgd import pgd
from freeadv_jax.attacks.square import square
from freeadv_jax.attacks.threat import Threat

# Maps images [n, h, w, c] in [0, 1], their labels, the threat and the seed of all random
# choices to attacked images.
AdaptiveAttack = Callable[[Any, Any, Threat, int], Any]


@dataclasses.dataclass(frozen=True)
class Defended:
    """Hold a defended network, and the attacks that were made for it.

    `logits_fn` maps images f32[b, h, w, c] in [0, 1] to logits [b, k]; with `random` it also
    takes a key for each image. `adaptive` are the attacks by name. `shown` maps images to
    those that the network sees, where the defence changes them; it takes keys as `logits_fn`
    does. `rejects` maps images to bool[b]: those that a detector does not let pass.
    `certified` maps images, labels and the threat to bool[n]: the images that no attack can
    break.
    """

    logits_fn: Callable
    adaptive: Mapping[str, AdaptiveAttack]
    random: bool = False
    shown: Callable | None = None
    rejects: Callable[[Float[Array, "b h w c"]], Bool[Array, " b"]] | None = None
    certified: Callable[[Any, Any, Threat], Bool[np.ndarray, " n"]] | None = None


@dataclasses.dataclass(frozen=True)
class Defence:
    """Describe a defence: its paper, its parameters, what broke it, and how to build it.

    `kind` is what Athalye et al. (ICML 2018) call it, and `masks` says whether it hides
    its gradients. `published` is the accuracy in [0, 1] that is left in the slides, None
    where they print none. `build` trains what it needs for a task and returns the defended
    network. `data` names the only data set of a defence that needs a small one. `epsilon`
    and `norm` are those of the published figure, where they differ from those of the data.
    """

    name: str
    title: str
    paper: str
    kind: str
    parameters: str
    broken_by: str
    masks: bool
    published: float | None
    build: Callable[[Any], Defended]
    data: str = ""
    norm: str = "linf"
    epsilon: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Before:
    """A transformation of the images before a network, which is an argument."""

    transform: Callable

    def __call__(self, logits_fn, images, *keys):
        return logits_fn(self.transform(images, *keys))


def before(transform: Callable, logits_fn: Callable) -> Callable:
    """Return `logits_fn` with `transform` before it.

    `transform` maps images f32[b, h, w, c], and keys where it is random, to images. The
    weights of a `logits_fn` that is a pytree stay its leaves.
    """
    return jax.tree_util.Partial(_Before(transform), logits_fn)


def by_pgd(logits_fn: Callable, **options) -> AdaptiveAttack:
    """Return the attack by PGD on `logits_fn`, which may be another than the defence's.

    `options` are those of `freeadv_jax.attacks.pgd`; the default is 40 steps.
    """
    return _by(pgd, logits_fn, {"steps": 40} | options)


def by_targeted_apgd(logits_fn: Callable, **options) -> AdaptiveAttack:
    """Return the attack by Auto-PGD on the margin to each of the nine likeliest classes.

    `options` are those of `freeadv_jax.attacks.apgd`.
    """
    targeted = {"loss": "margin", "goal": "multi-target", "targets": 9}
    return _by(apgd, logits_fn, targeted | options)


def by_square(logits_fn: Callable, **options) -> AdaptiveAttack:
    """Return the attack by Square, which needs no gradient.

    `options` are those of `freeadv_jax.attacks.square`.
    """
    return _by(square, logits_fn, options)


def _by(function, logits_fn, options):
    def attack(
        images: Float[np.ndarray | Array, "n h w c"],
        labels: Int[np.ndarray | Array, " n"],
        threat: Threat,
        seed: int,
    ):
        how = {"norm": threat.norm, "epsilon": threat.epsilon, "seed": seed} | options
        return function(logits_fn, images, labels, **how).images

    return attack
