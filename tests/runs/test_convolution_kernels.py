"""A run keeps its convolutions' kernels: they are recorded, and older runs keep XLA's."""

import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny_config, train_and_evaluate

from freeadv_jax.devices import onednn
from freeadv_jax.errors import InputError
from freeadv_jax.runs.build import model_of
from freeadv_jax.runs.fit import fit
from freeadv_jax.runs.folder import open_run, read_run
from freeadv_jax.runs.load import trained_state

pytestmark = pytest.mark.skipif(
    onednn.unavailable() is not None, reason=f"no oneDNN: {onednn.unavailable()}"
)
FIELDS = {"model__convolutions": "onednn", "validation__every_passes": 2.0}


def begin(workdir, **fields):
    return open_run(
        workdir, tiny_config(**fields), num_classes=10, image_shape=(8, 8, 1)
    )


def recorded(workdir):
    return json.loads((workdir / "run.json").read_text())["convolutions"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train_and_evaluate(tmp_path_factory.mktemp("runs") / "whole", **FIELDS)


@pytest.fixture
def calls(monkeypatch):
    """Return the shapes of the kernels with which oneDNN is called."""
    shapes, call = [], onednn.convolution

    def counting(images, kernel, **settings):
        shapes.append(kernel.shape)
        return call(images, kernel, **settings)

    monkeypatch.setattr(onednn, "convolution", counting)
    return shapes


class Own(nn.Module):
    """A user's model with Flax's own convolutions."""

    @nn.compact
    def __call__(self, images, train):
        hidden = nn.relu(nn.Conv(7, (3, 3))(images))
        return nn.Dense(10)(hidden.mean(axis=(1, 2)))


def fitted(workdir=None, **fields):
    rng = np.random.default_rng(0)
    images, labels = rng.random((32, 8, 8, 1), np.float32), rng.integers(0, 10, 32)
    fields = {"updates": 8, "replays": 2, "batch_size": 16} | fields
    return fit(Own(), images, labels, workdir=workdir, **fields)


def test_fit_gives_onednns_kernels_to_a_users_own_model(calls):
    weights = {
        name: fitted(convolutions=name, validation=16).variables["params"]
        for name in ("xla", "auto", "onednn")
    }
    jax.tree.map(np.testing.assert_array_equal, weights["xla"], weights["auto"])
    assert (3, 3, 1, 7) in calls
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5),
        weights["xla"],
        weights["onednn"],
    )


def test_a_short_fit_keeps_xlas_kernels(calls):
    fitted()
    assert not calls


def test_a_fit_that_continues_keeps_its_kernels(tmp_path, calls):
    whole = fitted(tmp_path / "whole", convolutions="onednn")
    assert recorded(tmp_path / "whole") == "onednn"
    part = shutil.copytree(tmp_path / "whole", tmp_path / "part")
    shutil.rmtree(part / "checkpoints")
    calls.clear()
    again = fitted(part, convolutions="onednn")
    assert calls
    jax.tree.map(np.testing.assert_array_equal, whole.variables, again.variables)


def test_the_environment_of_the_results_has_the_kernels(trained, tmp_path):
    def environment(workdir):
        return json.loads((workdir / "results.json").read_text())["environment"]

    assert environment(trained)["onednn"] == "available"
    assert environment(trained)["convolutions"] == "onednn"
    short = train_and_evaluate(tmp_path, evaluation__attacks=("natural",))
    assert environment(short)["convolutions"] == "xla"


def test_a_run_that_continues_ends_in_the_same_bits(trained, tmp_path):
    whole = read_run(trained)
    assert whole.convolutions == recorded(trained) == "onednn"
    part = shutil.copytree(trained, tmp_path / "part")
    last = max(int(path.name) for path in (part / "checkpoints").glob("[0-9]*"))
    shutil.rmtree(part / "checkpoints" / str(last))
    train_and_evaluate(part, **FIELDS)
    states = [trained_state(run, "last") for run in (whole, read_run(part))]
    assert int(states[0].step) == int(states[1].step) == last
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_the_kernels_are_in_the_program_and_do_not_change_the_results(
    trained, tmp_path
):
    run = read_run(trained)
    images = np.random.default_rng(0).random((64, 8, 8, 1), np.float32)
    variables = jax.tree.map(jnp.asarray, trained_state(run, "last").variables)

    model = model_of(run)

    def logits(x):
        return model.apply(variables, x, train=False)

    ours, xlas = (
        jax.jit(onednn.with_kernels(name, logits)) for name in ("onednn", "xla")
    )
    assert "__onednn$convolution" in ours.lower(images).as_text()
    assert "__onednn$convolution" not in xlas.lower(images).as_text()
    np.testing.assert_allclose(ours(images), xlas(images), atol=1e-4)


def test_auto_is_decided_and_recorded_at_the_beginning(tmp_path):
    short, long = tmp_path / "short", tmp_path / "long"
    assert begin(short).convolutions == recorded(short) == "xla"
    many = {"updates": 2_000_000}
    assert begin(long, **many).convolutions == recorded(long) == "onednn"
    # The new budget does not change a run that continues.
    assert begin(short, **many).convolutions == recorded(short) == "xla"


def test_a_run_older_than_the_choice_keeps_xla(tmp_path):
    many = {"updates": 2_000_000}
    begin(tmp_path, **many)
    record = tmp_path / "run.json"
    content = json.loads(record.read_text())
    del content["convolutions"], content["config"]["model"]["convolutions"]
    record.write_text(json.dumps(content))
    assert read_run(tmp_path).convolutions == "xla"
    assert begin(tmp_path, **many).convolutions == recorded(tmp_path) == "xla"


def test_a_run_cannot_change_its_kernels(tmp_path):
    begin(tmp_path, model__convolutions="xla")
    with pytest.raises(InputError, match="model.convolutions: 'xla' -> 'onednn'"):
        begin(tmp_path, model__convolutions="onednn")


def test_a_machine_without_onednn_continues_with_xla(tmp_path, monkeypatch, capsys):
    begin(tmp_path, **FIELDS)
    monkeypatch.setattr(onednn, "unavailable", lambda: "FREEADV_ONEDNN=0")
    run = begin(tmp_path, **FIELDS)
    assert onednn.choose_again(run.convolutions) == "xla"
    assert recorded(tmp_path) == "onednn"
    assert "continues with XLA's" in capsys.readouterr().out
