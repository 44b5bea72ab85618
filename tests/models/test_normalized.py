from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.models import build_model
from freeadv_jax.models.normalized import NormalizedNetwork, standardize_per_image
from freeadv_jax.models.small_cnn import SmallCNN


def test_per_image_standardisation_equals_that_of_tensorflow():
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(3, 8, 8, 3)).astype(np.float32)
    images[1] *= 0.01
    images[2] = 0.3
    for image, ours in zip(
        images, standardize_per_image(jnp.asarray(images)), strict=True
    ):
        image = np.float64(image)
        expected = (image - image.mean()) / max(image.std(), 192**-0.5)
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_a_constant_image_has_the_gradient_of_the_bounded_deviation():
    images = jnp.full((1, 4, 4, 3), 0.25)
    weights = jax.random.normal(jax.random.key(0), images.shape)
    gradient = jax.grad(lambda x: jnp.sum(weights * standardize_per_image(x)))(images)
    expected = (weights - weights.mean()) * 48**0.5
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


def initial(model, images):
    return jax.jit(partial(model.init, train=False))(jax.random.key(0), images)


def test_rematerialisation_changes_no_gradient_and_keeps_the_parameters():
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))
    found = {}
    for remat in (False, True):
        model = build_model(
            "wrn-10-1",
            num_classes=3,
            image_shape=(8, 8, 3),
            normalization="mean_std",
            mean=(0.5,),
            std=(0.25,),
            dtype="float32",
            batch_norm_axis=None,
            remat=remat,
        )
        variables = initial(model, images)

        def loss(params, model=model, variables=variables):
            logits, _ = model.apply(
                variables | {"params": params},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            return jnp.sum(logits**2)

        gradients = jax.jit(jax.grad(loss))
        text = str(jax.make_jaxpr(gradients)(variables["params"]))
        found[remat] = gradients(variables["params"]), "remat" in text
    assert (found[False][1], found[True][1]) == (False, True)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4),
        found[False][0],
        found[True][0],
    )


def logits_of(normalization, mean, std, images):
    network = SmallCNN(4, batch_norm=False, features=(4,), hidden=8)
    classifier = NormalizedNetwork(network, normalization, mean, std)
    variables = initial(classifier, images)
    logits = jax.jit(partial(classifier.apply, train=False))(variables, images)
    params = {"params": variables["params"]["network"]}
    return logits, jax.jit(lambda x: network.apply(params, x, train=False))


@pytest.mark.parametrize("mean, std", [((0.5,), (0.25,)), ((0.1, 0.2), (0.3, 0.4))])
def test_mean_and_std_are_one_number_or_one_per_channel(mean, std):
    images = jax.random.uniform(jax.random.key(1), (2, 4, 4, 2))
    logits, network = logits_of("mean_std", mean, std, images)
    normalised = (images - jnp.float32(mean)) / jnp.float32(std)
    np.testing.assert_allclose(logits, network(normalised), atol=1e-6)


def test_per_image_normalisation_comes_before_the_network():
    images = jax.random.uniform(jax.random.key(1), (2, 4, 4, 2))
    logits, network = logits_of("per_image", (0.0,), (1.0,), images)
    expected = network(standardize_per_image(images))
    np.testing.assert_allclose(logits, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["wrn-10-1", "small-cnn-bn"])
def test_bfloat16_computes_near_float32_and_keeps_state_and_logits_float32(
    name, randomized
):
    images = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3))
    arguments = {
        "num_classes": 10,
        "image_shape": (8, 8, 3),
        "normalization": "per_image",
        "mean": (0.0,),
        "std": (1.0,),
        "batch_norm_axis": None,
    }
    narrow = build_model(name, dtype="bfloat16", **arguments)
    wide = build_model(name, dtype="float32", **arguments)
    variables = randomized(wide, images)

    def loss(params, images):
        logits, updates = narrow.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.sum(logits**2), (logits, updates)

    gradients, (logits, updates) = jax.jit(
        jax.grad(loss, argnums=(0, 1), has_aux=True)
    )(variables["params"], images)
    everything = jax.tree.leaves((gradients, logits, updates))
    assert {leaf.dtype for leaf in everything} == {jnp.dtype(jnp.float32)}
    exact, _ = jax.jit(
        lambda x: wide.apply(variables, x, train=True, mutable=["batch_stats"])
    )(images)
    assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def test_two_devices_normalise_like_one_device_with_the_whole_batch(
    randomized,
):
    images = jax.random.uniform(jax.random.key(1), (8, 8, 8, 3))
    images = images * jnp.linspace(0.1, 1.0, 8).reshape(8, 1, 1, 1)
    arguments = {
        "num_classes": 10,
        "image_shape": (8, 8, 3),
        "normalization": "mean_std",
        "mean": (0.5,),
        "std": (0.25,),
        "dtype": "float32",
    }
    alone = build_model("small-cnn-bn", batch_norm_axis=None, **arguments)
    together = build_model("small-cnn-bn", batch_norm_axis="devices", **arguments)
    variables = randomized(together, images)

    @partial(jax.jit, static_argnums=0)
    def run(model, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    halves = images.reshape(2, 4, 8, 8, 3)
    logits, updates = jax.pmap(
        lambda x: run(together, x), axis_name="devices", devices=jax.devices()[:2]
    )(halves)
    expected, whole = run(alone, images)
    np.testing.assert_allclose(logits.reshape(8, 10), expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda each, one: np.testing.assert_allclose(
            each, np.broadcast_to(one, each.shape), atol=1e-6
        ),
        updates,
        whole,
    )
    apart, _ = jax.pmap(lambda x: run(alone, x), devices=jax.devices()[:2])(halves)
    assert np.abs(apart.reshape(8, 10) - expected).max() > 0.01
