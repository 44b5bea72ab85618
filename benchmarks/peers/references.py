"""Independent attacks with one signature, and the judge of their adversarial images.

PGD is Foolbox's, on JAX. All other attacks are pyautoattack's, the code of AutoAttack's
authors (Croce & Hein 2020) as a package, on PyTorch:

    apgd-ce    100 iterations, one start, rho 0.75; apgd-dlr likewise
    apgd-t     9 targets, 100 iterations each, targeted DLR loss
    fab-t      9 targets, 100 iterations each, alpha_max 0.1, eta 1.05, beta 0.9
    square     5,000 queries, p_init 0.8, margin loss, the schedule of p for 10,000
    autoattack apgd-ce, apgd-t, fab-t, square, each on the images still robust

The attacks that look for the nearest misclassified point are Foolbox's on PyTorch: FMN
(Pintor et al. 2021) in L-inf and L1, and DDN (Rony et al. 2019) in L2, each with 100 steps.
Foolbox's FMN in L2 never projects (3.3.4), so that of L2 is adv-lib's. sigma-zero (Cina et
al. 2024), for few pixels of images with one channel, is adv-lib's too, with 300 steps.

patch-in-the-middle is that of the Adversarial Robustness Toolbox (Brown et al. 2017) for
one image at a time, with 15 steps. It searches no places; patch-5 and patch-all do, in
plain PyTorch: sign ascent of 50 steps at five random places (Chiang et al. 2020), or at all
of them. adv-lib and the toolbox are imported only where they are used.

In L1, apgd-ce has five starts, apgd-t five targets, and both the balls of 3, 2 and 1
epsilon (Croce & Hein 2021).
"""

import functools
import importlib.metadata
import importlib.util
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

from freeadv_jax.attacks.threat import L0, Patch

Images = Float[np.ndarray, "b h w c"]
Labels = Int[np.ndarray, " b"]

_TOLERANCE = 1e-6

_FOOLBOX_PGD = {
    "linf": foolbox.attacks.LinfProjectedGradientDescentAttack,
    "l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
    "l1": foolbox.attacks.L1ProjectedGradientDescentAttack,
}
_NEAREST = {
    ("fmn", "linf"): foolbox.attacks.LInfFMNAttack,
    ("fmn", "l1"): foolbox.attacks.L1FMNAttack,
    ("ddn", "l2"): foolbox.attacks.DDNAttack,
}
_PYAUTOATTACK_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def reference(name: str) -> Callable[..., Images]:
    """Return `attack(model, images, labels, *, norm, epsilon, seed, batch_size)`.

    It maps images f32[b, h, w, c] in [0, 1] to adversarial ones, or to themselves where it
    fails. `model` is a PyTorch module that takes [b, c, h, w]. 'pgd' takes a JAX logits_fn
    instead, and also `steps` and `step_size`.
    """
    return _REFERENCES[name]


