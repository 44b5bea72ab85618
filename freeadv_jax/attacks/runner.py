"""The runner behind the public attacks: it checks the input and returns the outcome."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from freeadv_jax.attacks.attack import FORWARD, Attack, as_pytree, split_numbers
from freeadv_jax.attacks.audit import Audit
from freeadv_jax.attacks.campaign import Campaign, Images
from freeadv_jax.attacks.checks import (
    check_counts,
    check_logits,
    check_loss,
    check_threat,
    is_traced,
)
from freeadv_jax.attacks.draws import DRAWS, JUDGES, randomized
from freeadv_jax.attacks.kernels import are_random, kernels_for, traced_with
from freeadv_jax.attacks.one_batch import Adversarial, attack_unbroken
from freeadv_jax.attacks.threat import NORMS
from freeadv_jax.devices import onednn
from freeadv_jax.models.user_model import arrays_as_leaves, check_model
from freeadv_jax.pixels import Numbers, as_array, check_images, check_labels

# The images attacked at a time: enough to keep a GPU busy with CIFAR-10 networks.
BATCH_SIZE = 128

# A labelled set as arrays: images [n, h, w, c] and labels [n].
Examples = tuple[np.ndarray | jax.Array | Images, np.ndarray | jax.Array]


class Outcome(NamedTuple):
    """Hold what an attack made of n images.

    images        f32[n, h, w, c], inside ball and box. An image that is misclassified as
                  it is stays unchanged.
    success       bool[n]: the attack reached its goal with this image.
    standing      the number of images without success: 'natural' before any attack, and
                  then after each attack by its name.
    compilations  the number of programs compiled in this call; 0 while JAX traces.
    passes        f32[n]: the passes forward and backward through the model that each image
                  took, a forward pass alone counted as a third, and without the fresh
                  draws that confirm a success; None while JAX traces.
    audit         of autoattack's version 'quick', what it may have missed: see
                  `audit.Audit.bound`; None while JAX traces.
    """

    images: np.ndarray | jax.Array
    success: np.ndarray | jax.Array
    standing: dict[str, int | jax.Array]
    compilations: int
    passes: np.ndarray | None = None
    audit: dict | None = None


def examples_of(
    images: Numbers | Images, labels: Numbers, *, raw: bool = False
) -> Examples:
    """Return images as float32 and labels as int32; raise InputError for unusable ones.

    Labels may be a list or an array of any integer type, images any array of floats in
    [0, 1], and both tensors of PyTorch. With `raw`, uint8 images are allowed and stay as
    they are, and so does a set that decodes its images on demand. Traced arrays stay
    traced.
    """
    labels = _on_host(labels)
    if isinstance(images, jax.core.Tracer):
        check_images(images, labels, raw=raw)
        return images.astype(np.float32), labels.astype(np.int32)
    # A set that decodes on demand has the dtype of NumPy; PyTorch's tensors do not.
    on_demand = isinstance(images, Images) and isinstance(images.dtype, np.dtype)
    if not on_demand or isinstance(images, jax.Array):
        images = _on_host(images)
    check_images(images, labels, raw=raw)
    if images.dtype != np.uint8:
        images = np.asarray(images).astype(np.float32)
    return images, labels.astype(np.int32)


def _on_host(values):
    values = as_array(values)
    return values if isinstance(values, jax.core.Tracer) else np.asarray(values)


def classes_of(logits_fn: Callable, examples: Examples) -> int:
    """Return the number of classes; raise InputError for a bad model or its labels."""
    images, labels = examples
    num_classes = check_model(logits_fn, images[:1])
    check_labels(labels, num_classes)
    return num_classes


def run(
    attacks: Mapping[str, Attack],
    logits_fn: Callable,
    examples: Examples,
    *,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    audit: Audit | None = None,
    watch: Callable | None = None,
) -> Outcome:
    """Run attacks one after another, each on the images that the others did not break.

    `attacks` are by name. Concrete arrays are attacked in batches on all devices; where
    JAX traces the call, all images are one batch. `watch(name, done, standing)` is called
    during the attack with the attempts decided and bool[n]. A randomised model is that of
    `draws.randomized`. The stages of an `audit` run on its part of the images. Raise
    InputError for logits that are not finite or are probabilities.
    """
    logits_fn = arrays_as_leaves(logits_fn)
    numbers = [vars(attack) for attack in attacks.values()]
    if is_traced(examples, numbers, as_pytree(logits_fn)):
        return _run_traced(attacks, logits_fn, examples, seed=seed, audit=audit)

    images, labels = examples
    kernels = kernels_for(onednn.AUTO, attacks.values(), logits_fn, images)
    random = are_random(attacks.values())
    logits_fn = traced_with(kernels, logits_fn, looped=random)
    campaign = Campaign(batch_size=batch_size, seed=seed)
    logits = campaign.logits(logits_fn, images)
    check_logits(logits)
    first = next(iter(attacks.values()))
    kind, _ = split_numbers(first)
    success = _success(kind, logits, labels)
    standing = ~np.asarray(success)
    counts = {"natural": int(standing.sum())}
    adversarial = images.copy()
    natural = FORWARD * (JUDGES * DRAWS if random else 1)
    passes = np.full(len(labels), natural, np.float32)
    for name, attack in attacks.items():
        chosen = images_of_stage(name, audit, len(labels), seed)
        made = np.zeros((2, len(labels)), int)
        left = campaign.attack(
            attack,
            logits_fn,
            images,
            labels,
            standing & chosen,
            adversarial=adversarial,
            made=made,
            watch=watch
            and (lambda done, robust, work, name=name: watch(name, done, robust)),
        )
        standing = np.where(chosen, left, standing)
        passes += np.dot(attack.passes(logits.shape[-1]), made).astype(np.float32)
        counts[name] = int(standing.sum())
    bound = audit and audit.bound(standing, counts, seed)
    return Outcome(adversarial, ~standing, counts, campaign.compilations, passes, bound)


def images_of_stage(
    name: str, audit: Audit | None, images: int, seed: int | np.integer
) -> np.ndarray:
    """Return bool[n]: the images that a stage is for, a part of them if it audits."""
    if audit is None or name not in audit.stages:
        return np.ones(images, bool)
    return audit.chosen(images, seed)


@functools.partial(jax.jit, static_argnums=0)
def _success(kind, logits, labels):
    """Return where logits are what the attack wants, from one program, not one a step."""
    return kind.success(logits, labels)


def run_one(
    name: str,
    attack: Attack,
    logits_fn: Callable,
    images: Numbers,
    labels: Numbers,
    *,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
) -> Outcome:
    """Check the input and run one attack; `standing` has its figure under `name`.

    Targets are reduced to the number of other classes.
    """
    norms = getattr(attack, "norms", NORMS)
    check_threat(attack.norm, attack.epsilon, norms=norms)
    check_counts(attack)
    examples = examples_of(images, labels)
    shape = examples[0].shape[1:]
    check_threat(attack.norm, attack.epsilon, norms=norms, image_shape=shape)
    if are_random([attack]):
        logits_fn = randomized(logits_fn)
    num_classes = classes_of(logits_fn, examples)
    check_loss(attack, num_classes)
    if hasattr(attack, "targets"):
        fewer = min(attack.targets, num_classes - 1)
        attack = dataclasses.replace(attack, targets=fewer)
    options = {"batch_size": batch_size, "seed": seed}
    return run({name: attack}, logits_fn, examples, **options)


def _run_traced(attacks, logits_fn, examples, *, seed, audit):
    images, labels = map(jnp.asarray, examples)

    def float32_logits(*arguments):
        return logits_fn(*arguments).astype(jnp.float32)

    first = next(iter(attacks.values()))
    found = Adversarial(images, first.success(float32_logits(images), labels))
    counts = {"natural": jnp.sum(~found.success)}
    for name, attack in attacks.items():
        chosen = images_of_stage(name, audit, len(labels), seed)
        # An image that the stage is not for waits like a broken one.
        waiting = found._replace(success=found.success | ~chosen)
        after = attack_unbroken(
            attack, float32_logits, images, labels, waiting, seed=np.uint32(seed)
        )
        found = after._replace(success=jnp.where(chosen, after.success, found.success))
        counts[name] = jnp.sum(~found.success)
    return Outcome(found.images, found.success, counts, compilations=0)
