"""Files of PyTorch weights: the network, its normalisation, or what does not fit."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from torch_states import MEAN, STD, preact_state, wide_state

import freeadv_jax as fa
from freeadv_jax.config import base_config
from freeadv_jax.errors import InputError
from freeadv_jax.evaluate import main as evaluate
from freeadv_jax.export import main as export
from freeadv_jax.models import build_model
from freeadv_jax.runs.load import initial_variables
from freeadv_jax.weights.tensors import write_tensors
from freeadv_jax.weights.transfer import flat_variables

PLAIN = {"mean": 0.0, "std": 1.0}


@pytest.fixture
def saved(tmp_path):
    """Return a function that writes tensors to a new file and returns its path."""

    def save(tensors, name="weights.safetensors"):
        write_tensors(tmp_path / name, tensors)
        return tmp_path / name

    return save


def refused(path, **options):
    with pytest.raises(InputError) as raised:
        fa.load(path, **options)
    message = str(raised.value)
    assert "\n" not in message
    return message


def prefixed(prefix, tensors):
    return {prefix + name: array for name, array in tensors.items()}


def test_the_network_and_its_sizes_are_read_off_the_tensors(saved):
    state = wide_state(16, 2, num_classes=7)
    classifier = fa.load(saved(state), **PLAIN)
    assert repr(classifier).startswith(
        "Classifier(wrn-16-2: images [b, 32, 32, 3] in [0, 1] to 7 logits, "
    )
    found = flat_variables(classifier.variables)
    # Every tensor is somewhere, PyTorch's kernels [out, in, h, w] as [h, w, in, out].
    counted = [name for name in state if name.endswith("num_batches_tracked")]
    assert len(found) == len(state) - len(counted)
    at = "network/PreActUnit_3"
    np.testing.assert_array_equal(
        found[f"params/{at}/Conv_1/kernel"],
        state["block2.layer.1.conv2.weight"].transpose(2, 3, 1, 0),
    )
    np.testing.assert_array_equal(
        found[f"batch_stats/{at}/BatchNorm_0/var"],
        state["block2.layer.1.bn1.running_var"],
    )
    np.testing.assert_array_equal(
        found["params/network/Dense_0/kernel"], state["fc.weight"].T
    )


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "backbone.", "_orig_mod.", "1.", "module._orig_mod.model."],
)
def test_any_prefix_of_all_names_is_passed_over(prefix, saved):
    state = wide_state()
    plain = fa.load(saved(state, "plain.safetensors"), **PLAIN)
    behind = fa.load(saved(prefixed(prefix, state)), **PLAIN)
    assert behind.description["model"] == "wrn-10-1"
    ours, theirs = map(flat_variables, (plain.variables, behind.variables))
    assert ours.keys() == theirs.keys()
    for path, array in ours.items():
        np.testing.assert_array_equal(array, theirs[path])


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("", ("mu", "sigma")),
        ("module.", ("module.mean", "module.std")),
        ("model.", ("normalize.mean", "normalize.std")),
        ("1.", ("0.mean", "0.std")),
        ("module.model.", ("module.normalizer.new_mean", "module.normalizer.new_std")),
    ],
)
def test_the_normalisation_in_the_file_is_taken_over(prefix, names, saved):
    mean, std = (np.reshape(np.float32(x), (1, 3, 1, 1)) for x in (MEAN, STD))
    state = prefixed(prefix, wide_state()) | dict(zip(names, (mean, std), strict=True))
    classifier = fa.load(saved(state))
    assert classifier.description["mean"] == list(MEAN)
    assert classifier.description["std"] == list(STD)
    images = np.random.default_rng(0).uniform(size=(2, 32, 32, 3)).astype(np.float32)
    plain = fa.load(saved(wide_state(), "plain.safetensors"), **PLAIN)
    normal = (images - np.float32(MEAN)) / np.float32(STD)
    np.testing.assert_allclose(classifier(images), plain(normal), rtol=1e-4)


def test_the_copies_in_madrylabs_files_are_left_out(saved):
    state = wide_state()
    copies = prefixed("module.attacker.model.", state)
    named = {"normalizer": "new_{}", "attacker.normalize": "new_{}"}
    normalizations = {
        f"module.{layer}.{name.format(kind)}": np.float32(values)
        for layer, name in named.items()
        for kind, values in (("mean", MEAN), ("std", STD))
    }
    whole = prefixed("module.model.", state) | copies | normalizations
    assert fa.load(saved(whole)).description["mean"] == list(MEAN)
    copies["module.attacker.model.fc.bias"] = np.zeros(10, np.float32)
    message = refused(saved(whole | copies))
    assert message.endswith("; unknown: module.attacker.model.fc.bias [10]")


def test_the_block_that_trades_stores_in_vain_is_left_out(saved):
    state = wide_state()
    for name in list(state):
        if name.startswith("block1."):
            state[f"sub_{name}"] = state[name] + 1
    assert fa.load(saved(state), **PLAIN).description["model"] == "wrn-10-1"
    state["sub_block2.layer.0.conv1.weight"] = np.ones((1, 1, 3, 3))
    assert "unknown: sub_block2.layer.0.conv1.weight" in refused(saved(state))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_becomes_float32(dtype, tmp_path):
    from safetensors.flax import save_file

    halved = {name: jnp.asarray(x, dtype) for name, x in wide_state().items()}
    save_file(halved, tmp_path / "half.safetensors")
    found = flat_variables(fa.load(tmp_path / "half.safetensors", **PLAIN).variables)
    assert {array.dtype for array in found.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(
        found["params/network/Dense_0/bias"], halved["fc.bias"].astype(np.float32)
    )


def test_networks_with_the_same_tensors_have_to_be_named(saved):
    path = saved(preact_state())
    message = refused(path, **PLAIN)
    assert message == (
        f"{path} fits preact-resnet-18 and preact-resnet-18-input, whose tensors are "
        "alike and whose logits differ: name the model"
    )
    classifier = fa.load(path, model="preact-resnet-18-input", **PLAIN)
    assert classifier.description["model"] == "preact-resnet-18-input"


def test_what_fits_nothing_is_answered_with_the_nearest_network(saved):
    state = wide_state(16, 2)
    state["block2.layer.0.conv1.weight"] = np.ones((60, 32, 3, 3))
    state["block3.layer.1.gate.weight"] = np.ones(3)
    del state["fc.bias"]
    path = saved(state)
    assert refused(path, **PLAIN) == (
        f"{path} fits no known network; the nearest is wrn-16-2 in the names of TRADES; "
        "unknown: block3.layer.1.gate.weight [3]; missing: fc.bias [10]; of another "
        "shape: block2.layer.0.conv1.weight [60, 32, 3, 3] instead of [64, 32, 3, 3]"
    )


def test_a_file_without_any_known_name_says_what_it_holds(saved):
    names = [f"transformer.{i}.attention" for i in range(9)]
    message = refused(saved({name: np.ones(3) for name in names}))
    assert (
        "fits no known network; it holds transformer.0.attention, "
        "transformer.1.attention, transformer.2.attention, transformer.3.attention and "
        "5 more; known are the names of TRADES, DeepMind, "
    ) in message


def test_an_empty_file_says_so(saved):
    assert "it holds no tensors; known are" in refused(saved({}))


def test_the_mean_and_std_must_be_known_and_the_same(saved):
    state = wide_state()
    path = saved(state)
    for given in ({}, {"mean": 0.5}):
        assert "holds no mean and std of the pixels: give them" in refused(
            path, **given
        )
    path = saved(state | {"mu": np.float32(MEAN), "sigma": np.float32(STD)})
    assert fa.load(path, mean=MEAN, std=STD).description["mean"] == list(MEAN)
    message = refused(path, mean=(0.5,), std=STD)
    assert "the mean is (0.49, 0.48, 0.45) or (0.5,); ignore the tensors" in message
    ignoring = fa.load(path, mean=0.5, std=0.25, ignore=("mu", "sigma"))
    assert (ignoring.description["mean"], ignoring.description["std"]) == (
        [0.5],
        [0.25],
    )
    assert "unknown: mu [3]" in refused(path, ignore="sigma", **PLAIN)
    path = saved(state | {"mean": np.float32([125]), "std": np.float32([63])})
    assert "mean = [125.0], std = [63.0]: must be of pixels in [0, 1]" in refused(path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model": "wrn-16-1"}, "does not fit the model; missing: "),
        ({"model": "wrn-17-1"}, "the depth must be 6n + 4"),
        (
            {"model": "small-cnn"},
            "model 'small-cnn' has no PyTorch form; allowed: wrn-",
        ),
        ({"model": 3}, "is a int: must be the name of a network"),
        ({"image_shape": (30, 30, 3)}, "must have sides divisible by 4"),
        ({"image_shape": (32, 32)}, "must be (height, width, channels)"),
        ({"image_shape": (32, 32, 1)}, "conv1.weight [16, 3, 3, 3] instead of [16, 1"),
        ({"mean": (0.1, 0.2)}, "must have 1 number, or one for each of the 3"),
        ({"std": 0.0}, "std above 0"),
        ({"checkpoint": "best"}, "is a file of weights; allowed: last"),
        ({"key": "ema"}, "has no keys, it is safetensors"),
        ({"ignore": ("layer*",)}, "holds no tensor 'layer*' to ignore"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_the_file_are_refused(options, reason, saved):
    assert reason in refused(saved(wide_state()), **PLAIN | options)


def test_a_missing_file_and_a_folder_with_options_are_refused(tmp_path, saved):
    assert "there is no file" in refused(tmp_path / "none.safetensors")
    fa.load(saved(wide_state()), **PLAIN).save(tmp_path / "exported")
    assert "mean goes with a file of PyTorch weights, not with" in refused(
        tmp_path / "exported", mean=0.5
    )
    message = refused(tmp_path / "exported" / "model.safetensors")
    assert "is of an exported folder, not of PyTorch; allowed: the folder" in message


def test_a_loaded_file_is_saved_like_any_model(tmp_path, saved):
    classifier = fa.load(saved(wide_state()), image_shape=(8, 8, 3), **PLAIN)
    classifier.save(tmp_path / "exported")
    images = np.random.default_rng(0).uniform(size=(2, 8, 8, 3)).astype(np.float32)
    again = fa.load(tmp_path / "exported")
    np.testing.assert_array_equal(again(images), classifier(images))
    description = json.loads((tmp_path / "exported" / "model.json").read_text())
    assert (description["model"], description["mean"]) == ("wrn-10-1", [0.0])


@pytest.mark.slow
def test_fit_begins_with_the_weights_of_a_file(saved):
    state = wide_state()
    path = saved(prefixed("module.", state))
    model = build_model("wrn-10-1", num_classes=10, image_shape=(8, 8, 3))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8)
    tuned = fa.fit(
        model,
        images,
        np.arange(16) % 10,
        init=path,
        method="natural",
        updates=1,
        batch_size=16,
        learning_rate=1e-30,
    )
    np.testing.assert_array_equal(
        flat_variables(tuned.variables)[
            "params/network/PreActUnit_2/projection/kernel"
        ],
        state["block3.layer.0.convShortcut.weight"].transpose(2, 3, 1, 0),
    )


def test_the_last_layer_is_new_for_other_classes_than_those_of_the_file(saved, capsys):
    state = wide_state()
    buffers = {"mu": np.float32(MEAN), "sigma": np.float32(STD)}
    config = base_config()
    config.init = str(saved(state | buffers))
    config.model.name = "wrn-10-1"
    shape = {"num_classes": 3, "image_shape": (8, 8, 3)}
    found = flat_variables(initial_variables(config, **shape))
    assert found["params/network/Dense_0/kernel"].shape == (64, 3)
    np.testing.assert_array_equal(
        found["params/network/Conv_0/kernel"],
        state["conv1.weight"].transpose(2, 3, 1, 0),
    )
    new = (
        f"init = {config.init}: the last layer is new (params/network/Dense_0/bias, "
        "params/network/Dense_0/kernel)\n"
    )
    assert capsys.readouterr().out == (
        f"{new}init = {config.init}: the network of the file normalises by mean "
        "0.49,0.48,0.45, std 0.25,0.24,0.26, this one does not\n"
    )
    config.model.update(normalization="mean_std", mean=MEAN, std=STD)
    initial_variables(config, **shape)
    assert capsys.readouterr().out == new


def test_weights_of_another_width_are_refused_with_their_shapes(saved):
    message = refused(saved(wide_state(10, 2)), model="wrn-10-1", **PLAIN)
    assert (
        "does not fit the model; unknown: block1.layer.0.convShortcut.weight" in message
    )
    assert "[32] instead of [16]" in message
    # Tensors of a width that no network of the layout has.
    state = {
        name: array[..., :30] if name == "fc.weight" else array
        for name, array in wide_state().items()
    }
    message = refused(saved(state), **PLAIN)
    assert "fits no known network; the nearest is wrn-10-1 in the names of " in message
    assert "fc.weight [10, 30] instead of [10, 64]" in message


def test_a_truncated_file_is_refused_in_one_line(saved):
    path = saved(wide_state())
    path.write_bytes(path.read_bytes()[:-5])
    assert "cannot be read as safetensors: " in refused(path, **PLAIN)
    path.write_bytes(path.read_bytes()[:20])
    assert "cannot be read as safetensors: " in refused(path, **PLAIN)


@pytest.mark.torch
def test_a_truncated_file_of_pytorch_is_refused_in_one_line(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pt"
    torch.save({name: torch.tensor(x) for name, x in wide_state().items()}, path)
    for size in (-200, 1000, 0):
        path.write_bytes(path.read_bytes()[:size])
        assert "cannot be read as weights only" in refused(path, **PLAIN)


def test_a_model_of_three_classes_is_refused_on_data_of_ten(saved, tmp_path):
    classifier = fa.load(
        saved(wide_state(num_classes=3)), image_shape=(8, 8, 3), **PLAIN
    )
    images = np.zeros((10, 8, 8, 3), np.float32)
    with pytest.raises(
        InputError, match="range from 0 to 9: the model has 3 classes, 0"
    ):
        fa.robust_accuracy(classifier, images, np.arange(10), attacks="natural")
    classifier.save(tmp_path / "exported")
    arrays = {"images": images, "labels": np.arange(10)}
    np.savez(tmp_path / "ten.npz", **arrays)
    with pytest.raises(InputError) as raised:
        evaluate(
            [
                "evaluate",
                f"--workdir={tmp_path / 'exported'}",
                f"--images={tmp_path / 'ten.npz'}",
                "--attacks=natural",
                "--epsilon=8/255",
            ]
        )
    assert "labels range from 0 to 9: the model has 3 classes" in str(raised.value)
    options = [f"--torch={tmp_path / 'weights.safetensors'}", "--mean=0", "--std=1"]
    with pytest.raises(InputError, match=r"fc.weight \[3, 64\] instead of \[10, 64\]"):
        export(["export", *options, "--num_classes=10", f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_images_with_the_channels_first_are_refused_by_a_loaded_model(saved):
    classifier = fa.load(saved(wide_state()), **PLAIN)
    images = np.zeros((2, 3, 32, 32), np.float32)
    with pytest.raises(InputError, match=r"this model takes \[b, 32, 32, 3\]"):
        classifier(images)
    with pytest.raises(InputError, match="have the channels first: must be"):
        fa.robust_accuracy(classifier, images, [0, 1], attacks="natural")
