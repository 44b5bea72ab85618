"""A model of Equinox with layers of many kinds is attacked and evaluated as it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks import autoattack, pgd, red_flags
from freeadv_jax.attacks.robustness import robust_accuracy
from freeadv_jax.attacks.square import Square

equinox = pytest.importorskip("equinox")
pytestmark = pytest.mark.equinox

# The model says class 1 if the mean pixel is above 0.5. All pixels of an image are equal,
# so epsilon 0.1 breaks exactly the images within 0.1 of 0.5.
LEVELS = np.linspace(0.05, 0.95, 16, dtype=np.float32)
IMAGES = np.tile(LEVELS[:, None, None, None], (1, 4, 4, 1))
LABELS = (LEVELS > 0.5).astype(np.int32)
NEAR = np.abs(LEVELS - 0.5) < 0.1
CALL = {"norm": "linf", "epsilon": 0.1}


class Network(equinox.Module):
    """Logits of one image [h, w, c], as Equinox's layers take it."""

    convolution: equinox.nn.Conv2d
    dropout: equinox.nn.Dropout
    output: equinox.nn.Linear
    activation: object

    def __init__(self):
        first, second = jax.random.split(jax.random.key(0))
        convolution = equinox.nn.Conv2d(1, 2, 1, key=first)
        kernel = jnp.array([1.0, -1.0]).reshape(2, 1, 1, 1)
        self.convolution = equinox.tree_at(
            lambda layer: (layer.weight, layer.bias),
            convolution,
            (kernel, jnp.array([-0.5, 0.5]).reshape(2, 1, 1)),
        )
        self.activation = jnp.tanh
        self.dropout = equinox.nn.Dropout(0.5)
        output = equinox.nn.Linear(32, 2, use_bias=False, key=second)
        weight = jnp.repeat(jnp.array([[-1.0, 1.0], [1.0, -1.0]]), 16, axis=1)
        self.output = equinox.tree_at(lambda layer: layer.weight, output, weight)

    def __call__(self, image, key=None):
        x = self.activation(self.convolution(jnp.moveaxis(image, -1, 0)))
        return self.output(self.dropout(x.reshape(-1), key=key))


class Batched(equinox.Module):
    """A model of one image as a model of a batch, whose weights remain leaves."""

    model: Network

    def __call__(self, images):
        return jax.vmap(self.model)(images)


def evaluation_mode():
    return equinox.nn.inference_mode(Network())


MODELS = {
    "module": lambda: Batched(evaluation_mode()),
    "vmap": lambda: jax.vmap(evaluation_mode()),
    "filter_vmap": lambda: equinox.filter_vmap(evaluation_mode()),
    "filter_jit": lambda: equinox.filter_jit(equinox.filter_vmap(evaluation_mode())),
}


@pytest.mark.parametrize("kind", MODELS)
def test_exactly_the_images_within_epsilon_of_the_boundary_are_broken(kind):
    options = {"attacks": ("natural", "pgd-10"), "red_flags": False}
    found = robust_accuracy(MODELS[kind](), IMAGES, LABELS, **CALL, **options)
    assert found.rows["natural"]["accuracy"] == 1
    np.testing.assert_array_equal(found.robust["pgd-10"], ~NEAR)


def test_a_second_module_of_the_same_structure_compiles_nothing():
    module = MODELS["module"]()
    assert pgd(module, IMAGES, LABELS, **CALL).success.sum() == NEAR.sum()
    flipped = equinox.tree_at(
        lambda m: m.model.output.weight, module, -module.model.output.weight
    )
    outcome = pgd(flipped, IMAGES, LABELS, **CALL)
    assert outcome.compilations == 0
    assert outcome.success.all()


def test_autoattack_and_red_flags_take_a_module_with_flags_among_its_leaves(
    monkeypatch, caplog
):
    shorter = functools.partial(Square, steps=60)
    monkeypatch.setattr("freeadv_jax.attacks.ensemble.Square", shorter)
    module = MODELS["module"]()
    np.testing.assert_array_equal(
        autoattack(module, IMAGES, LABELS, **CALL).success, NEAR
    )
    assert "randomised" not in caplog.text
    flags = red_flags(module, IMAGES, LABELS, **CALL)
    assert [flag.name for flag in flags if flag.suspicious] == []
