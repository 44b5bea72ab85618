"""A model of Equinox is certified as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.certify import crown, interval

equinox = pytest.importorskip("equinox")
pytestmark = pytest.mark.equinox


class Network(equinox.Module):
    """Logits of one image [h, w, c], as Equinox's layers take it."""

    layers: equinox.nn.Sequential

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.layers = equinox.nn.Sequential(
            [
                equinox.nn.Conv2d(1, 2, 3, padding=1, key=first),
                equinox.nn.Lambda(jax.nn.relu),
                equinox.nn.MaxPool2d(2, 2),
                equinox.nn.AvgPool2d(2, 1),
                equinox.nn.Lambda(jnp.ravel),
                equinox.nn.Dropout(0.5),
                equinox.nn.Linear(2, 3, key=second),
            ]
        )

    def __call__(self, image):
        return self.layers(jnp.moveaxis(image, -1, 0))


@pytest.mark.parametrize("function", [interval, crown])
def test_a_module_of_equinox_is_certified(function):
    module = equinox.nn.inference_mode(Network(jax.random.key(0)))
    images = np.random.default_rng(0).random((3, 4, 4, 1), np.float32)
    logits = np.asarray(jax.vmap(module)(images))
    labels = logits.argmax(axis=1)
    others = labels[:, None] != np.arange(3)
    exact = (logits.max(axis=1, keepdims=True) - logits)[others]
    for model in (jax.vmap(module), equinox.filter_jit(equinox.filter_vmap(module))):
        found = function(model, images, labels, epsilon=0.0)
        np.testing.assert_allclose(found.margins[others], exact, atol=1e-4)
        wider = function(model, images, labels, epsilon=0.1)
        assert (wider.margins <= found.margins).all()
