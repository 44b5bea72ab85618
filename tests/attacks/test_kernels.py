"""The kernels of attacks: long ones take oneDNN's, with the same outcome."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks import fab, pgd, square
from freeadv_jax.attacks.attack import as_pytree
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.attacks.cost import cost_of
from freeadv_jax.attacks.draws import image_keys, randomized
from freeadv_jax.attacks.kernels import kernels_for, traced_with
from freeadv_jax.attacks.pgd import PGD
from freeadv_jax.attacks.robustness import robust_accuracy
from freeadv_jax.devices import onednn
from freeadv_jax.models.interface import logits_functions
from freeadv_jax.models.normalized import NormalizedNetwork
from freeadv_jax.models.small_cnn import SmallCNN

needs_onednn = pytest.mark.skipif(
    onednn.unavailable() is not None, reason=f"no oneDNN: {onednn.unavailable()}"
)
IMAGES = np.random.default_rng(0).random((6, 8, 8, 1), np.float32)
IMAGES *= np.linspace(0.1, 1, 6, dtype=np.float32)[:, None, None, None]
KEY = jax.random.key(0)


class Own(nn.Module):
    """A user's model with Flax's own convolutions."""

    @nn.compact
    def __call__(self, images, *, train):
        hidden = nn.relu(nn.Conv(8, (3, 3), use_bias=False)(images))
        hidden = nn.relu(nn.Conv(16, (3, 3), strides=(2, 2))(hidden))
        return nn.Dense(4)(4 * hidden.mean(axis=(1, 2)))


def own():
    model = Own()
    return logits_functions(model)(model.init(KEY, jnp.asarray(IMAGES), train=False))


def ours():
    network = SmallCNN(num_classes=4, dtype=jnp.float32, batch_norm=False)
    model = NormalizedNetwork(network, "per_image")
    return logits_functions(model)(model.init(KEY, jnp.asarray(IMAGES), train=False))


def plain_function():
    logits_fn = own()
    return lambda images: logits_fn(images)


MODELS = [ours, own, plain_function]
ATTACK = PGD(norm="linf", epsilon=0.1, steps=20, step_size=0.025, restarts=2)


@needs_onednn
def test_long_attacks_take_onednns_kernels_and_short_ones_xlas():
    logits_fn = own()
    forward = 2 * (8 * 8 * 9 * 8 + 4 * 4 * 9 * 8 * 16)
    # At the limit of 1e13 FLOP, forward and backward.
    count = 1e13 / (2 * forward * ATTACK.steps * ATTACK.attempts)

    def chosen(choice, count):
        images = jax.ShapeDtypeStruct((round(count), 8, 8, 1), np.uint8)
        return kernels_for(choice, [ATTACK], logits_fn, _Sized(images))

    assert chosen("auto", 0.99 * count) == "xla"
    assert chosen("auto", 1.01 * count) == "onednn"
    assert chosen("onednn", 1) == "onednn"
    assert chosen("xla", 2 * count) == "xla"


@dataclasses.dataclass
class _Sized:
    """Images that have a number and a shape, and no pixels."""

    like: jax.ShapeDtypeStruct
    shape = property(lambda self: self.like.shape)

    def __len__(self):
        return self.like.shape[0]


def test_without_onednn_the_model_is_not_even_traced(monkeypatch):
    monkeypatch.setattr(onednn, "unavailable", lambda: "FREEADV_ONEDNN=0")

    def untraceable(images):
        raise AssertionError("traced")

    assert kernels_for("auto", [ATTACK], untraceable, IMAGES) == "xla"


@needs_onednn
@pytest.mark.parametrize("model", MODELS)
def test_the_calls_are_in_the_program_of_onednns_alone(model):
    logits_fn = model()
    assert traced_with("xla", logits_fn) is logits_fn
    for name in ("xla", "onednn"):
        lowered = jax.jit(lambda f, x: f(x)).lower(
            as_pytree(traced_with(name, logits_fn)), IMAGES
        )
        assert ("__onednn$convolution" in lowered.as_text()) == (name == "onednn")


@needs_onednn
def test_one_program_serves_all_models_of_a_structure():
    model = Own()
    function_of = logits_functions(model)
    variables = [model.init(jax.random.key(n), IMAGES, train=False) for n in (0, 1)]
    campaigns = [Campaign(batch_size=5, seed=0) for _ in variables]
    logits = [
        campaign.logits(traced_with("onednn", function_of(weights)), IMAGES)
        for campaign, weights in zip(campaigns, variables, strict=True)
    ]
    assert campaigns[1].compilations == 0
    for found, weights in zip(logits, variables, strict=True):
        wanted = model.apply(weights, IMAGES, train=False)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize(
    "model, epsilon, attacks",
    [
        (own, 0.1, "pgd-5"),
        pytest.param(own, 0.1, "fab-t", marks=pytest.mark.slow),
        pytest.param(ours, 0.02, "pgd-5,apgd-t,fab-t", marks=pytest.mark.slow),
    ],
)
def test_attacks_have_the_same_outcome_with_either_kernels(model, epsilon, attacks):
    logits_fn = model()
    labels = np.asarray(logits_fn(jnp.asarray(IMAGES)).argmax(axis=-1))
    xlas, onednns = (
        robust_accuracy(
            logits_fn,
            IMAGES,
            labels,
            epsilon=epsilon,
            attacks=attacks,
            convolutions=name,
            red_flags=False,
        ).robust
        for name in ("xla", "onednn")
    )
    for attack, robust in xlas.items():
        assert 0 < robust.sum() < len(labels)
        np.testing.assert_array_equal(onednns[attack], robust)


@needs_onednn
@pytest.mark.parametrize("attack", [pgd, fab, square])
def test_attack_functions_choose_by_themselves(attack, monkeypatch):
    monkeypatch.setattr(onednn, "_LONG_ATTACK_FLOP", 0)
    chosen = []

    def recording(kernels, logits_fn, **options):
        chosen.append(kernels)
        return traced_with(kernels, logits_fn, **options)

    monkeypatch.setattr("freeadv_jax.attacks.runner.traced_with", recording)
    logits_fn = own()
    labels = np.asarray(logits_fn(jnp.asarray(IMAGES)).argmax(axis=-1))
    outcome = attack(logits_fn, IMAGES, labels, epsilon=0.3, **_steps(attack))
    assert chosen == ["onednn"]
    assert np.abs(outcome.images - IMAGES).max() <= 0.3 + 1e-6


def _steps(attack):
    return {"queries": 20} if attack is square else {"steps": 3}


def randomised():
    """Return the model `own` of images and keys, with noise on the images."""
    logits_fn = own()

    def noisy(logits_fn, images, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (8, 8, 1)))(keys)
        return logits_fn(images + 0.1 * noise)

    return randomized(jax.tree_util.Partial(noisy, logits_fn))


@needs_onednn
def test_the_draws_of_a_randomised_model_count_as_work():
    logits_fn, attack = randomised(), dataclasses.replace(ATTACK, samples=10)
    forward = 2 * (8 * 8 * 9 * 8 + 4 * 4 * 9 * 8 * 16)
    count = 1e13 / (2 * forward * attack.steps * attack.attempts * 10)
    for part, kernels in ((0.99, "xla"), (1.01, "onednn")):
        images = jax.ShapeDtypeStruct((round(part * count), 8, 8, 1), np.uint8)
        assert kernels_for("auto", [attack], logits_fn, _Sized(images)) == kernels


def test_gradients_in_the_loop_over_draws_are_fast_on_a_cpu():
    """The outcome of a draw is the same."""
    logits_fn, keys = randomised(), image_keys(len(IMAGES))

    def gradient(logits_fn):
        return jax.grad(lambda images: logits_fn(images, keys)[:, 0].sum())

    looped = traced_with("xla", logits_fn, looped=True)
    program = jax.make_jaxpr(gradient(looped))(IMAGES)
    assert cost_of(program.jaxpr).fast_in_loops
    assert not cost_of(jax.make_jaxpr(gradient(logits_fn))(IMAGES).jaxpr).fast_in_loops
    np.testing.assert_allclose(
        jax.jit(gradient(looped))(IMAGES),
        jax.jit(gradient(logits_fn))(IMAGES),
        atol=1e-5,
    )
