"""Runs exported and loaded again, and the command that exports them."""

import contextlib
import json
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from tiny_run import ROOT, environment, tiny_config
from torch_states import PREACT, preact_state, wide_state

import freeadv_jax
from freeadv_jax.errors import InputError
from freeadv_jax.evaluate import main as evaluate
from freeadv_jax.export import export_run, main
from freeadv_jax.files import checksum, read_json, write_json
from freeadv_jax.runs.build import initial_state_of
from freeadv_jax.runs.folder import open_run
from freeadv_jax.weights.load import load_exported
from freeadv_jax.weights.tensors import read_tensors, write_tensors

IMAGES = np.random.default_rng(0).uniform(size=(4, 8, 8, 1)).astype(np.float32)
TORCH_FLAGS = {
    "model": "preact-resnet-18",
    "num_classes": "10",
    "image_shape": "32,32,3",
    "mean": "127.5/255",
    "std": "0.25,0.2,0.25",
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Return a run whose best checkpoint is of step 3 and whose last is of step 5."""
    workdir = tmp_path_factory.mktemp("export") / "run"
    run = open_run(workdir, tiny_config(), num_classes=10, image_shape=(8, 8, 1))
    state, rng = initial_state_of(run), np.random.default_rng(0)
    with contextlib.closing(run.checkpoints(writable=True)) as checkpoints:
        for step, robust in ((3, 0.5), (5, 0.25)):
            params, batch_stats = jax.tree.map(
                lambda x: rng.uniform(0.1, 0.9, x.shape).astype(x.dtype),
                (state.params, state.collections),
            )
            state = state.replace(
                step=np.int32(step), params=params, collections=batch_stats
            )
            checkpoints.save(state, progress={}, robust=robust)
            checkpoints.wait()
    return workdir


@pytest.fixture(scope="module")
def exported(workdir):
    export_run(workdir, workdir.parent / "exported")
    return workdir.parent / "exported"


@pytest.mark.parametrize(("checkpoint", "updates"), [("last", 10), ("best", 6)])
def test_an_exported_run_is_loaded_with_the_same_bits(
    checkpoint, updates, workdir, tmp_path
):
    export_run(workdir, tmp_path / "a/b", checkpoint=checkpoint)
    logits = freeadv_jax.load(workdir, checkpoint=checkpoint)(IMAGES)
    for load in (load_exported, freeadv_jax.load):
        classifier = load(tmp_path / "a/b")
        assert (classifier.num_classes, classifier.image_shape) == (10, (8, 8, 1))
        np.testing.assert_array_equal(classifier(IMAGES), logits)
    assert np.ptp(logits) > 0
    assert read_json(tmp_path / "a/b/model.json") == {
        "model": "small-cnn-bn",
        "num_classes": 10,
        "image_shape": [8, 8, 1],
        "normalization": "mean_std",
        "mean": [0.0],
        "std": [1.0],
        "dtype": "float32",
        "threat": {"norm": "linf", "epsilon": 0.2},
        "updates": updates,
        "freeadv_jax": freeadv_jax.__version__,
        "source": "freeadv_jax",
    }


def test_tensors_are_stored_under_their_paths_as_float32(exported):
    tensors = read_tensors(exported / "model.safetensors")
    assert "params/network/Conv_0/kernel" in tensors
    assert "batch_stats/network/BatchNorm_0/mean" in tensors
    assert {array.dtype for array in tensors.values()} == {np.dtype("float32")}
    names = {path.name for path in exported.iterdir()}
    assert names == {"model.json", "model.safetensors", "README.md", "robustbench.json"}


def test_a_jitted_function_takes_the_weights_as_arguments(exported):
    classifier = load_exported(exported)
    weights = jax.tree.leaves(classifier.logits_fn)
    assert len(weights) == len(read_tensors(exported / "model.safetensors"))
    logits = jax.jit(lambda logits_fn, x: logits_fn(x))(classifier.logits_fn, IMAGES)
    np.testing.assert_allclose(logits, classifier(IMAGES), rtol=1e-5)


def test_an_exported_model_has_no_best(exported):
    with pytest.raises(InputError, match="is an exported model; allowed: last"):
        freeadv_jax.load(exported, checkpoint="best")


def test_only_an_empty_folder_is_overwritten(workdir, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for name in ("file", "full"):
        with pytest.raises(InputError, match="is not an empty folder"):
            export_run(workdir, tmp_path / name)
    (tmp_path / "empty").mkdir()
    export_run(workdir, tmp_path / "empty")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "full", "empty"}
    assert (tmp_path / "file").read_text() == "mine"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_failed_writing_leaves_nothing(workdir, tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("freeadv_jax.weights.exported.write_json", full)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        export_run(workdir, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        {"mean": 5},
        {"std": [0.0]},
        {"std": []},
        {"mean": [float("nan")]},
        {"num_classes": "ten"},
        {"mean": [10**400]},
        {"image_shape": [8, 8]},
        {"image_shape": ["8", "8", "1"]},
        {"model": "resnet-51"},
        {"model": None},
        {"dtype": ["float32"]},
        {"normalization": "none"},
    ],
    ids=lambda damage: str(damage)[:40],
)
def test_a_damaged_description_is_refused_in_one_line(damage, exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    description = read_json(folder / "model.json") | damage
    (folder / "model.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"model\.json is damaged: .+") as raised:
        load_exported(folder)
    assert "\n" not in str(raised.value)


def test_half_a_description_or_none_is_refused(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text("{}")
    with pytest.raises(InputError, match=r"model\.json is damaged: it lacks"):
        load_exported(folder)
    (folder / "model.json").write_text(text[:50])
    with pytest.raises(InputError, match=r"model\.json is damaged"):
        load_exported(folder)
    (folder / "model.json").unlink()
    with pytest.raises(InputError, match=r"holds no exported model: there is no"):
        load_exported(folder)


def test_tensors_that_are_damaged_or_do_not_fit_are_refused(exported, tmp_path):
    folder = shutil.copytree(exported, tmp_path / "copy")
    path = folder / "model.safetensors"
    tensors = read_tensors(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_exported(folder)
    path.unlink()
    with pytest.raises(InputError, match=r"there is no file .*model\.safetensors"):
        load_exported(folder)
    tensors["params/network/Conv_9/kernel"] = tensors.pop(
        "params/network/Conv_0/kernel"
    )
    write_tensors(path, tensors)
    with pytest.raises(InputError) as raised:
        load_exported(folder)
    assert "unknown: params/network/Conv_9/kernel" in str(raised.value)
    assert "missing: params/network/Conv_0/kernel" in str(raised.value)


def torch_arguments(path, out, **changes):
    given = {"torch": path, "out": out} | TORCH_FLAGS | changes
    return [f"--{name}={value}" for name, value in given.items() if value is not None]


def test_the_command_exports_a_run(workdir, tmp_path, capsys):
    out = tmp_path / "out"
    main(["export", f"--workdir={workdir}", f"--out={out}", "--checkpoint=best"])
    assert capsys.readouterr().out == f"written to {out}\n"
    assert read_json(out / "model.json")["updates"] == 6


def test_the_command_imports_pytorch_weights(tmp_path):
    path, out = tmp_path / "x.safetensors", tmp_path / "out"
    write_tensors(path, preact_state() | {"mu": np.ones(3), "sigma": np.ones(3)})
    main(["export", *torch_arguments(path, out, ignore="mu,sigma")])
    description = read_json(out / "model.json")
    del description["freeadv_jax"]
    assert description == {
        "model": "preact-resnet-18",
        "num_classes": 10,
        "image_shape": [32, 32, 3],
        "normalization": "mean_std",
        "mean": [0.5],
        "std": [0.25, 0.2, 0.25],
        "dtype": "float32",
        "threat": None,
        "updates": None,
        "source": "pytorch",
    }
    tensors = read_tensors(out / "model.safetensors")
    assert tensors["params/network/Dense_0/kernel"].shape == (512, 10)
    assert set(PREACT) <= set(description)


def test_the_command_finds_the_network_and_its_normalisation(tmp_path, capsys):
    path, out = tmp_path / "x.safetensors", tmp_path / "out"
    buffers = {"mu": np.full(3, 0.5), "sigma": np.full((1, 3, 1, 1), 0.25)}
    write_tensors(path, wide_state(num_classes=7) | buffers)
    main(["export", f"--torch={path}", f"--out={out}"])
    assert capsys.readouterr().out == (
        f"{path}: wrn-10-1, 7 classes, images 32 x 32 x 3, mean 0.5,0.5,0.5, std "
        f"0.25,0.25,0.25\nwritten to {out}\n"
    )
    assert freeadv_jax.load(out).num_classes == 7


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "small-cnn"}, "model 'small-cnn' has no PyTorch form; allowed: "),
        ({"key": "ema"}, "key = 'ema': "),
        ({"torch": None}, "give either --workdir, a run, or --torch"),
        ({"workdir": "x"}, "give either --workdir, a run, or --torch"),
        ({"checkpoint": "best"}, "--checkpoint does not go with --torch"),
        (
            {"num_classes": "ten"},
            "--num_classes: 'ten': must be a whole number above 0",
        ),
        ({"num_classes": "0"}, "--num_classes: '0': must be a whole number above 0"),
        ({"image_shape": "32,32"}, "--image_shape: '32,32': must be three whole"),
        ({"image_shape": "33,33,3"}, "divisible by 8"),
        ({"mean": "a,b"}, "--mean: 'a': must be a number, such as 8/255"),
        ({"mean": "1,2"}, "must have 1 number, or one for each of the 3"),
        ({"std": "0"}, "std above 0"),
        ({"stdd": "1"}, "option '--stdd' is unknown; did you mean '--std'?"),
        ({"torch": "/nowhere.safetensors"}, "there is no file /nowhere.safetensors"),
        ({"push": "mine"}, "'mine' is no repository of the hub: must be OWNER/NAME"),
    ],
    ids=str,
)
def test_a_bad_flag_is_answered_in_one_line(changes, reason, tmp_path):
    path, out = tmp_path / "x.safetensors", tmp_path / "out"
    with pytest.raises(InputError) as raised:
        main(["export", *torch_arguments(path, out, **changes)])
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--workdir=/nowhere", "--out=x"], "error: /nowhere holds no run"),
        (["--workdir"], "error: argument --workdir: expected one argument"),
        (["--out=x", "stray"], "error: argument 'stray' is unknown"),
        (["--workdir=x"], "error: the following arguments are required: --out"),
    ],
)
def test_the_command_ends_with_status_one_and_one_line(arguments, reason):
    ended = subprocess.run(
        [sys.executable, "-m", "freeadv_jax.export", *arguments],
        cwd=ROOT,
        env=environment(devices=1),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(reason)
    assert ended.stderr.count("\n") == 1


def test_the_card_has_the_figures_of_these_weights_alone(workdir, tmp_path, capsys):
    run = shutil.copytree(workdir, tmp_path / "run")
    attack = {"norm": "linf", "epsilon": 0.2}
    row = {"accuracy": 0.8125, "interval": [0.7, 0.9], "examples": 16, "correct": 13}
    rows = {"natural": row | {"attack": attack | {"epsilon": 0.0}}}
    rows["pgd-20"] = row | {"accuracy": 0.4375, "attack": attack}
    write_json(run / "results.json", {"evaluation": rows})
    model = checksum(freeadv_jax.load(run).logits_fn)
    for name, about in (("own", model), ("other", model + 1)):
        np.savez(run / "evaluation.npz", about=np.array(json.dumps({"model": about})))
        main(
            ["export", f"--workdir={run}", f"--out={tmp_path / name}", "--license=mit"]
        )
    told = "is of other weights: the model card has no figures"
    assert capsys.readouterr().out.count(told) == 1
    card = (tmp_path / "own/README.md").read_text()
    assert "| pgd-20 | linf epsilon 0.2 | 43.75% | 70.00% to 90.00% | 16 |" in card
    assert "\n## Licence\n\nmit\n" in card
    entry = read_json(tmp_path / "own/robustbench.json")
    assert entry["clean_acc"] == "81.25"
    assert entry["autoattack_acc"] == "not yet run"
    card = (tmp_path / "other/README.md").read_text()
    assert "43.75%" not in card
    assert "| natural | – | not yet run |" in card


def test_an_evaluated_export_is_exported_again_with_its_figures(
    exported, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported, "first")
    evaluate(
        [
            "evaluate",
            "--workdir=first",
            "--dataset=digits",
            "--attacks=natural,fgsm",
            "--examples=40",
            "--no-red_flags",
        ]
    )
    main(["export", "--workdir=first", "--out=second"])
    row = read_json(tmp_path / "first/results.json")["evaluation"]["fgsm"]
    card = (tmp_path / "second/README.md").read_text()
    assert f"| fgsm | linf epsilon 0.2 | {row['accuracy']:.2%} | " in card
    assert "| data | digits |" in card
    names = {path.name for path in (tmp_path / "second").iterdir()}
    assert names == {path.name for path in (tmp_path / "first").iterdir()} - {
        "results.json",
        "evaluation.npz",
    }


class Client:
    """A stand-in for huggingface_hub.HfApi, which keeps what it was asked for."""

    def __init__(self):
        self.calls = []

    def create_repo(self, repo_id, *, repo_type, private, exist_ok):
        self.calls.append(("create", repo_id, repo_type, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, repo_type):
        names = {path.name for path in folder_path.iterdir()}
        self.calls.append(("upload", repo_id, names, repo_type))


def test_the_command_pushes_the_written_folder(workdir, tmp_path, monkeypatch, capsys):
    client = Client()
    module = types.SimpleNamespace(HfApi=lambda: client)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    out = tmp_path / "out"
    main(["export", f"--workdir={workdir}", f"--out={out}", "--push=me/digits"])
    names = {"model.json", "model.safetensors", "README.md", "robustbench.json"}
    assert client.calls == [
        ("create", "me/digits", "model", True, True),
        ("upload", "me/digits", names, "model"),
    ]
    assert capsys.readouterr().out == (
        f"written to {out}\npushed to https://huggingface.co/me/digits\n"
    )


def test_a_dry_run_shows_the_files_and_needs_no_client(
    workdir, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    out = tmp_path / "out"
    arguments = [f"--workdir={workdir}", "--push=me/digits"]
    main(["export", *arguments, f"--out={out}", "--dry_run"])
    first, target, *files, last = capsys.readouterr().out.splitlines()
    assert first == f"written to {out}"
    assert target == (
        "would go to https://huggingface.co/me/digits, private if it is new:"
    )
    assert len(files) == 4
    size = (out / "model.safetensors").stat().st_size
    assert f"  model.safetensors  {size:,} bytes" in files
    assert last == "nothing was sent (--dry_run)"
    with pytest.raises(InputError, match=r"pip install 'freeadv_jax\[hub\]'"):
        main(["export", *arguments, f"--out={tmp_path / 'other'}"])
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match="--dry_run goes with --push"):
        main(["export", f"--workdir={workdir}", f"--out={out}", "--dry_run"])


def test_what_the_hub_refuses_is_told_in_one_line(workdir, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("401 Client Error.\nInvalid username or password.")

    client = types.SimpleNamespace(create_repo=fail)
    module = types.SimpleNamespace(HfApi=lambda: client)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    out = tmp_path / "out"
    with pytest.raises(InputError) as raised:
        main(["export", f"--workdir={workdir}", f"--out={out}", "--push=me/digits"])
    assert str(raised.value) == (
        f"{out} is written, but the hub refused me/digits: 401 Client Error.; `hf upload "
        f"me/digits {out} --private` sends it again"
    )
    assert (out / "README.md").exists()


def test_an_unknown_store_is_no_folder_to_write_or_to_load(
    workdir, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for use in (lambda bucket: export_run(workdir, bucket), freeadv_jax.load):
        with pytest.raises(InputError, match="az://bucket/model: must be a folder of"):
            use("az://bucket/model")
    assert not list(tmp_path.iterdir())
