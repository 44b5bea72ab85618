"""Batch normalisation gives the values and gradients of Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.models.batch_norm import BatchNorm

EPSILON = 1e-3


def example(shape, seed=0):
    """Return images, variables and a cotangent whose channels all differ."""
    features = shape[-1]
    keys = jax.random.split(jax.random.key(seed), 5)
    images = 2 * jax.random.normal(keys[0], shape) + jnp.arange(1.0, features + 1)
    variables = {
        "params": {
            "scale": jax.random.uniform(keys[1], (features,), minval=0.5, maxval=2.0),
            "bias": jax.random.normal(keys[2], (features,)),
        },
        "batch_stats": {
            "mean": jax.random.normal(keys[3], (features,)),
            "var": jnp.arange(1.0, features + 1),
        },
    }
    return images, variables, jax.random.normal(keys[4], shape)


def outcome(apply, images, variables, cotangent):
    """Return outputs, new averages, and the gradients of images and parameters."""

    def forward(images, params):
        return apply({**variables, "params": params}, images)

    @jax.jit
    def passes(images, params, cotangent):
        outputs, pull_back, averages = jax.vjp(forward, images, params, has_aux=True)
        return outputs, averages, pull_back(cotangent)

    return passes(images, variables["params"], cotangent)


# The module sums 40 images as XLA does, and 5 or 32 images in two stages; with 5 the last
# window of the first stage is not full.
@pytest.mark.parametrize("shape", [(5, 6, 7, 3), (32, 4, 4, 8), (40, 3, 5, 4)])
def test_training_gives_the_outputs_averages_and_gradients_of_flax(shape):
    ours = BatchNorm(epsilon=EPSILON, axis_name=None)
    flax = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=EPSILON)
    found = outcome(
        lambda v, x: ours.apply(v, x, train=True, mutable=["batch_stats"]),
        *example(shape),
    )
    expected = outcome(
        lambda v, x: flax.apply(v, x, mutable=["batch_stats"]), *example(shape)
    )
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(
        jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def test_a_nearly_constant_channel_stays_finite():
    # For some of these values, the mean of squares minus the squared mean is negative.
    values = jnp.linspace(900.0, 1100.0, 64)
    images = jnp.broadcast_to(values, (40, 5, 5, 64))
    variables = example((1, 1, 1, 64))[1]
    outputs, mutated = BatchNorm(epsilon=1e-5, axis_name=None).apply(
        variables, images, train=True, mutable=["batch_stats"]
    )
    assert np.isfinite(outputs).all()
    assert (
        mutated["batch_stats"]["var"] >= 0.9 * variables["batch_stats"]["var"]
    ).all()


def test_evaluation_uses_the_running_averages_and_keeps_them():
    images, variables, _ = example((6, 4, 4, 3))
    outputs, mutated = BatchNorm(epsilon=EPSILON, axis_name=None).apply(
        variables, images, train=False, mutable=["batch_stats"]
    )
    statistics, params = variables["batch_stats"], variables["params"]
    expected = (images - statistics["mean"]) / np.sqrt(statistics["var"] + EPSILON)
    np.testing.assert_allclose(
        outputs, expected * params["scale"] + params["bias"], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(mutated["batch_stats"]["mean"], statistics["mean"])


def test_devices_together_give_the_gradients_of_the_whole_batch():
    shape = (16, 3, 3, 4)
    images, variables, cotangent = example(shape)
    over_devices = BatchNorm(epsilon=EPSILON, axis_name="devices")

    def on_a_device(images, cotangent):
        outputs, averages, gradients = outcome(
            lambda v, x: over_devices.apply(v, x, train=True, mutable=["batch_stats"]),
            images,
            variables,
            cotangent,
        )
        of_images, of_params = gradients
        return outputs, averages, of_images, jax.lax.psum(of_params, "devices")

    parts = [array.reshape(8, 2, *shape[1:]) for array in (images, cotangent)]
    outputs, averages, of_images, of_params = jax.pmap(
        on_a_device, axis_name="devices"
    )(*parts)
    expected_outputs, expected_averages, expected = outcome(
        lambda v, x: BatchNorm(epsilon=EPSILON, axis_name=None).apply(
            v, x, train=True, mutable=["batch_stats"]
        ),
        images,
        variables,
        cotangent,
    )
    close = {"rtol": 2e-5, "atol": 2e-5}
    np.testing.assert_allclose(outputs.reshape(shape), expected_outputs, **close)
    np.testing.assert_allclose(of_images.reshape(shape), expected[0], **close)
    # Every device holds the same values.
    for one, other in ((averages, expected_averages), (of_params, expected[1])):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a, np.broadcast_to(b, a.shape), **close
            ),
            one,
            other,
        )


def test_a_constant_channel_becomes_its_bias_and_has_finite_gradients():
    images, variables, cotangent = example((4, 2, 2, 3))
    images = images.at[..., 1].set(0.25)
    outputs, _, (of_images, _) = outcome(
        lambda v, x: BatchNorm(epsilon=EPSILON, axis_name=None).apply(
            v, x, train=True, mutable=["batch_stats"]
        ),
        images,
        variables,
        cotangent,
    )
    np.testing.assert_allclose(
        outputs[..., 1], variables["params"]["bias"][1], rtol=0, atol=1e-6
    )
    assert np.isfinite(of_images).all()


def test_weights_of_flax_batch_norm_fit_under_the_same_names():
    """Weights and checkpoints of either layer load into the other."""
    images, variables, _ = example((2, 3, 3, 2))
    ours = BatchNorm(epsilon=EPSILON, axis_name=None)
    flax = nn.BatchNorm(use_running_average=True, momentum=0.9, epsilon=EPSILON)
    np.testing.assert_allclose(
        ours.apply(variables, images, train=False),
        flax.apply(variables, images),
        rtol=1e-5,
        atol=1e-6,
    )


def test_the_gradient_of_images_can_be_differentiated():
    """The second gradients agree with those of the plain formula in float64."""
    layer = BatchNorm(epsilon=EPSILON, axis_name=None)

    def ours(variables, images):
        return layer.apply(variables, images, train=True, mutable=["batch_stats"])[0]

    def plain(variables, images):
        params, centred = variables["params"], images - images.mean((0, 1, 2))
        deviation = jnp.sqrt((centred**2).mean((0, 1, 2)) + EPSILON)
        return centred / deviation * params["scale"] + params["bias"]

    def slope(apply, images, variables, direction):
        gradient = jax.grad(lambda images: jnp.sin(apply(variables, images)).sum())
        return jnp.sum(gradient(images) * direction)

    with jax.enable_x64(True):
        images, variables, direction = example((32, 2, 3, 4))
        found, expected = (
            jax.jit(jax.grad(slope, (1, 2)), static_argnums=0)(
                apply, images, variables, direction
            )
            for apply in (ours, plain)
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-10),
        found,
        expected,
    )
