"""Imported PyTorch weights: equal logits, or a list of the tensors that do not fit."""

import argparse
import collections
import pickle
import sys

import numpy as np
import pytest
from torch_states import MEAN, PREACT, STD, preact_state, wide_state

import freeadv_jax
from freeadv_jax.errors import InputError
from freeadv_jax.export import export_torch
from freeadv_jax.weights.tensors import read_tensors, write_tensors
from freeadv_jax.weights.torch import read_state

# Networks with the height and width of the images; only the first run by default.
SIDES = {
    "wrn-10-2": 32,
    "wrn-10-2-silu": 32,
    "preact-resnet-18": 32,
    "resnet-18": 64,
}
SLOW_SIDES = {
    "wrn-16-4": 32,
    "wrn-28-10": 32,
    "wrn-28-10-silu": 32,
    "wrn-34-r": 32,
    "wrn-a4": 32,
    "preact-resnet-18-input": 32,
    "preact-resnet-18-input-no-norm": 32,
    "preact-resnet-18-no-norm": 32,
    "preact-resnet-18-silu": 32,
    "cifar-resnet-18": 32,
    "cifar-resnet-34": 32,
    "cifar-resnet-50": 32,
    "resnet-34": 64,
    "resnet-50": 64,
    "wide-resnet-50-2": 64,
}


def refused(path, out, **fields):
    """Return the one line that refuses a file, after which nothing is written."""
    with pytest.raises(InputError) as raised:
        export_torch(path, out=out, **PREACT | fields)
    message = str(raised.value)
    assert "\n" not in message
    assert not out.exists()
    return message


def images_of(side):
    """Return a bright image and a dark one of noise."""
    images = np.random.default_rng(0).uniform(size=(2, side, side, 3))
    return (images * [[[[1.0]]], [[[0.2]]]]).astype(np.float32)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "side"),
    [
        *SIDES.items(),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW_SIDES.items()),
    ],
)
def test_logits_are_those_of_pytorch(name, side, tmp_path):
    torch = pytest.importorskip("torch")
    import torch_models
    from safetensors.torch import save_file

    module = torch_models.randomized(torch_models.PEERS[name](10))
    path = tmp_path / ("weights.pt" if side == 32 else "weights.safetensors")
    (torch.save if side == 32 else save_file)(module.state_dict(), path)
    # PreActResNets have the same tensors with either shortcut.
    twin = name.startswith("preact") and not name.endswith("silu")
    classifier = freeadv_jax.load(
        path,
        model=name if twin else None,
        image_shape=(side, side, 3),
        mean=MEAN,
        std=STD,
    )
    assert classifier.description["model"] == name
    theirs = torch_models.logits(module, images_of(side), MEAN, STD)
    assert theirs.std() > 0.1
    assert np.abs(theirs[0] - theirs[1]).max() > 0.01
    np.testing.assert_allclose(classifier(images_of(side)), theirs, atol=1e-4)


@pytest.mark.torch
def test_a_network_behind_its_normalisation_is_loaded_with_it(tmp_path):
    torch = pytest.importorskip("torch")
    import torch_models

    network = torch_models.randomized(torch_models.PEERS["wrn-10-2"](10))
    whole = torch_models.Normalized(network, MEAN, STD).eval()
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "whole.pt")
    theirs = torch_models.logits(whole, images_of(32), 0, 1)
    classifier = freeadv_jax.load(tmp_path / "whole.pt")
    np.testing.assert_allclose(classifier(images_of(32)), theirs, atol=1e-4)


@pytest.mark.torch
@pytest.mark.parametrize(
    "key", [None, "state_dict", "model", "model_state_dict", "net", "ema", "last"]
)
def test_wrappings_and_prefixes_of_all_names_are_passed_over(key, tmp_path):
    torch = pytest.importorskip("torch")
    state = {
        f"module.model.{name}": torch.tensor(array).bfloat16()
        for name, array in preact_state().items()
    }
    state = collections.OrderedDict(state)
    path = tmp_path / "weights.pth.tar"
    torch.save({key: state, "epoch": 3} if key else state, path)
    export_torch(path, out=tmp_path / "out", **PREACT)
    tensors = read_tensors(tmp_path / "out" / "model.safetensors")
    assert len(tensors) == 90
    assert {array.dtype for array in tensors.values()} == {np.dtype("float32")}
    assert all((array == 1).all() for array in tensors.values())


