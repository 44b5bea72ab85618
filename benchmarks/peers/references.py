"""Independent attacks with one signature, and the judge of their adversarial images.

PGD is Foolbox's, on JAX. All other attacks are pyautoattack's, the code of AutoAttack's
authors (Croce & Hein 2020) as a package, on PyTorch:

    apgd-ce    100 iterations, one start, rho 0.75; apgd-dlr likewise
    apgd-t     9 targets, 100 iterations each, targeted DLR loss
    fab-t      9 targets, 100 iterations each, alpha_max 0.1, eta 1.05, beta 0.9
    square     5,000 queries, p_init 0.8, margin loss, the schedule of p for 10,000
    autoattack apgd-ce, apgd-t, fab-t, square, each on the images still robust
"""

import functools
from collections.abc import Callable
from typing import Any

import eagerpy
import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import pyautoattack
import torch
from jaxtyping import Bool, Float, Int

Images = Float[np.ndarray, "b h w c"]
Labels = Int[np.ndarray, " b"]

_TOLERANCE = 1e-6

_FOOLBOX_PGD = {
    "linf": foolbox.attacks.LinfProjectedGradientDescentAttack,
    "l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
}
_PYAUTOATTACK_NORMS = {"linf": "Linf", "l2": "L2"}


def reference(name: str) -> Callable[..., Images]:
    """Return `attack(model, images, labels, *, norm, epsilon, seed, batch_size)`.

    It maps images f32[b, h, w, c] in [0, 1] to adversarial ones, or to themselves where it
    fails. `model` is a PyTorch module that takes [b, c, h, w]. 'pgd' takes a JAX logits_fn
    instead, and also `steps` and `step_size`.
    """
    return _REFERENCES[name]


def judged(
    model: torch.nn.Module,
    images: Images,
    labels: Labels,
    adversarial: Images,
    *,
    norm: str,
    epsilon: float,
    batch_size: int,
) -> tuple[Bool[np.ndarray, " b"], int]:
    """Return which images stay robust, and how many adversarials leave ball or box.

    An image is robust if the model classifies it and its adversarial image correctly. An
    adversarial image more than 1e-6 outside counts as a failed attack.
    """
    delta = adversarial.astype(np.float64) - images
    axes = (1, 2, 3)
    if norm == "linf":
        sizes = np.abs(delta).max(axis=axes)
    else:
        sizes = np.sqrt(np.square(delta).sum(axis=axes))
    beyond = np.maximum(-adversarial, adversarial - 1.0).max(axis=axes)
    # Negated "at most", so that NaN counts as outside.
    outside = ~(np.maximum(sizes - epsilon, beyond) <= _TOLERANCE)
    correct = predictions(model, images, batch_size=batch_size) == labels
    still = predictions(model, adversarial, batch_size=batch_size) == labels
    return correct & (still | outside), int(outside.sum())


def predictions(model: torch.nn.Module, images: Images, *, batch_size: int) -> Labels:
    """Return the predicted class of each image."""
    with torch.no_grad():
        return np.concatenate(
            [
                model(_to_torch(images[first : first + batch_size])).argmax(1).numpy()
                for first in range(0, len(images), batch_size)
            ]
        )


def _pgd(
    logits_fn: Callable,
    images: Images,
    labels: Labels,
    *,
    norm: str,
    epsilon: float,
    seed: int,
    batch_size: int,
    steps: int,
    step_size: float,
) -> Images:
    attack = _FOOLBOX_PGD[norm](steps=steps, abs_stepsize=step_size, random_start=True)
    model = foolbox.models.JAXModel(logits_fn, bounds=(0, 1))
    eagerpy.JAXTensor.key = jax.random.PRNGKey(seed)
    batches = [
        attack.run(
            model,
            jnp.asarray(images[first : first + batch_size]),
            jnp.asarray(labels[first : first + batch_size], jnp.int32),
            epsilon=epsilon,
        )
        for first in range(0, len(images), batch_size)
    ]
    return np.concatenate([np.asarray(batch) for batch in batches])


def _pyautoattack(
    model: torch.nn.Module,
    images: Images,
    labels: Labels,
    *,
    norm: str,
    epsilon: float,
    seed: int,
    batch_size: int,
    options: dict[str, Any],
) -> Images:
    suite = pyautoattack.AutoAttack(
        model, norm=_PYAUTOATTACK_NORMS[norm], eps=epsilon, seed=seed, **options
    )
    suite.apgd.n_restarts = 1  # The standard version has one; the default is 5.
    adversarial, _ = suite.run_standard_evaluation(
        _to_torch(images),
        torch.from_numpy(labels.astype(np.int64)),
        batch_size=batch_size,
    )
    return np.ascontiguousarray(adversarial.numpy().transpose(0, 2, 3, 1))


def _to_torch(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


_REFERENCES = {
    "pgd": _pgd,
    "autoattack": functools.partial(_pyautoattack, options={"version": "standard"}),
} | {
    name: functools.partial(
        _pyautoattack, options={"version": "custom", "attacks": [name]}
    )
    for name in ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
}
