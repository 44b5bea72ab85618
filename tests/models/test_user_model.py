"""A model that cannot be attacked is refused by every function with one clear line."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import freeadv_jax
from freeadv_jax.attacks import (
    apgd,
    autoattack,
    fab,
    fgsm,
    pgd,
    red_flags,
    square,
)
from freeadv_jax.errors import InputError

FUNCTIONS = (
    fgsm,
    pgd,
    apgd,
    fab,
    square,
    autoattack,
    red_flags,
    freeadv_jax.robust_accuracy,
)
IMAGES = np.random.default_rng(0).random((6, 4, 4, 1), np.float32)
LABELS = np.zeros(6, np.int32)
WEIGHTS = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)


def linear(images):
    return images.reshape(len(images), -1) @ WEIGHTS


def channels_first(images):
    """Return logits of images [b, c, h, w] by a convolution, as PyTorch has them."""
    kernel = jnp.ones((3, 1, 3, 3))
    found = jax.lax.conv(images, kernel, window_strides=(1, 1), padding="SAME")
    return found.mean((2, 3))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, images):
        return nn.Dense(3)(images.reshape(len(images), -1))


class NNX(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(1, rngs=nnx.Rngs(0))

    def __call__(self, images, keys=None):
        return linear(self.norm(images))


MODELS = {
    "a class": (Linen, "the model is a class: must be a function from images"),
    "unbound Linen": (Linen(), "give functools.partial(model.apply, variables)"),
    "NNX in training": (NNX(), "training mode (BatchNorm has use_running_average"),
    "keys": (lambda images, keys: linear(images), "goes with samples="),
    "a mode": (lambda images, *, train: linear(images), "needs train beside"),
    "NumPy": (lambda images: np.tanh(images).sum(), "must be written in jax.numpy"),
    "Python numbers": (lambda x: linear(x) * float(x.max()), "into Python numbers"),
    "a branch": (lambda x: linear(x) if x.max() > 0 else x, "jnp.where for a branch"),
    "another shape": (
        lambda images: images @ WEIGHTS,
        "the model fails on images of shape [1, 4, 4, 1]: dot_general requires",
    ),
    "channels first": (
        channels_first,
        "it takes the channels first; must take [b, h, w, c], such as lambda x: model(jnp.m",
    ),
    "a sigmoid": (
        lambda images: linear(images)[:, 0],
        "jnp.stack([jnp.zeros_like(z), z], axis=-1)",
    ),
    "a column": (
        lambda images: linear(images)[:, :1],
        "jnp.concatenate([jnp.zeros_like(z), z], axis=-1)",
    ),
    "a dict": (lambda images: {"logits": linear(images)}, "must be the logits alone"),
    "integers": (lambda images: linear(images).astype(int), "type int32, which has no"),
    "infinity": (lambda images: linear(images) / 0, "are not finite: only -inf"),
}


def refusal(function, logits_fn, **options):
    with pytest.raises(InputError) as refused:
        function(logits_fn, IMAGES, LABELS, epsilon=0.1, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_every_function_refuses_what_it_cannot_attack_in_one_line(function, case):
    model, message = MODELS[case]
    assert message in refusal(function, model)


@pytest.mark.torch
def test_a_module_of_pytorch_is_refused():
    torch = pytest.importorskip("torch")
    message = refusal(fgsm, torch.nn.Linear(16, 3))
    assert "module of PyTorch: must be a function of JAX" in message


def on_the_host(images):
    """Return the logits of a model that JAX only calls."""
    logits = jax.ShapeDtypeStruct((len(images), 3), np.float32)
    return jax.pure_callback(
        lambda x: np.asarray(x).reshape(-1, 16) @ WEIGHTS, logits, images
    )


def with_a_while_loop(images):
    return jax.lax.while_loop(
        lambda logits: jnp.any(logits < 0), lambda logits: logits + 1, linear(images)
    )


WITHOUT_GRADIENT = {
    on_the_host: "differentiate the model (Pure callbacks do not support JVP",
    with_a_while_loop: "differentiate the model (Reverse-mode differentiation does not",
}


@pytest.mark.parametrize("model", WITHOUT_GRADIENT, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("function", "options"),
    [
        (fgsm, {}),
        (pgd, {}),
        (apgd, {}),
        (fab, {}),
        (fab, {"goal": "untargeted"}),
        (autoattack, {}),
        (red_flags, {}),
        (freeadv_jax.robust_accuracy, {"attacks": "natural,pgd-1"}),
    ],
    ids=[
        "fgsm",
        "pgd",
        "apgd",
        "fab",
        "fab-untargeted",
        "autoattack",
        "flags",
        "robust",
    ],
)
def test_attacks_by_gradients_refuse_a_model_without_one(function, options, model):
    said = refusal(function, model, **options)
    assert WITHOUT_GRADIENT[model] in said
    assert said.endswith(
        "with Square, which needs no gradient, or give it one with freeadv_jax.attacks.bpda"
    )


def test_square_attacks_a_model_without_a_gradient():
    labels = np.asarray(linear(IMAGES).argmax(axis=-1))
    outcome = square(on_the_host, IMAGES, labels, epsilon=0.5, queries=20)
    assert outcome.success.any()
    wrong = on_the_host(outcome.images).argmax(axis=-1) != labels
    np.testing.assert_array_equal(outcome.success, wrong)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (autoattack, {"version": "rand"}),
        (apgd, {"samples": 2}),
        (red_flags, {"samples": 2}),
    ],
    ids=["autoattack", "apgd", "red_flags"],
)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (linear, "takes images alone: a randomised model must be a function of images"),
        (lambda images, keys, train: linear(images), "the model needs train too"),
        (
            lambda images, key: images + jax.random.normal(key, images.shape),
            "the model fails on images of shape [1, 4, 4, 1]: normal accepts a single",
        ),
        (NNX(), "call model.eval() first"),
        (lambda images, keys: np.tanh(images), "must be written in jax.numpy"),
        (lambda images, keys: linear(images)[:, 0], "one output an image"),
    ],
    ids=["no keys", "a mode", "one key", "training", "NumPy", "sigmoid"],
)
def test_a_randomised_model_is_a_function_of_images_and_keys(
    function, options, model, message
):
    assert message in refusal(function, model, **options)


def test_two_logits_of_a_sigmoid_are_attacked():
    def logit(images):
        return linear(images - 0.5)[:, :1]

    def model(images):
        return jnp.concatenate([jnp.zeros_like(logit(images)), logit(images)], axis=-1)

    labels = np.asarray(logit(IMAGES)[:, 0] > 0).astype(np.int32)
    outcome = pgd(model, IMAGES, labels, epsilon=0.1, steps=5)
    assert outcome.standing["natural"] == 6
    # A linear logit moves by epsilon times the L1 norm of its weights.
    reach = 0.1 * np.abs(WEIGHTS[:, 0]).sum()
    within = np.abs(logit(IMAGES))[:, 0] < 0.9 * reach
    assert outcome.success[within].all()
    assert within.any()