@pytest.mark.torch
def test_of_several_state_dicts_the_key_names_one(tmp_path):
    torch = pytest.importorskip("torch")
    states = [
        {name: torch.tensor(x * factor) for name, x in wide_state().items()}
        for factor in (1.0, 0.5)
    ]
    path = tmp_path / "both.pt"
    torch.save({"model": states[0], "ema": states[1], "mine": states[1]}, path)
    options = {"mean": 0.0, "std": 1.0}
    with pytest.raises(InputError, match="more than one state_dict: model, ema; give"):
        freeadv_jax.load(path, **options)
    for key, state in (("model", states[0]), ("ema", states[1]), ("mine", states[1])):
        found = freeadv_jax.load(path, key=key, **options).variables["params"]
        bias = found["network"]["Dense_0"]["bias"]
        np.testing.assert_array_equal(bias, state["fc.bias"].numpy())
    with pytest.raises(InputError, match="no state_dict under 'net'; dicts in it: mod"):
        freeadv_jax.load(path, key="net", **options)


@pytest.mark.torch
def test_numbers_and_arguments_beside_the_weights_are_passed_over(tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.tensor(x) for name, x in wide_state().items()}
    beside = {"best": np.float64(0.5), "args": argparse.Namespace(lr=0.1, name="x")}
    torch.save({"state_dict": state} | beside, tmp_path / "x.pt")
    classifier = freeadv_jax.load(tmp_path / "x.pt", mean=0.0, std=1.0)
    assert classifier.description["model"] == "wrn-10-1"


@pytest.mark.torch
def test_a_pickle_that_could_run_code_is_refused_unread(tmp_path):
    torch = pytest.importorskip("torch")

    class Malice:
        def __reduce__(self):
            return (tmp_path / "harmed").touch, ()

    torch.save({"conv1.weight": Malice()}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Malice(), protocol=2))
    (tmp_path / "c.pt").write_bytes(b"no weights")
    for name in ("a.pt", "b.pt", "c.pt"):
        message = refused(tmp_path / name, tmp_path / "out")
        assert "cannot be read as weights only" in message
        with pytest.raises(InputError, match="cannot be read as weights only"):
            freeadv_jax.load(tmp_path / name)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.torch
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "holds a list; allowed: a state_dict"),
        ({"epoch": 3, "weights": {}}, "more than named tensors: epoch, weights; "),
        ({"net": {}, "model": {}}, "more than one state_dict: model, net; "),
        ({"net": {}}, "does not fit the model; missing: "),
    ],
)
def test_a_file_without_one_state_dict_is_refused(content, reason, tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(content, tmp_path / "x.pt")
    message = refused(tmp_path / "x.pt", tmp_path / "out")
    assert reason in message


def test_names_missing_unknown_or_of_another_shape_are_listed(tmp_path):
    path = tmp_path / "x.safetensors"
    state = preact_state(num_classes=100)
    state["mu"] = np.ones((3, 1, 1), np.float32)
    for leaf in ("weight", "bias", "running_mean", "running_var"):
        del state[f"bn.{leaf}"]
    write_tensors(path, state)
    message = refused(path, tmp_path / "out")
    assert message.startswith(f"{path} does not fit the model; unknown: mu [3, 1, 1]; ")
    for name in ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
        assert f"{name} [512]" in message.split("missing: ")[1]
    assert "linear.weight [100, 512] instead of [10, 512]" in message
    assert "linear.bias [100] instead of [10]" in message
    assert len(message) < 500


def test_only_named_tensors_are_ignored_and_only_needless_ones(tmp_path):
    path = tmp_path / "x.safetensors"
    state = {f"module.model.{name}": x for name, x in preact_state().items()}
    state["module.jitter.low"] = state["module.jitter.high"] = np.ones(3)
    write_tensors(path, state)
    message = refused(path, tmp_path / "out")
    assert message.endswith("unknown: module.jitter.high [3], module.jitter.low [3]")
    message = refused(path, tmp_path / "out", ignore=("module.jitters.*",))
    assert "no tensor 'module.jitters.*' to ignore" in message
    ignore = ("module.jitter.*", "module.model.bn.bias")
    message = refused(path, tmp_path / "out", ignore=ignore)
    assert message.endswith("the model; missing: module.model.bn.bias [512]")
    export_torch(path, out=tmp_path / "out", ignore=ignore[:1], **PREACT)
    assert len(read_tensors(tmp_path / "out" / "model.safetensors")) == 90


def test_without_pytorch_a_pt_file_is_refused_by_that_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refused(tmp_path / "x.pt", tmp_path / "out")
    assert "pip install torch, or give a .safetensors file" in message


@pytest.mark.torch
def test_pytorch_that_could_run_code_of_a_file_is_refused(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pt")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(InputError, match="needs PyTorch 2.6 or newer, this is 2.5.1"):
        read_state(tmp_path / "a.pt")
