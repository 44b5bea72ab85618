"""The training command: bad input is answered in one line and changes nothing."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import freeadv_jax
from freeadv_jax import evaluate, export
from freeadv_jax.config import FIELDS, validate
from freeadv_jax.config_files import find_config, read_config
from freeadv_jax.data.dataset import load_dataset
from freeadv_jax.errors import InputError
from freeadv_jax.files import sole_writer
from freeadv_jax.main import main
from freeadv_jax.runs.folder import read_run
from freeadv_jax.runs.load import trained_state

REPOSITORY = pathlib.Path(__file__).parent.parent
# Free-8 on digits in two minibatches.
TINY = """
from freeadv_jax.config import base_config


def get_config():
    config = base_config()
    config.updates = 16
    config.batch_size = 64
    config.data.name = "digits"
    config.data.pad = 0
    config.data.flip = False
    config.model.name = "small-cnn"
    config.model.normalization = "mean_std"
    config.optimizer.schedule = "triangular"
    config.optimizer.turns = (0.5,)
    config.attack.epsilon = 0.2
    config.attack.step_size = 0.2
    config.evaluation.attacks = ("natural",)
    config.evaluation.examples = 64
    config.evaluation.batch_size = 64
    return config
"""


def call(*arguments):
    """Call main() as the command line does."""
    main(["main", *map(str, arguments)])


def content(folder):
    """Return {path: bytes} of everything under `folder`, with None for folders."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def refused(*arguments):
    """Return the one line with which main() refuses."""
    with pytest.raises(InputError) as raised:
        call(*arguments)
    message = str(raised.value)
    assert message and "\n" not in message
    return message


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return (folder it was started in, config file) of a run in its default workdir."""
    place = tmp_path_factory.mktemp("finished")
    path = tmp_path_factory.mktemp("elsewhere") / "tiny.py"
    path.write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        call(f"--config={path}")
    return place, path


@pytest.fixture
def run_copy(finished, tmp_path):
    place, _ = finished
    return shutil.copytree(place / "runs/tiny", tmp_path / "copy")


@pytest.mark.parametrize(
    ("argument", "wrong", "allowed"),
    [
        # The command line itself.
        ("stray", "'stray'", "options begin with --"),
        ("--workdirr=x", "'--workdirr'", "did you mean '--workdir'"),
        (
            "--nosuch=1",
            "'--nosuch'",
            "allowed: --help, --config, --workdir, --multihost",
        ),
        ("--config.updatez", "'updatez'", "'updates'"),
        ("--config.updatez=1", "'updatez'", "'updates'"),
        ("--config.attack.epsilonn=1", "'attack.epsilonn'", "'attack.epsilon'"),
        ("--config.atack.epsilon=1", "'atack.epsilon'", "'attack.epsilon'"),
        ("--config.attack=1", "'attack'", "did you mean"),
        ("--config.updates", "--config.updates", "expected one argument"),
        # Types.
        ("--config.updates=many", "updates = 'many'", "a whole number"),
        ("--config.updates=8.5", "updates = '8.5'", "a whole number"),
        ("--config.attack.epsilon=eight", "epsilon = 'eight'", "a finite number"),
        ("--config.data.flip=perhaps", "data.flip = 'perhaps'", "true or false"),
        ("--config.model.mean=(1,'a')", "(1,'a')", "such as (0.0,)"),
        ("--config.attack.epsilon=8/0", "epsilon = '8/0'", "a finite number"),
        ("--config.optimizer.turns=half", "turns = 'half'", "(0.5, 0.75)"),
        # Numbers.
        ("--config.attack.epsilon=8", "epsilon = 8.0", "8 / 255"),
        ("--config.attack.epsilon=0", "epsilon = 0.0", "above 0"),
        ("--config.attack.epsilon=-0.1", "epsilon = -0.1", "above 0"),
        ("--config.attack.epsilon=nan", "epsilon = 'nan'", "a finite number"),
        ("--config.evaluation.step_size=inf", "step_size = 'inf'", "a finite number"),
        ("--config.attack.replays=0", "attack.replays = 0", "1 or more"),
        ("--config.updates=0", "updates = 0", "1 or more"),
        ("--config.updates=20", "updates = 20", "nearest: 16 or 24"),
        ("--config.seed=-1", "seed = -1", "0 to 2**32 - 1"),
        ("--config.optimizer.turns=(0.75,0.5)", "(0.75, 0.5)", "rising fractions"),
        ("--config.batch_size=1352", "1,352", "1 to 1,347"),
        ("--config.batch_size=60", "batch of 60", "8 devices"),
        ("--config.data.validation_examples=1347", "1347", "0 to 1,346"),
        # Names.
        ("--config.method=freee", "'freee'", "natural, free, pgd, fgsm-rs, trades"),
        ("--config.attack.norm=l3", "'l3'", "linf, l2"),
        ("--config.model.name=resnet-51", "'resnet-51'", "resnet-50"),
        ("--config.optimizer.schedule=linear", "'linear'", "step, triangular, cosine"),
        ("--config.model.dtype=float16", "'float16'", "float32, bfloat16"),
        ("--config.evaluation.attacks=('pgd',)", "'pgd'", "pgd-<steps>"),
        ("--config.evaluation.attacks=('pgd-0',)", "'pgd-0'", "pgd-<steps>"),
        ("--config.data.name=digit", "'digit'", "did you mean 'digits'"),
        # Combinations that do not fit together.
        ("--config.model.name=resnet-50", "(8, 8, 1)", "sides of at least 32"),
        ("--config.model.mean=(0.1,0.2)", "(0.1, 0.2)", "each of the 1 channels"),
        ("--config.optimizer.turns=(0.25,0.5)", "(0.25, 0.5)", "one turn"),
        ("--config.optimizer.schedule=cosine", "(0.5,)", "cosine none: ()"),
    ],
)
def test_a_bad_argument_is_named_with_what_is_allowed(
    config_file, tmp_path, argument, wrong, allowed
):
    workdir = tmp_path / "run"
    message = refused(f"--config={config_file}", f"--workdir={workdir}", argument)
    assert wrong in message
    assert allowed in message
    assert not workdir.exists()


def test_no_config_at_all_is_refused():
    assert refused() == "the following arguments are required: --config"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no such file and no configuration of this name"),
        ("x = (", "SyntaxError: '(' was never closed"),
        ("import nosuchmodule", "ModuleNotFoundError: No module named 'nosuchmodule'"),
        ("def get_config():\n    raise ValueError('it failed')", "it failed"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError"),
        ("x = 1", "must define a function get_config()"),
        ("def get_config():\n    pass", "get_config() must return the ConfigDict"),
        ("def get_config():\n    return {'a': 1}", "must return the ConfigDict"),
        (
            TINY.replace("config.updates", "config.updatez"),
            "no field 'updatez'; did you mean 'updates'",
        ),
        (
            TINY.replace("config.attack.epsilon", "config.attack.epsilonn"),
            "no field 'epsilonn'; did you mean 'attack.epsilon'",
        ),
        (TINY.replace("updates = 16", "updates = 'many'"), "'updates'"),
        (TINY.replace("epsilon = 0.2", "epsilon = 8.0"), "attack.epsilon = 8.0"),
    ],
)
def test_a_bad_config_file_is_refused(config_file, tmp_path, text, message):
    if text is None:
        config_file.unlink()
    else:
        config_file.write_text(text)
    workdir = tmp_path / "run"
    assert message in refused(f"--config={config_file}", f"--workdir={workdir}")
    assert not workdir.exists()


def test_a_missing_config_file_is_named_whatever_follows(tmp_path):
    message = refused(f"--config={tmp_path / 'none.py'}", "--config.updates=8")
    assert message.startswith(f"--config={tmp_path / 'none.py'}: there is no such file")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("digits_fre8", "digits_free8"), ("configs/cifar10_fre2.py", "cifar10_free2")],
)
def test_an_unknown_config_is_answered_with_the_nearest_names(name, nearest):
    assert f"did you mean {nearest} or " in refused(f"--config={name}")


def test_a_config_is_found_by_path_then_here_then_with_the_package(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    installed = find_config("digits_free8")
    assert installed == REPOSITORY / "configs/digits_free8.py"
    own = pathlib.Path("configs/digits_free8.py")
    own.parent.mkdir()
    own.write_text(TINY)
    assert find_config("digits_free8") == own
    typed = pathlib.Path("digits_free8")
    typed.write_text(TINY)
    assert find_config("digits_free8") == typed


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("configs/*.py")), ids=str)
def test_every_config_is_read_by_its_name(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    validate(read_config(find_config(path.stem)))


def test_numbers_may_be_fractions_and_lists_have_commas(config_file, tmp_path, capsys):
    workdir = tmp_path / "run"
    call(
        f"--config={config_file}",
        f"--workdir={workdir}",
        "--config.attack.epsilon=51/255",
        "--config.model.mean=127.5/255",
        "--config.evaluation.attacks=natural,fgsm",
        "--noconfig.model.sync_batch_norm",
        "--config.model.remat",
        "--config.attack.steps=3",
        "--config.data.image_size=8",
    )
    config = read_run(workdir).config
    assert (config.attack.epsilon, config.model.mean) == (0.2, (0.5,))
    assert config.evaluation.attacks == ("natural", "fgsm")
    assert (config.model.sync_batch_norm, config.model.remat) == (False, True)
    assert capsys.readouterr().err == (
        "warning: fields without effect: attack.steps (only with method = pgd, trades, "
        "alp, llr, mart or awp), data.image_size (only with imagenet and folder:PATH)\n"
    )


def cifar10(folder, *, truncated=False, missing=None, label=0):
    """Write CIFAR-10 in binary form, with all pixels 0 and one label of choice."""
    folder.mkdir()
    names = [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]
    for name in names:
        with open(folder / name, "wb") as file:
            file.truncate(30_730_000)
    with open(folder / "data_batch_3.bin", "r+b") as file:
        file.seek(3073)
        file.write(bytes([label]))
        if truncated:
            file.truncate(1_000)
    if missing:
        (folder / missing).unlink()


@pytest.mark.parametrize(
    ("fault", "wrong", "expected"),
    [
        (None, "does not exist", "cifar-10-batches-bin"),
        ({"missing": "data_batch_2.bin"}, "data_batch_2.bin", "is missing"),
        ({"truncated": True}, "data_batch_3.bin has 1,000 bytes", "exactly 30,730,000"),
        ({"label": 11}, "label 11 of image 1", "0 to 9"),
    ],
)
def test_bad_data_are_refused(config_file, tmp_path, fault, wrong, expected):
    data, workdir = tmp_path / "data", tmp_path / "run"
    if fault:
        cifar10(data, **fault)
    message = refused(
        f"--config={config_file}",
        f"--workdir={workdir}",
        "--config.data.name=cifar10",
        f"--config.data.dir={data}",
    )
    assert str(data) in message
    assert wrong in message
    assert expected in message
    assert not workdir.exists()


def test_data_without_a_directory_are_refused(config_file, tmp_path):
    message = refused(
        f"--config={config_file}",
        f"--workdir={tmp_path / 'run'}",
        "--config.data.name=cifar10",
    )
    assert "the data directory of 'cifar10' is ''" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("workdir", ["file", "file/run"])
def test_a_file_in_the_way_of_the_workdir_is_kept(config_file, tmp_path, workdir):
    (tmp_path / "file").write_text("precious")
    message = refused(f"--config={config_file}", f"--workdir={tmp_path / workdir}")
    assert f"{tmp_path / workdir} cannot be written" in message
    assert (tmp_path / "file").read_text() == "precious"


def test_a_workdir_that_holds_something_else_is_kept(config_file, tmp_path):
    workdir = tmp_path / "home"
    workdir.mkdir()
    (workdir / "thesis.tex").write_text("precious")
    before = content(workdir)
    message = refused(f"--config={config_file}", f"--workdir={workdir}")
    assert "not empty and holds no run" in message
    assert "another --workdir" in message
    assert content(workdir) == before


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["--config.attack.epsilon=0.1", "--config.seed=3"],
            ["attack.epsilon: 0.2 -> 0.1", "seed: 0 -> 3", "use another --workdir"],
        ),
        (
            ["--config.model.mean=(0.5,)"],
            ["model.mean: (0.0,) -> (0.5,)", "use another --workdir"],
        ),
        (["--config.updates=8"], ["already at update 16", "updates = 8 is less"]),
    ],
)
def test_a_run_made_with_another_configuration_is_kept(
    finished, run_copy, arguments, messages
):
    before = content(run_copy)
    message = refused(f"--config={finished[1]}", f"--workdir={run_copy}", *arguments)
    assert all(part in message for part in messages)
    assert content(run_copy) == before


@pytest.mark.parametrize("text", ["", '{"config": {', "\xff", "[]", "{}", "3"])
def test_a_damaged_record_is_refused_and_kept(finished, run_copy, text):
    (run_copy / "run.json").write_text(text, encoding="latin-1")
    before = content(run_copy)
    message = refused(f"--config={finished[1]}", f"--workdir={run_copy}")
    assert f"{run_copy / 'run.json'} is damaged" in message
    assert content(run_copy) == before


def test_the_workdir_is_named_after_the_config_file(finished):
    place, _ = finished
    results = json.loads((place / "runs/tiny/results.json").read_text())
    assert results["evaluation"]["natural"]["examples"] == 64
    assert results["training"]["updates"] == 16
    assert [path.name for path in place.iterdir()] == ["runs"]


def test_the_command_opens_with_what_it_does_and_ends_with_what_to_type_next(
    finished, tmp_path, capsys
):
    run = tmp_path / "run"
    call(f"--config={finished[1]}", f"--workdir={run}")
    first, *_, written, evaluate, compare = capsys.readouterr().out.splitlines()
    params = trained_state(read_run(run), "last").params
    size = sum(array.size for array in jax.tree.leaves(params))
    assert first == (
        f"training small-cnn ({size:,} parameters, Free-8 on digits with linf epsilon "
        "0.2) for 16 updates on 1,347 images, on 8 cpu devices"
    )
    assert written == f"written to {run / 'results.json'}"
    assert evaluate == f"evaluate with more attacks: freeadv-evaluate --workdir={run}"
    hint = f"compare models: freeadv-report {run} [OTHER ...] --out=report.html"
    assert compare == hint


def test_the_same_command_again_keeps_the_attacks_made(
    finished, run_copy, monkeypatch, capsys
):
    monkeypatch.setattr(
        "freeadv_jax.attacks.campaign.Campaign.attack",
        lambda *_, **__: pytest.fail("an attack was made again"),
    )
    before = json.loads((run_copy / "results.json").read_text())
    call(f"--config={finished[1]}", f"--workdir={run_copy}")
    after = json.loads((run_copy / "results.json").read_text())
    assert after["evaluation"] == before["evaluation"]
    assert after["training"] == before["training"]
    assert "resumed at update 16" in capsys.readouterr().out


def test_a_run_in_use_keeps_its_record(finished, tmp_path):
    workdir = shutil.copytree(finished[0] / "runs/tiny", tmp_path / "run")
    before = (workdir / "run.json").read_bytes()
    with sole_writer(workdir), pytest.raises(InputError, match="is in use"):
        call(f"--config={finished[1]}", f"--workdir={workdir}", "--config.updates=64")
    assert (workdir / "run.json").read_bytes() == before


def test_a_loaded_model_gives_logits_for_images_in_range(finished):
    classifier = freeadv_jax.load(finished[0] / "runs/tiny")
    logits = classifier(jnp.zeros((3, 8, 8, 1)))
    assert logits.shape == (3, 10)
    assert np.isfinite(logits).all()
    for same in (
        jnp.zeros((3, 8, 8, 1), jnp.bfloat16),
        np.zeros((3, 8, 8, 1)).tolist(),
    ):
        np.testing.assert_allclose(classifier(same), logits, rtol=1e-5)


@pytest.mark.parametrize(
    ("images", "wrong", "allowed"),
    [
        (np.zeros((3, 32, 32, 3), np.float32), "(3, 32, 32, 3)", "[b, 8, 8, 1]"),
        (np.zeros((8, 8, 1), np.float32), "(8, 8, 1)", "[b, 8, 8, 1]"),
        (np.zeros((3, 8, 8, 1), np.uint8), "uint8", "divide by 255"),
    ],
)
def test_a_loaded_model_refuses_other_images(finished, images, wrong, allowed):
    classifier = freeadv_jax.load(finished[0] / "runs/tiny")
    with pytest.raises(InputError) as raised:
        classifier(images)
    assert wrong in str(raised.value)
    assert allowed in str(raised.value)


def test_load_refuses_a_folder_without_a_run_and_leaves_it(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        freeadv_jax.load(tmp_path)
    with pytest.raises(InputError, match="holds no run"):
        freeadv_jax.load(tmp_path / "nowhere")
    assert not content(tmp_path)


def test_load_refuses_a_run_without_a_checkpoint_and_leaves_it(run_copy):
    shutil.rmtree(run_copy / "checkpoints")
    before = content(run_copy)
    with pytest.raises(InputError, match="holds no checkpoint yet"):
        freeadv_jax.load(run_copy)
    assert content(run_copy) == before


def test_load_refuses_another_checkpoint_than_last_or_best(finished):
    with pytest.raises(InputError, match="'newest' is unknown; .*allowed: last, best"):
        freeadv_jax.load(finished[0] / "runs/tiny", checkpoint="newest")


def test_load_refuses_best_where_nothing_was_validated(finished):
    with pytest.raises(InputError, match="there is no best; allowed: last"):
        freeadv_jax.load(finished[0] / "runs/tiny", checkpoint="best")


def test_load_refuses_checkpoints_that_are_all_damaged(run_copy):
    for path in (run_copy / "checkpoints").rglob("*"):
        if path.is_file() and "d" in path.parent.name:
            path.write_bytes(b"")
    with pytest.raises(InputError, match="can be read"):
        freeadv_jax.load(run_copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.updatez=1"], "config has no field 'updatez'"),
        (["--config.data.name=cifar10", "--config.data.dir=none"], "does not exist"),
        (["--config.batch_size=2048"], "2,048"),
    ],
)
def test_the_command_ends_with_one_line_and_status_1(
    config_file, tmp_path, arguments, message
):
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "freeadv_jax.main",
            f"--config={config_file}",
            f"--workdir={tmp_path / 'run'}",
            *arguments,
        ],
        check=False,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert re.fullmatch(r"error: .+\n", ended.stderr)
    assert message in ended.stderr
    assert ended.stdout == ""
    assert not (tmp_path / "run").exists()


def test_help_shows_each_field_with_default_allowed_values_and_meaning(capsys):
    with pytest.raises(SystemExit) as ended:
        call("--help")
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "freeadv-train --config=digits_free8" in shown
    for field in FIELDS:
        _, _, text = shown.partition(f" --config.{field.name} ")
        text = text.partition(" --config.")[0]
        assert field.meaning in text
        assert field.allowed.text in text
        assert f"default: {field.default_text or 'none'}" in text


NETS = """
import flax.linen as nn


