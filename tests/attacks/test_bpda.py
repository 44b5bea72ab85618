"""BPDA: the true forward pass with another function's gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks import apgd, autoattack, bpda, fab, pgd, square
from freeadv_jax.errors import InputError
from freeadv_jax.models.fast_conv import with_fast_convolutions

RNG = np.random.default_rng(0)
SHAPE = (6, 5, 1)
PIXELS = 30
LEVELS = 8
FIRST, SECOND = RNG.normal(size=(PIXELS, 12)), RNG.normal(size=(12, 4))
IMAGES = RNG.uniform(0.3, 0.7, (32, *SHAPE)).astype(np.float32)
WEIGHTS = RNG.normal(size=(PIXELS, 3)).astype(np.float32)


def rounded(images):
    return jnp.round(images * LEVELS) / LEVELS


def wavy(images):
    return jnp.sin(images) * images


def network(images):
    hidden = jnp.tanh(images.reshape(len(images), -1) @ FIRST.astype(images.dtype))
    return hidden @ SECOND.astype(images.dtype)


def gradient_of_network(images, cotangent):
    """Return the gradient of cotangent . network(images) by hand, in NumPy."""
    hidden = np.tanh(images.reshape(len(images), -1) @ FIRST)
    return ((cotangent @ SECOND.T) * (1 - hidden**2) @ FIRST.T).reshape(images.shape)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, with_fast_convolutions])
def test_gradient_is_that_of_backward_and_the_rest_is_taken_at_the_true_output(
    transform,
):
    with jax.enable_x64(True):
        images = IMAGES.astype(np.float64)
        cotangent = np.random.default_rng(1).normal(size=(32, 4))
        defended = transform(lambda x: network(bpda(rounded, wavy)(x)))
        logits, pullback = jax.vjp(defended, jnp.asarray(images))
        (found,) = pullback(jnp.asarray(cotangent))
        inner = gradient_of_network(np.round(images * LEVELS) / LEVELS, cotangent)
        slope = np.sin(images) + np.cos(images) * images
        np.testing.assert_allclose(found, inner * slope, rtol=1e-10)
        np.testing.assert_array_equal(logits, network(rounded(images)))


def test_the_default_is_the_identity_in_the_first_argument():
    keys = jax.random.split(jax.random.key(0), 32)

    def dithered(images, keys):
        noise = jax.vmap(lambda key: jax.random.uniform(key, SHAPE))(keys)
        return jnp.floor(images * LEVELS + noise) / LEVELS

    defended = bpda(dithered)
    np.testing.assert_array_equal(defended(IMAGES, keys), dithered(IMAGES, keys))
    gradient = jax.grad(lambda x: (defended(x, keys) ** 2).sum())(jnp.asarray(IMAGES))
    np.testing.assert_allclose(gradient, 2 * dithered(IMAGES, keys), rtol=1e-6)
    tangent = jax.jvp(lambda x: defended(x, keys), (IMAGES,), (np.ones_like(IMAGES),))[
        1
    ]
    np.testing.assert_array_equal(tangent, np.ones_like(IMAGES))


def test_forward_may_call_the_host():
    shape = jax.ShapeDtypeStruct(IMAGES.shape, np.float32)

    def on_the_host(images):
        return jax.pure_callback(lambda x: np.round(np.asarray(x), 1), shape, images)

    gradient = jax.grad(lambda x: network(bpda(on_the_host)(x)).sum())(IMAGES)
    inner = gradient_of_network(
        np.round(IMAGES, 1).astype(np.float64), np.ones((32, 4))
    )
    np.testing.assert_allclose(gradient, inner, rtol=2e-3, atol=1e-4)


def linear(images):
    return (images - 0.5).reshape(len(images), -1) @ WEIGHTS


LABELS = np.asarray(linear(rounded(IMAGES))).argmax(axis=-1)
# Three quarters of the distance between two levels.
EPSILON = 0.75 / LEVELS


def thermometer(images):
    """Return the code of Buckman et al. (2018): for each level, whether a pixel is above."""
    levels = (jnp.arange(LEVELS, dtype=images.dtype) + 0.5) / LEVELS
    return (images > levels).astype(images.dtype)


def smooth_thermometer(images):
    levels = (jnp.arange(LEVELS, dtype=images.dtype) + 0.5) / LEVELS
    return jnp.clip((images - levels) * LEVELS + 0.5, 0, 1)


def of_codes(codes):
    """Return the logits of `linear` at the image that a thermometer code says."""
    return linear(codes.mean(axis=-1, keepdims=True))


DEFENCES = {
    "rounding": (rounded, linear, None),
    "thermometer": (thermometer, of_codes, smooth_thermometer),
}


@pytest.mark.parametrize(
    ("name", "attack"),
    [
        ("rounding", pgd),
        ("thermometer", fab),
        pytest.param("thermometer", pgd, marks=pytest.mark.slow),
        pytest.param("thermometer", apgd, marks=pytest.mark.slow),
        pytest.param("rounding", apgd, marks=pytest.mark.slow),
        pytest.param("rounding", fab, marks=pytest.mark.slow),
    ],
)
def test_a_defence_that_plain_gradients_cannot_break_falls_to_bpda(name, attack):
    encode, rest, stand_in = DEFENCES[name]
    call = {"epsilon": EPSILON, "steps": 15, "batch_size": 32}
    if attack is pgd:
        call["random_start"] = False
    plain = attack(lambda x: rest(encode(x)), IMAGES, LABELS, **call)
    adaptive = attack(lambda x: rest(bpda(encode, stand_in)(x)), IMAGES, LABELS, **call)
    assert plain.standing["natural"] == 32
    # The random start of APGD breaks some images.
    assert plain.success.mean() < (0.6 if attack is apgd else 0.01)
    assert adaptive.success.mean() > (0.6 if attack is fab else 0.9)
    wrong = np.asarray(rest(encode(adaptive.images))).argmax(axis=-1) != LABELS
    np.testing.assert_array_equal(adaptive.success, wrong)
    assert np.abs(adaptive.images - IMAGES).max() <= EPSILON + 6e-8


@pytest.mark.slow
def test_bpda_and_draws_go_together():
    """The dither has no gradient, and a draw of it is no measure of the others."""

    def dithered(images, keys):
        noise = jax.vmap(lambda key: jax.random.uniform(key, SHAPE))(keys)
        return jnp.floor(images * LEVELS + noise) / LEVELS

    call = {"epsilon": EPSILON, "steps": 15, "samples": 8, "random_start": False}
    labels = np.asarray(linear(IMAGES)).argmax(axis=-1)
    plain = pgd(lambda x, keys: linear(dithered(x, keys)), IMAGES, labels, **call)
    defended = bpda(dithered)
    adaptive = pgd(lambda x, keys: linear(defended(x, keys)), IMAGES, labels, **call)
    assert plain.success.mean() < 0.1
    assert adaptive.success.mean() > 0.9
    fresh = jax.random.split(jax.random.key(9), (300, 32))
    logits = jax.vmap(lambda keys: linear(dithered(adaptive.images, keys)))(fresh)
    wrong = logits.mean(axis=0).argmax(axis=-1) != labels
    # The attack has nothing to do where two classes are nearly equal.
    largest = np.sort(np.asarray(linear(IMAGES)), axis=-1)
    clear = largest[:, -1] - largest[:, -2] > 0.2
    assert clear.sum() > 16
    assert wrong[adaptive.success & clear].all()


@pytest.mark.slow
def test_autoattack_takes_a_model_with_bpda():
    plain, adaptive = (
        autoattack(
            lambda x, encode=encode: linear(encode(x)),
            IMAGES,
            LABELS,
            epsilon=EPSILON,
            batch_size=32,
        )
        for encode in (rounded, bpda(rounded))
    )
    assert adaptive.standing["apgd-ce"] < 0.1 * 32
    # The random start alone breaks some.
    assert plain.standing["apgd-ce"] > 0.5 * 32


REFUSED = {
    "shape": (
        rounded,
        lambda x: x[:, :3],
        (
            "bpda: backward gives shape (1, 3, 5, 1) and forward (1, 6, 5, 1) for inputs of "
            "shape (1, 6, 5, 1): must be the same"
        ),
    ),
    "identity": (
        thermometer,
        None,
        (
            "bpda: the identity, which stands in for backward, gives shape (1, 6, 5, 1) and "
            "forward (1, 6, 5, 8)"
        ),
    ),
    "whole numbers": (
        lambda x: jnp.round(x).astype(int),
        None,
        "bpda: forward gives int32, which has no gradient: must be floats",
    ),
    "a tuple": (
        lambda x: (x, x),
        None,
        "bpda: forward gives a tuple: must be one array",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_functions_that_do_not_fit_are_refused_in_one_line(case):
    forward, backward, message = REFUSED[case]
    with pytest.raises(InputError) as refused:
        pgd(
            lambda x: linear(bpda(forward, backward)(x)),
            IMAGES,
            LABELS,
            epsilon=EPSILON,
        )
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_signature_is_that_of_forward_so_that_missing_keys_are_noticed():
    def with_keys(images, keys):
        return linear(images)

    with pytest.raises(InputError, match="needs keys beside the images"):
        pgd(bpda(with_keys, with_keys), IMAGES, LABELS, epsilon=EPSILON)
    message = "takes images alone: a randomised model"
    with pytest.raises(InputError, match=message):
        pgd(bpda(linear, linear), IMAGES, LABELS, epsilon=EPSILON, samples=5)


def test_a_model_without_a_gradient_is_refused_in_a_line_that_names_bpda():
    def on_the_host(images):
        like = jax.ShapeDtypeStruct(images.shape, images.dtype)
        return jax.pure_callback(lambda x: np.round(np.asarray(x), 1), like, images)

    with pytest.raises(
        InputError, match=r"or give it one with freeadv_jax\.attacks\.bpda"
    ):
        pgd(lambda x: linear(on_the_host(x)), IMAGES, LABELS, epsilon=EPSILON)
    outcome = square(
        lambda x: linear(on_the_host(x)), IMAGES, LABELS, epsilon=EPSILON, queries=10
    )
    assert outcome.success.any()
