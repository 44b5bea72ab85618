"""A model is read as a graph of arrays, through all programs within it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enclosure import enclosure
from jax import lax

from freeadv_jax.certify.graph import trace
from freeadv_jax.certify.nodes import Elementwise, Image

IMAGE = jnp.ones((2, 2, 1))
WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def layer(images):
    return jax.nn.relu(images.reshape(len(images), -1) @ WEIGHTS)


def with_rules(kind):
    """Return the layer with a derivative or a batching rule of its own."""
    function = getattr(jax, kind, None) or getattr(jax.custom_batching, kind)
    wrapped = function(layer)
    if kind == "custom_jvp":
        wrapped.defjvp(lambda primals, tangents: (layer(*primals), layer(*tangents)))
    elif kind == "custom_vjp":
        wrapped.defvjp(lambda x: (layer(x), x), lambda x, cotangent: (x,))
    else:
        wrapped.def_vmap(lambda size, batched, x: (jax.vmap(layer)(x), True))
    return wrapped


WRAPPED = {
    "plain": layer,
    "jit": jax.jit(layer),
    "checkpoint": jax.checkpoint(layer),
    "custom_jvp": with_rules("custom_jvp"),
    "custom_vjp": with_rules("custom_vjp"),
    "custom_vmap": with_rules("custom_vmap"),
    "vmap": jax.vmap(lambda image: layer(image[None])[0]),
    "scan": lambda x: lax.scan(lambda c, _: (layer(x), None), layer(x), length=1)[0],
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_programs_within_the_program_are_read_in_its_place(kind):
    graph = trace(WRAPPED[kind], IMAGE)
    assert isinstance(graph.nodes[0], Image)
    assert graph.output is graph.nodes[-1]
    assert graph.output.shape == (3,)
    assert sum(isinstance(node, Elementwise) for node in graph.nodes) == 1


def test_constants_are_computed_as_the_program_says():
    def model(images):
        scale = jnp.sort(jnp.linspace(3.0, 1.0, 4))  # There is no rule for sort.
        return images.reshape(len(images), -1) * scale

    low, high, finite = enclosure(
        model, IMAGE[None], jnp.zeros(1), norm="linf", backward=True
    )
    assert finite.all()
    np.testing.assert_allclose(low[0], np.linspace(1, 3, 4), rtol=1e-4)
    np.testing.assert_allclose(high[0], np.linspace(1, 3, 4), rtol=1e-4)


def test_a_scan_is_read_step_by_step():
    def model(images):
        flat = images.reshape(len(images), -1)
        return lax.scan(lambda c, w: (jax.nn.relu(c @ w), None), flat, SQUARES)[0]

    graph = trace(model, IMAGE)
    assert sum(isinstance(node, Elementwise) for node in graph.nodes) == len(SQUARES)


SQUARES = np.random.default_rng(1).normal(size=(3, 4, 4)).astype(np.float32)