class Net(nn.Module):
    num_classes: int
    width: int = 16

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Dense(self.width)(images.reshape(len(images), -1))
        x = nn.Dropout(0.1, deterministic=not train)(nn.relu(x))
        x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(self.num_classes)(x)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Return a working directory with a run of an own network on own float images."""
    place = tmp_path_factory.mktemp("own")
    (place / "my_nets.py").write_text(NETS)
    (place / "tiny.py").write_text(TINY)
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(300, 8, 8, 1)).astype(np.float32)
    labels = (images.mean((1, 2, 3)) > 0.5).astype(np.int64)
    np.savez(place / "mine.npz", images=images, labels=labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("sys.path", [*sys.path])
        call(*OWN, "--config=tiny.py", "--workdir=run")
        yield place
    sys.modules.pop("my_nets", None)


OWN = (
    "--config.model.name=module:my_nets:Net",
    "--config.model.arguments=width=12",
    "--config.data.name=npz:mine.npz",
    "--config.data.test_examples=100",
)


@pytest.fixture
def in_own(own, tmp_path, monkeypatch):
    """Return a copy of `own` that a test may change."""
    shutil.copytree(own, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def test_an_own_network_is_trained_on_own_images(in_own, capsys):
    config = read_run("run").config
    assert config.model.name == "module:my_nets:Net"
    assert config.model.arguments == "width=12"
    assert (config.data.name, config.data.test_examples) == ("npz:mine.npz", 100)
    results = json.loads((in_own / "run/results.json").read_text())
    natural = results["evaluation"]["natural"]
    assert natural["examples"] == 64
    classifier = freeadv_jax.load("run")
    assert (classifier.num_classes, classifier.image_shape) == (2, (8, 8, 1))
    dataset = load_dataset(**config.data)
    right = (
        np.argmax(classifier(dataset.test.images[:64]), -1)
        == (dataset.test.labels[:64])
    )
    assert right.sum() == natural["correct"]
    evaluate.main(["evaluate", "--workdir=run", "--attacks=fgsm", "--no-red_flags"])
    assert "fgsm" in capsys.readouterr().out


def test_a_run_of_an_own_network_is_exported_and_loaded(in_own):
    export.main(["export", "--workdir=run", "--out=exported"])
    images = np.load("mine.npz")["images"][:5]
    np.testing.assert_array_equal(
        freeadv_jax.load("exported")(images), freeadv_jax.load("run")(images)
    )
    description = json.loads((in_own / "exported/model.json").read_text())
    assert description["model"] == "module:my_nets:Net"
    assert description["arguments"] == "width=12"


def test_a_run_continues_only_with_the_same_network(in_own, monkeypatch):
    before = content(in_own / "run")
    (in_own / "my_nets.py").write_text(NETS.replace("Dense(self.width)", "Dense(9)"))
    monkeypatch.delitem(sys.modules, "my_nets")
    message = refused(*OWN, "--config=tiny.py", "--workdir=run")
    assert message.startswith("run was made with another model; use another --workdir;")
    assert "params/BatchNorm_0/bias [12] instead of [9]" in message
    assert content(in_own / "run") == before


@pytest.mark.parametrize("source", ["run", "exported"])
def test_training_starts_from_the_weights_of_a_run_or_an_export(source, in_own, capsys):
    if source == "exported":
        export.main(["export", "--workdir=run", "--out=exported"])
    images = np.load("mine.npz")["images"][:5]
    call(
        *OWN,
        "--config=tiny.py",
        "--workdir=tuned",
        f"--config.init={source}",
        "--config.optimizer.learning_rate=1e-30",
    )
    assert "the last layer is new" not in capsys.readouterr().out
    tuned, first = freeadv_jax.load("tuned"), freeadv_jax.load("run")
    for name in ("Dense_0", "Dense_1"):
        np.testing.assert_array_equal(
            tuned.variables["params"][name]["kernel"],
            first.variables["params"][name]["kernel"],
        )
    assert tuned(images).shape == (5, 2)
    assert read_run("tuned").config.init == source
    # A run that continues does not read the folder again.
    shutil.rmtree(source)
    call(
        *OWN,
        "--config=tiny.py",
        "--workdir=tuned",
        f"--config.init={source}",
        "--config.optimizer.learning_rate=1e-30",
    )
    assert "resumed at update 16" in capsys.readouterr().out


def test_the_last_layer_is_new_for_another_number_of_classes(in_own, capsys):
    file = dict(np.load("mine.npz"))
    np.savez("mine.npz", **file | {"labels": np.arange(300) % 3})
    call(
        *OWN,
        "--config=tiny.py",
        "--workdir=tuned",
        "--config.init=run",
        "--config.optimizer.learning_rate=1e-30",
    )
    said = capsys.readouterr().out
    assert (
        "init = run: the last layer is new (params/Dense_1/bias, params/Dense_1/kernel)\n"
        in said
    )
    assert freeadv_jax.load("tuned").num_classes == 3


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--config.init=nowhere"], "nowhere holds no run"),
        (
            ["--config.init=run", "--config.model.arguments=width=9"],
            "init = run does not fit the model; of another shape: ",
        ),
        (["--config.model.name=module:my_nets:Nett"], "did you mean 'Net'?"),
        (["--config.model.name=module:no_nets:Net"], "No module named 'no_nets'"),
        (["--config.model.name=object:Net"], "freeadv_jax.load(folder, model=net)"),
        (["--config.model.arguments=width"], "must be a JSON object or name=value"),
        (["--config.data.name=npz:none.npz"], "none.npz does not exist"),
        (
            ["--config.data.test_examples=300"],
            "data.test_examples = 300: must be 1 to 299",
        ),
    ],
)
def test_bad_own_input_is_refused_before_anything_is_written(in_own, arguments, reason):
    before = content(in_own)
    assert reason in refused(*OWN, "--config=tiny.py", "--workdir=new", *arguments)
    assert content(in_own) == before
