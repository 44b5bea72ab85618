"""A run keeps its convolutions' kernels: they are recorded, and older runs keep XLA's."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny_config, train_and_evaluate

from freeadv_jax.devices import onednn
from freeadv_jax.errors import InputError
from freeadv_jax.runs.build import model_of
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

    def logits(model):
        return jax.jit(lambda x: model.apply(variables, x, train=False))

    ours, xlas = (
        logits(model_of(run).clone(convolutions=name)) for name in ("onednn", "xla")
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
    assert model_of(run).convolutions == "xla"
    assert recorded(tmp_path) == "onednn"
    assert "continues with XLA's" in capsys.readouterr().out