def nearest(name: str, norm: str, *, batch_size: int = 100) -> Callable[..., Images]:
    """Return `attack(model, images, labels)` for 'fmn' in L-inf and L1, or 'ddn' in L2.

    It maps images as `reference` does, to the nearest misclassified ones that it finds.
    """
    attack = _NEAREST[name, norm](steps=100)

    def run(model: torch.nn.Module, images: Images, labels: Labels) -> Images:
        wrapped = foolbox.models.PyTorchModel(model, bounds=(0, 1))
        found = []
        for first in range(0, len(images), batch_size):
            part = _to_torch(images[first : first + batch_size])
            classes = torch.from_numpy(labels[first : first + batch_size]).long()
            goal = foolbox.criteria.Misclassification(classes)
            adversarial = attack.run(wrapped, part, goal)
            wrong = wrapped(adversarial).argmax(1) != classes
            found.append(torch.where(wrong[:, None, None, None], adversarial, part))
        return np.ascontiguousarray(torch.cat(found).numpy().transpose(0, 2, 3, 1))

    return run


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
    adversarial image more than 1e-6 outside (of epsilon, where that is larger than 1) counts as a failed
    attack.
    """
    delta = adversarial.astype(np.float64) - images
    axes = (1, 2, 3)
    sizes = {
        "linf": lambda: np.abs(delta).max(axis=axes),
        "l2": lambda: np.sqrt(np.square(delta).sum(axis=axes)),
        "l1": lambda: np.abs(delta).sum(axis=axes),
        "l0": lambda: np.asarray(L0.size(delta)),
        "patch": lambda: np.asarray(Patch.size(delta)),
    }[norm]()
    beyond = np.maximum(-adversarial, adversarial - 1.0).max(axis=axes)
    # Negated "at most", so that NaN counts as outside.
    tolerance = _TOLERANCE * max(epsilon, 1)
    outside = ~(np.maximum(sizes - epsilon, beyond) <= tolerance)
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
    if norm == "l1":
        # The standard version has these settings in L1; others do not set them.
        suite.apgd.use_largereps = suite.apgd_targeted.use_largereps = True
        suite.apgd_targeted.n_target_classes = 5
    else:
        suite.apgd.n_restarts = 1  # The standard version has one; the default is 5.
    adversarial, _ = suite.run_standard_evaluation(
        _to_torch(images),
        torch.from_numpy(labels.astype(np.int64)),
        batch_size=batch_size,
    )
    return np.ascontiguousarray(adversarial.numpy().transpose(0, 2, 3, 1))


def _within(
    model: torch.nn.Module,
    images: Images,
    labels: Labels,
    *,
    norm: str,
    epsilon: float,
    seed: int,
    batch_size: int,
    name: str,
) -> Images:
    """Return the nearest misclassified images, whatever epsilon is; `judged` asks that."""
    del epsilon, seed
    return nearest(name, norm, batch_size=batch_size)(model, images, labels)


def _adv_lib_module(name):
    """Return a module of adv-lib without the others, some of which need torchvision."""
    path = importlib.metadata.distribution("adv-lib").locate_file(f"adv_lib/{name}")
    spec = importlib.util.spec_from_file_location("adv_lib_module", str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _fmn(
    model: torch.nn.Module, images: Images, labels: Labels, *, norm: str, **options
) -> Images:
    if norm != "l2":
        return _within(model, images, labels, name="fmn", norm=norm, **options)
    attack = _adv_lib_module("attacks/fast_minimum_norm.py").fmn
    attack = functools.partial(attack, norm=2, steps=100)
    return _in_batches(attack, model, images, labels, options["batch_size"])


def _in_batches(attack, model, images, labels, batch_size):
    """Return what an attack of adv-lib makes of images, a batch at a time."""
    found = [
        attack(
            model,
            _to_torch(images[first : first + batch_size]),
            torch.from_numpy(labels[first : first + batch_size]).long(),
        )
        for first in range(0, len(images), batch_size)
    ]
    return np.ascontiguousarray(torch.cat(found).numpy().transpose(0, 2, 3, 1))


def _sigma_zero(
    model: torch.nn.Module,
    images: Images,
    labels: Labels,
    *,
    norm: str,
    epsilon: float,
    seed: int,
    batch_size: int,
) -> Images:
    del norm, epsilon, seed
    attack = _adv_lib_module("attacks/sigma_zero.py").sigma_zero
    attack = functools.partial(attack, num_steps=300)
    return _in_batches(attack, model, images, labels, batch_size)


def _patch_somewhere(
    model: torch.nn.Module,
    images: Images,
    labels: Labels,
    *,
    norm: str,
    epsilon: float,
    seed: int,
    batch_size: int,
    places: int | None = None,
    steps: int = 50,
    rate: float = 0.1,
) -> Images:
    """Return images with a patch at one of so many random places, None for all of them."""
    del norm, batch_size
    side, clean = int(epsilon), _to_torch(images)
    classes = torch.from_numpy(labels.astype(np.int64))
    height, width = clean.shape[2:]
    corners = [
        (row, column)
        for row in range(height - side + 1)
        for column in range(width - side + 1)
    ]
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(corners), generator=random).tolist()[:places]
    found, left = clean.clone(), torch.ones(len(clean), dtype=torch.bool)
    for row, column in (corners[place] for place in order):
        index = left.nonzero()[:, 0]
        mask = torch.zeros(1, 1, height, width)
        mask[..., row : row + side, column : column + side] = 1
        noise = torch.rand(clean[index].shape, generator=random)
        point = torch.where(mask > 0, noise, clean[index])
        for _ in range(steps + 1):
            point.requires_grad_(True)
            logits = model(point)
            wrong = logits.argmax(1) != classes[index]
            found[index[wrong]] = point.detach()[wrong]
            left[index[wrong]] = False
            loss = torch.nn.functional.cross_entropy(
                logits, classes[index], reduction="sum"
            )
            (slope,) = torch.autograd.grad(loss, point)
            point = (point.detach() + rate * slope.sign() * mask).clamp(0, 1)
    return np.ascontiguousarray(found.numpy().transpose(0, 2, 3, 1))


def _patch_in_the_middle(
    model: torch.nn.Module,
    images: Images,
    labels: Labels,
    *,
    norm: str,
    epsilon: float,
    seed: int,
    batch_size: int,
) -> Images:
    from art.attacks.evasion import AdversarialPatchPyTorch
    from art.estimators.classification import PyTorchClassifier

    del norm, batch_size
    torch.manual_seed(seed)
    height, width, channels = images.shape[1:]
    side = int(epsilon)
    wrapped = PyTorchClassifier(
        model,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=(channels, height, width),
        nb_classes=10,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    corner = (width - side) // 2, (height - side) // 2
    found = []
    for image, label in zip(images, labels, strict=True):
        attack = AdversarialPatchPyTorch(
            wrapped,
            rotation_max=0.0,
            scale_min=side / min(height, width) - 1e-6,
            scale_max=side / min(height, width),
            learning_rate=0.2,
            max_iter=15,
            batch_size=1,
            patch_shape=(channels, side, side),
            patch_location=corner,
            patch_type="square",
            optimizer="pgd",
            targeted=False,
            verbose=False,
        )
        one = image.transpose(2, 0, 1)[None]
        patch, _ = attack.generate(x=one, y=np.eye(10, dtype=np.float32)[[label]])
        attacked = image.copy()
        rows, columns = (slice(first, first + side) for first in corner[::-1])
        attacked[rows, columns] = patch.transpose(1, 2, 0)
        found.append(attacked)
    return np.stack(found)


def _to_torch(images):
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


_REFERENCES = {
    "pgd": _pgd,
    "fmn": _fmn,
    "ddn": functools.partial(_within, name="ddn"),
    "sigma-zero": _sigma_zero,
    "patch-in-the-middle": _patch_in_the_middle,
    "patch-5": functools.partial(_patch_somewhere, places=5),
    "patch-all": _patch_somewhere,
    "autoattack": functools.partial(_pyautoattack, options={"version": "standard"}),
} | {
    name: functools.partial(
        _pyautoattack, options={"version": "custom", "attacks": [name]}
    )
    for name in ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")
}
