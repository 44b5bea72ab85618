"""Trained models, the user's own among them, are saved and loaded with the same bits."""

import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import freeadv_jax
from freeadv_jax.errors import InputError
from freeadv_jax.files import read_json
from freeadv_jax.models import build_model
from freeadv_jax.models.imported import import_model
from freeadv_jax.models.interface import as_model
from freeadv_jax.weights.classifier import as_classifier

SHAPE = (8, 8, 1)
IMAGES = np.random.default_rng(0).uniform(size=(4, *SHAPE)).astype(np.float32)


class Net(nn.Module):
    width: int = 16
    num_classes: int = 10

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Dense(self.width)(images.reshape(len(images), -1))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(self.num_classes)(nn.relu(x))


class NNXNet(nnx.Module):
    def __init__(self, rngs, num_classes=10):
        self.hidden = nnx.Linear(64, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.outputs = nnx.List([nnx.Linear(16, num_classes, rngs=rngs)])

    def __call__(self, images):
        x = self.norm(self.hidden(images.reshape(len(images), -1)))
        return self.outputs[0](self.dropout(nnx.relu(x)))


def pair():
    def init(key, image_shape):
        keys = jax.random.split(key)
        return [
            {"w": jax.random.normal(keys[0], (64, 16)), "count": jnp.array(3)},
            (jax.random.normal(keys[1], (16, 10)).astype(jnp.bfloat16),),
        ]

    def apply(variables, images):
        hidden = nn.relu(images.reshape(len(images), -1) @ variables[0]["w"])
        return hidden @ variables[1][0].astype(jnp.float32)

    return init, apply


MODELS = {"linen": Net(), "nnx": NNXNet(nnx.Rngs(1)), "pair": pair()}


def classifier_of(model, **options):
    variables = as_model(model).init(jax.random.key(0), SHAPE)
    return as_classifier(model, variables, num_classes=10, image_shape=SHAPE, **options)


@pytest.mark.parametrize("kind", MODELS)
def test_an_own_model_comes_back_with_the_same_bits(kind, tmp_path):
    model = MODELS[kind]
    classifier = classifier_of(model)
    classifier.save(tmp_path / "saved")
    again = freeadv_jax.load(tmp_path / "saved", model=model)
    np.testing.assert_array_equal(again(IMAGES), classifier(IMAGES))
    assert np.ptp(again(IMAGES)) > 0
    assert jax.tree.map(lambda x: x.dtype, again.variables) == jax.tree.map(
        lambda x: x.dtype, classifier.variables
    )


def test_an_own_model_is_asked_for_in_one_line(tmp_path):
    classifier_of(Net()).save(tmp_path / "saved")
    assert read_json(tmp_path / "saved/model.json")["model"] == "object:Net"
    with pytest.raises(
        InputError, match=r"freeadv_jax\.load\(folder, model=net\)"
    ) as raised:
        freeadv_jax.load(tmp_path / "saved")
    assert str(raised.value).startswith(
        f"{tmp_path / 'saved'}: the model Net was given"
    )
    assert "\n" not in str(raised.value)


def test_an_own_model_of_another_shape_is_refused(tmp_path):
    classifier_of(Net()).save(tmp_path / "saved")
    with pytest.raises(InputError, match=r"BatchNorm_0/mean \[16\] instead of \[8\]"):
        freeadv_jax.load(tmp_path / "saved", model=Net(width=8))


def test_a_model_of_a_module_is_imported_again(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "saved_nets.py").write_text("from test_classifier import Net as Mine\n")
    monkeypatch.setitem(sys.modules, "test_classifier", sys.modules[__name__])
    name, arguments = "module:saved_nets:Mine", "width=12"
    model = import_model(name, arguments, num_classes=10, image_shape=SHAPE)
    classifier = classifier_of(
        model, description={"model": name, "arguments": arguments, "updates": 5}
    )
    classifier.save(tmp_path / "saved")
    again = freeadv_jax.load(tmp_path / "saved")
    np.testing.assert_array_equal(again(IMAGES), classifier(IMAGES))
    assert read_json(tmp_path / "saved/model.json")["updates"] == 5
    (tmp_path / "saved_nets.py").write_text("")
    monkeypatch.delitem(sys.modules, "saved_nets")
    with pytest.raises(InputError, match="saved_nets has no 'Mine'"):
        freeadv_jax.load(tmp_path / "saved")


def test_a_loaded_model_may_be_saved_again(tmp_path):
    network = build_model(
        "small-cnn",
        num_classes=10,
        image_shape=SHAPE,
        normalization="mean_std",
        mean=(0.5,),
        std=(0.25,),
        dtype="float32",
        batch_norm_axis=None,
    )
    description = {
        "model": "small-cnn",
        "normalization": "mean_std",
        "mean": [0.5],
        "std": [0.25],
        "dtype": "float32",
        "threat": {"norm": "linf", "epsilon": 0.2},
        "updates": 8,
    }
    classifier_of(network, description=description).save(tmp_path / "a")
    freeadv_jax.load(tmp_path / "a").save(tmp_path / "b")
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (
            tmp_path / "b" / name
        ).read_bytes()
    with pytest.raises(InputError, match="is not an empty folder"):
        freeadv_jax.load(tmp_path / "a").save(tmp_path / "b")


@pytest.mark.parametrize("kind", MODELS)
def test_a_classifier_is_printed_in_one_line(kind):
    text = repr(classifier_of(MODELS[kind]))
    assert "\n" not in text
    assert len(text) < 120
    assert "images [b, 8, 8, 1] in [0, 1] to 10 logits" in text
    counts = {"linen": 64 * 16 + 16 + 32 + 170, "nnx": 64 * 16 + 16 + 32 + 170}
    assert f"{counts.get(kind, 64 * 16 + 1 + 160):,} parameters" in text
