"""Imported PyTorch weights: equal logits, or a list of the tensors that do not fit."""

import collections
import pickle
import sys

import numpy as np
import pytest
from preact_weights import MEAN, PREACT, STD, preact_state

import freeadv_jax
from freeadv_jax.errors import InputError
from freeadv_jax.weights.exported import import_torch
from freeadv_jax.weights.tensors import read_tensors, write_tensors

RESNET = PREACT | {
    "model": "resnet-50",
    "num_classes": 1000,
    "image_shape": (64, 64, 3),
}


def refused(path, out, **fields):
    """Return the one line that refuses a file, after which nothing is written."""
    with pytest.raises(InputError) as raised:
        import_torch(path, out=out, **PREACT | fields)
    message = str(raised.value)
    assert "\n" not in message
    assert not out.exists()
    return message


@pytest.mark.torch
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("fields", [PREACT, RESNET], ids=["preact", "resnet"])
def test_logits_are_those_of_pytorch(fields, suffix, tmp_path):
    torch = pytest.importorskip("torch")
    import torch_models
    from safetensors.torch import save_file

    classes, side = fields["num_classes"], fields["image_shape"][0]
    if fields is PREACT:
        module = torch_models.PreActResNet18(classes)
    else:
        module = torch_models.ResNet((3, 4, 6, 3), classes)
    torch_models.randomized(module)
    path = tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pt" else save_file)(module.state_dict(), path)
    import_torch(path, out=tmp_path / "out", **fields)
    images = np.random.default_rng(0).uniform(size=(2, side, side, 3))
    images = images.astype(np.float32)
    theirs = torch_models.logits(module, images, MEAN, STD)
    ours = freeadv_jax.load(tmp_path / "out")(images)
    assert theirs.std() > 0.1
    assert np.abs(theirs[0] - theirs[1]).max() > 0.01
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(
    "key", [None, "state_dict", "model", "model_state_dict", "net"]
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
    import_torch(path, out=tmp_path / "out", **PREACT)
    tensors = read_tensors(tmp_path / "out" / "model.safetensors")
    assert len(tensors) == 90
    assert {array.dtype for array in tensors.values()} == {np.dtype("float32")}
    assert all((array == 1).all() for array in tensors.values())


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
    state["module.normalize.mean"] = state["module.normalize.std"] = np.ones(3)
    write_tensors(path, state)
    message = refused(path, tmp_path / "out")
    assert message.endswith("module.normalize.mean [3], module.normalize.std [3]")
    message = refused(path, tmp_path / "out", ignore=("module.normalise.*",))
    assert "no tensor 'module.normalise.*' to ignore" in message
    ignore = ("module.normalize.*", "module.model.bn.bias")
    message = refused(path, tmp_path / "out", ignore=ignore)
    assert message.endswith("the model; missing: module.model.bn.bias [512]")
    import_torch(path, out=tmp_path / "out", ignore=ignore[:1], **PREACT)
    assert len(read_tensors(tmp_path / "out" / "model.safetensors")) == 90


def test_without_pytorch_a_pt_file_is_refused_by_that_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refused(tmp_path / "x.pt", tmp_path / "out")
    assert "pip install torch, or give a .safetensors file" in message
