"""`fit` trains as the command does, on any model, and refuses bad input in one line."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import freeadv_jax as fa
from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.errors import InputError
from freeadv_jax.recipes import digits
from freeadv_jax.runs.build import configured_model
from freeadv_jax.runs.folder import open_run
from freeadv_jax.runs.train import train_run
from freeadv_jax.training.methods import METHODS

DIGITS = load_arrays("digits", "", validation_examples=0)
IMAGES, LABELS = DIGITS.train.images, DIGITS.train.labels
FEW = {"updates": 16, "batch_size": 64, "replays": 2, "epsilon": 0.2}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, images, train):
        hidden = nn.Conv(8, (3, 3), strides=2)(images)
        hidden = nn.BatchNorm(use_running_average=not train)(hidden)
        hidden = nn.Dropout(0.1, deterministic=not train)(nn.relu(hidden))
        return nn.Dense(10)(hidden.reshape(len(hidden), -1))


class NNX(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(128, 10, rngs=rngs)

    def __call__(self, images):
        hidden = self.dropout(nnx.relu(self.norm(self.conv(images))))
        return self.out(hidden.reshape(len(hidden), -1))


def initialize(key, image_shape):
    return {"kernel": 0.01 * jax.random.normal(key, (np.prod(image_shape), 10))}


def apply(variables, images):
    return images.reshape(len(images), -1) @ variables["kernel"]


LINEAR = (initialize, apply)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.variables, other.variables)


def test_fit_gives_the_same_bits_as_the_command(tmp_path):
    """Both train a shortened `digits_free8` on all devices."""
    config = digits()
    config.updates = 64
    dataset = load_arrays("digits", "", validation_examples=200)
    run = open_run(tmp_path, config, num_classes=10, image_shape=(8, 8, 1))
    state, _ = train_run(run, dataset)
    model = configured_model(config, num_classes=10, image_shape=(8, 8, 1))
    classifier = fa.fit(
        model,
        IMAGES,
        LABELS,
        epsilon=0.2,
        updates=64,
        learning_rate=0.1,
        schedule="triangular",
        turns=(0.4,),
        nesterov=True,
        weight_decay=2e-3,
        straight_through=True,
        validation=200,
        validation_every_passes=3.0,
    )
    jax.tree.map(np.testing.assert_array_equal, classifier.variables, state.variables)


@pytest.mark.parametrize(
    ("model", "method"),
    [
        # Its dropout fails where a method hands it no key.
        *((Linen(), method) for method in METHODS),
        (NNX(nnx.Rngs(0)), "free"),
        (NNX(nnx.Rngs(0)), "pgd"),
        (LINEAR, "free"),
        (LINEAR, "fgsm-rs"),
    ],
    ids=lambda part: part if isinstance(part, str) else type(part).__name__,
)
def test_every_method_lowers_the_loss_of_every_kind_of_model(model, method):
    lines = []
    fields = FEW | {"updates": 64, "steps": 2, "step_size": 0.1}
    # In so large a ball the paper's weights of LLR make the logits constant.
    fields |= {"llr_lambda": 1.0, "llr_mu": 0.5}
    classifier = fa.fit(
        model, IMAGES, LABELS.tolist(), method=method, progress=lines.append, **fields
    )
    accuracy = (classifier(IMAGES / np.float32(255)).argmax(-1) == LABELS).mean()
    assert accuracy > 0.3
    assert lines[-1].startswith("training 64/64 updates")


def test_floats_and_uint8_train_to_the_same_weights():
    one = fa.fit(LINEAR, IMAGES, LABELS, **FEW)
    other = fa.fit(LINEAR, (IMAGES / 255).astype(np.float32), LABELS, **FEW)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        one.variables,
        other.variables,
    )


@pytest.mark.torch
def test_tensors_of_pytorch_train_as_their_arrays_do():
    torch = pytest.importorskip("torch")
    tensors = {"images": torch.tensor(IMAGES), "labels": torch.tensor(LABELS)}
    assert_same(fa.fit(LINEAR, **tensors, **FEW), fa.fit(LINEAR, IMAGES, LABELS, **FEW))


def test_the_seed_decides_everything():
    same = [fa.fit(LINEAR, IMAGES, LABELS, seed=seed, **FEW) for seed in (1, 1, 2)]
    assert_same(*same[:2])
    assert np.abs(
        same[0].variables["params"]["kernel"] - same[2].variables["params"]["kernel"]
    ).max()


def test_any_optax_optimizer_trains():
    # optax.adam mixes integers and floats.
    with jax.numpy_dtype_promotion("standard"):
        classifier = fa.fit(LINEAR, IMAGES, LABELS, optimizer=optax.adam(1e-2), **FEW)
    before = initialize(jax.random.key(0), (8, 8, 1))["kernel"]
    # Each of Adam's first steps is as large as the learning rate.
    moved = np.abs(classifier.variables["params"]["kernel"] - before).max()
    assert 0.05 < moved < 0.2


def test_adamw_trains_by_its_name_and_loads_from_its_workdir(tmp_path):
    fields = {"optimizer": "adamw", "learning_rate": 1e-2, "clip_norm": 1.0}
    with jax.numpy_dtype_promotion("standard"):
        trained = fa.fit(LINEAR, IMAGES, LABELS, workdir=tmp_path, **FEW, **fields)
        plain = fa.fit(LINEAR, IMAGES, LABELS, **FEW, **fields | {"optimizer": "sgd"})
    assert_same(fa.load(tmp_path, model=LINEAR), trained)
    optimizer = json.loads((tmp_path / "run.json").read_text())["config"]["optimizer"]
    assert (optimizer["name"], optimizer["clip_norm"]) == ("adamw", 1.0)
    kernels = [each.variables["params"]["kernel"] for each in (trained, plain)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01


def test_the_augmentation_of_a_user_gets_pixels_in_the_unit_range():
    def darker(key, images):
        assert images.dtype == jnp.float32
        return images * jax.random.uniform(key, (len(images), 1, 1, 1))

    plain = fa.fit(LINEAR, IMAGES, LABELS, **FEW)
    augmented = fa.fit(LINEAR, IMAGES, LABELS, augment=darker, **FEW)
    kernels = [c.variables["params"]["kernel"] for c in (plain, augmented)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-3
    black = fa.fit(LINEAR, IMAGES, LABELS, augment=lambda key, x: 0 * x, **FEW)
    assert np.isfinite(black.variables["params"]["kernel"]).all()


def test_a_run_in_a_workdir_continues_to_the_same_bits(tmp_path):
    whole = fa.fit(LINEAR, IMAGES, LABELS, **FEW)
    fields = FEW | {"workdir": tmp_path / "run"}
    fa.fit(LINEAR, IMAGES, LABELS, **fields)
    lines = []
    again = fa.fit(LINEAR, IMAGES, LABELS, progress=lines.append, **fields)
    assert lines[0] == "resumed at update 16"
    assert_same(again, whole)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["config"]["updates"] == 16
    loaded = fa.load(tmp_path / "run", model=LINEAR)
    assert_same(loaded, whole)


def test_a_workdir_with_any_optimizer_loads(tmp_path):
    with jax.numpy_dtype_promotion("standard"):
        fields = FEW | {"optimizer": optax.adam(1e-2), "workdir": tmp_path}
        trained = fa.fit(LINEAR, IMAGES, LABELS, **fields)
    assert_same(fa.load(tmp_path, model=LINEAR), trained)


def test_without_a_workdir_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fa.fit(LINEAR, IMAGES, LABELS, validation=(IMAGES[:64], LABELS[:64]), **FEW)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_a_saved_classifier_loads_with_its_model(tmp_path):
    classifier = fa.fit(Linen(), IMAGES, LABELS, **FEW)
    classifier.save(tmp_path / "saved")
    loaded = fa.load(tmp_path / "saved", model=Linen())
    images = IMAGES[:8] / np.float32(255)
    np.testing.assert_array_equal(loaded(images), classifier(images))


def test_init_starts_from_given_weights(tmp_path):
    first = fa.fit(Linen(), IMAGES, LABELS, **FEW)
    first.save(tmp_path / "saved")
    nothing = {**FEW, "learning_rate": 1e-12, "weight_decay": 0.0, "updates": 2}
    begun = fa.fit(Linen(), IMAGES, LABELS, init=first.variables, **nothing)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9),
        begun.variables["params"],
        first.variables["params"],
    )
    given = initialize(jax.random.key(5), (8, 8, 1))
    pair = fa.fit(LINEAR, IMAGES, LABELS, init=given, **nothing)
    np.testing.assert_allclose(
        pair.variables["params"]["kernel"], given["kernel"], atol=1e-9
    )


def test_init_with_other_classes_initialises_the_last_layer(caplog):
    class TwoLayers(nn.Module):
        classes: int

        @nn.compact
        def __call__(self, images):
            hidden = nn.relu(nn.Dense(16)(images.reshape(len(images), -1)))
            return nn.Dense(self.classes)(hidden)

    first = fa.fit(TwoLayers(10), IMAGES, LABELS, **FEW)
    nothing = {**FEW, "learning_rate": 1e-12, "weight_decay": 0.0, "updates": 2}
    with caplog.at_level("INFO", logger="freeadv_jax"):
        second = fa.fit(TwoLayers(12), IMAGES, LABELS, init=first.variables, **nothing)
    np.testing.assert_allclose(
        second.variables["params"]["Dense_0"]["kernel"],
        first.variables["params"]["Dense_0"]["kernel"],
        atol=1e-9,
    )
    assert "the last layer is new" in caplog.text
    with pytest.raises(InputError, match="of another shape: .*kernel"):
        fa.fit(LINEAR, IMAGES, LABELS, init={"kernel": np.zeros((3, 10))}, **FEW)


BAD = {
    "a label that does not exist": (
        {"labels": LABELS + 5},
        "labels range from 5 to 14: must be 0 to 9",
    ),
    "labels of floats": ({"labels": LABELS + 0.5}, "must be 1347 whole numbers"),
    "fewer labels": ({"labels": LABELS[:9]}, "must be 1347 whole numbers"),
    "images beyond 1": (
        {"images": IMAGES.astype(np.float32)},
        "images range from 0 to 255: floats must be in",
    ),
    "images of ints": ({"images": IMAGES.astype(int)}, "must be uint8, or floats"),
    "three axes": ({"images": IMAGES[..., 0]}, "must be .n, height, width, channels"),
    "channels first": (
        {"images": np.moveaxis(IMAGES, -1, 1)},
        r"have the channels first: must be .* np.moveaxis\(images, 1, -1\) moves them",
    ),
    "a model of one logit": (
        {"model": (initialize, lambda v, x: apply(v, x)[:, :1])},
        "gives one output an image, .2, 1.: must be a logit for each class",
    ),
    "a model of other images": (
        {
            "images": np.zeros((9, 5, 5, 1), np.uint8),
            "model": (lambda k, s: initialize(k, (8, 8, 1)), apply),
            "labels": np.zeros(9, int),
        },
        "the model fails on images of shape .2, 5, 5, 1.",
    ),
    "no model": ({"model": apply}, "the model is a function: must be"),
    "an unknown method": ({"method": "fre"}, "method = 'fre': must be one of"),
    "an epsilon of levels": ({"epsilon": 8}, "epsilon = 8.0: must be above 0"),
    "no whole minibatch": ({"updates": 15}, "updates = 15"),
    "an unknown optimizer": (
        {"optimizer": "adam"},
        "^optimizer = 'adam': must be one of",
    ),
    "a batch too large": ({"batch_size": 4096}, "4,?096"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name):
    given, message = BAD[name]
    fields = {"model": LINEAR, "images": IMAGES, "labels": LABELS} | FEW | given
    with pytest.raises(InputError, match=message) as raised:
        fa.fit(
            fields.pop("model"), fields.pop("images"), fields.pop("labels"), **fields
        )
    assert "\n" not in str(raised.value)


def test_the_workdir_of_another_model_is_refused(tmp_path):
    fa.fit(LINEAR, IMAGES, LABELS, workdir=tmp_path, **FEW)
    with pytest.raises(InputError) as raised:
        fa.fit(Linen(), IMAGES, LABELS, workdir=tmp_path, **FEW)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)
