import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from freeadv_jax.errors import InputError
from freeadv_jax.models.interface import as_model, logits_functions, loop_model
from freeadv_jax.models.normalized import NormalizedNetwork
from freeadv_jax.models.small_cnn import SmallCNN

IMAGES = np.random.default_rng(0).random((4, 6, 6, 1)).astype(np.float32)
KEY = jax.random.key(7)


class Linen(nn.Module):
    """A Linen module with BatchNorm, dropout and a collection of its own."""

    @nn.compact
    def __call__(self, images, training):
        calls = self.variable("calls", "count", lambda: jnp.zeros((), jnp.int32))
        if training:
            calls.value += 1
        hidden = nn.BatchNorm(use_running_average=not training, momentum=0.5)(images)
        hidden = hidden.reshape(len(images), -1)
        hidden = nn.Dropout(0.5)(hidden, deterministic=not training)
        return nn.Dense(3)(hidden)


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(1, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(36, 3, rngs=rngs)])

    def __call__(self, images):
        hidden = self.dropout(self.norm(images).reshape(len(images), -1))
        return self.layers[0](hidden)


MODELS = [Linen(), NNX(nnx.Rngs(0))]
BOTH = pytest.mark.parametrize("network", MODELS, ids=["linen", "nnx"])


@BOTH
def test_evaluation_is_deterministic_and_changes_nothing(network):
    model = as_model(network)
    variables = model.init(KEY, (6, 6, 1))
    first, again = (model.logits(variables, IMAGES) for _ in range(2))
    assert first.shape == (4, 3)
    np.testing.assert_array_equal(first, again)


@BOTH
def test_training_draws_dropout_from_the_key_and_moves_the_averages(network):
    model = as_model(network)
    variables = model.init(KEY, (6, 6, 1))
    logits, collections = model.train_logits(variables, IMAGES, KEY)
    same, _ = model.train_logits(variables, IMAGES, KEY)
    other, _ = model.train_logits(variables, IMAGES, jax.random.key(8))
    np.testing.assert_array_equal(logits, same)
    assert np.abs(logits - other).max() > 0.01
    assert jax.tree.structure(variables) == jax.tree.structure(
        {"params": variables["params"], **collections}
    )
    (mean,) = [
        leaf
        for path, leaf in jax.tree.leaves_with_path(collections)
        if "mean" in jax.tree_util.keystr(path)
    ]
    # The average starts at 0 and has momentum 1/2.
    np.testing.assert_allclose(mean, [IMAGES.mean() / 2], rtol=1e-5)


def test_any_collection_of_a_linen_module_is_carried():
    model = as_model(Linen())
    variables = model.init(KEY, (6, 6, 1))
    _, collections = model.train_logits(variables, IMAGES, KEY)
    assert int(collections["calls"]["count"]) == 1


def test_an_nnx_module_stays_as_it_is():
    network = NNX(nnx.Rngs(0))
    before = nnx.to_pure_dict(nnx.state(network))
    model = as_model(network)
    model.train_logits(model.init(KEY, (6, 6, 1)), IMAGES, KEY)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(
            *(
                jax.random.key_data(x)
                if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
                else x
                for x in (a, b)
            )
        ),
        nnx.to_pure_dict(nnx.state(network)),
        before,
    )
    assert not network.dropout.deterministic


def test_a_pair_of_functions_is_the_same_in_both_modes():
    model = as_model(
        (
            lambda key, shape: {"w": jnp.ones((36, 3))},
            lambda v, x: x.reshape(-1, 36) @ v["w"],
        )
    )
    variables = model.init(KEY, (6, 6, 1))
    logits, collections = model.train_logits(variables, IMAGES, KEY)
    assert collections == {}
    np.testing.assert_array_equal(logits, model.logits(variables, IMAGES))


def test_equal_models_share_one_logits_function():
    one, other = (logits_functions(Linen()) for _ in range(2))
    variables = as_model(Linen()).init(KEY, (6, 6, 1))
    assert jax.tree.structure(one(variables)) == jax.tree.structure(other(variables))


class NeedsMore(nn.Module):
    @nn.compact
    def __call__(self, images, mask):
        return images


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (NeedsMore(), "NeedsMore needs mask beside the images"),
        (lambda images: images, "the model is a function: must be"),
        ((1, 2), "the model is a tuple: must be"),
    ],
)
def test_other_models_are_refused_in_one_line(model, message):
    with pytest.raises(InputError, match=message) as raised:
        as_model(model)
    assert "\n" not in str(raised.value)


class Noisy(nn.Module):
    """A module with noise under a name of its own."""

    @nn.compact
    def __call__(self, images, train):
        pixels = images.reshape(len(images), -1)
        if train:
            pixels += jax.random.normal(self.make_rng("noise"), pixels.shape)
        return nn.Dense(3)(nn.Dropout(0.5)(pixels, deterministic=not train))


def test_noise_of_any_name_is_drawn_from_the_key():
    model = as_model(Noisy())
    variables = model.init(KEY, (6, 6, 1))
    logits, same, other = (
        model.train_logits(variables, IMAGES, key)[0]
        for key in (KEY, KEY, jax.random.key(8))
    )
    np.testing.assert_array_equal(logits, same)
    assert np.abs(logits - other).max() > 0.01


class AlwaysDropout(nn.Module):
    @nn.compact
    def __call__(self, images):
        pixels = images.reshape(len(images), -1)
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=False)(pixels))


class NoStreams(nnx.Module):
    def __init__(self):
        self.dropout = nnx.Dropout(0.5)
        self.dense = nnx.Linear(36, 3, rngs=nnx.Rngs(0))

    def __call__(self, images):
        return self.dense(self.dropout(images.reshape(len(images), -1)))


PAIR = (
    lambda key, shape: AlwaysDropout().init(
        {"params": key, "dropout": key}, jnp.zeros((1, *shape))
    ),
    AlwaysDropout().apply,
)


@pytest.mark.parametrize("form", [as_model, loop_model])
@pytest.mark.parametrize(
    ("network", "mode", "message"),
    [
        (AlwaysDropout(), "evaluation", "nn.Dropout(rate, deterministic=not train)"),
        (NoStreams(), "training", "give its layers rngs"),
        (PAIR, "training", "give the Flax module in place of the pair"),
        (PAIR, "evaluation", "give the Flax module in place of the pair"),
    ],
    ids=["linen", "nnx", "pair-training", "pair-evaluation"],
)
def test_dropout_without_a_key_is_refused_in_one_line(form, network, mode, message):
    model = form(network)
    variables = model.init(KEY, (6, 6, 1))
    with pytest.raises(InputError) as raised:
        if mode == "training":
            model.train_logits(variables, IMAGES, KEY)
        else:
            model.logits(variables, IMAGES)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_fault_of_the_model_itself_stays_what_it_is():
    def apply(variables, images):
        raise ValueError("mine")

    model = as_model((lambda key, shape: {}, apply))
    with pytest.raises(ValueError, match=r"^mine$"):
        model.logits({"params": {}}, IMAGES)


def test_only_convolutions_of_other_models_are_replaced():
    ours = NormalizedNetwork(SmallCNN(3, batch_norm=False), "per_image")
    assert loop_model(ours).module is ours
    assert loop_model(Linen()).model.module == Linen()
