"""Runs and exports of the version before still load, evaluate and resume as they did.

tests/fixtures/first_round was made by that version on one CPU device: `run` is a run
folder at update 64, `exported` its export, `resumed` holds the measurements and the
evaluation after that version went on to update 128, `logits.npz` both models' logits.

Floats are compared to 1e-5 of their size and not to the bit: another processor or
jaxlib adds in another order. Outcomes of images and predictions are compared exactly.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest
from tiny_run import metrics, run_main

import freeadv_jax
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.devices import onednn
from freeadv_jax.evaluate import main

FIXTURE = pathlib.Path(__file__).parent / "fixtures" / "first_round"
DIGITS = load_arrays("digits", "", validation_examples=200)
ATTACKS = ("natural", "pgd-20", "fgsm")
# The command line of the fixture's run, apart from `updates`.
FIELDS = {
    "batch_size": 32,
    "model.name": "small-cnn-bn",
    "attack.replays": 2,
    "checkpoint.keep": 1,
    "checkpoint.every_updates": 64,
    "evaluation.attacks": ATTACKS,
    "evaluation.examples": 64,
    "evaluation.batch_size": 200,
    "logging.every_updates": 8,
    "optimizer.average_decay": 0.9,
    "seed": 3,
    "validation.every_passes": 1.0,
}


def arrays(path):
    with np.load(path) as file:
        return dict(file)


def assert_close(found, expected):
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=tolerance)


def logits(folder):
    return np.asarray(
        freeadv_jax.load(folder)(DIGITS.test.images[:16] / np.float32(255))
    )


def assert_same_outcomes(found, expected):
    for name in (*ATTACKS, "prediction", "label"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.fixture
def run(tmp_path):
    """Return a copy of the fixture's run."""
    return shutil.copytree(FIXTURE / "run", tmp_path / "run")


@pytest.mark.parametrize("folder", ["run", "exported"])
def test_model_of_the_version_before_gives_its_logits(folder):
    assert_close(logits(FIXTURE / folder), arrays(FIXTURE / "logits.npz")["loaded"])


def evaluate(run):
    names = ",".join(ATTACKS)
    main(
        ["evaluate", f"--workdir={run}", f"--attacks={names}", "--examples=64"]
        + ["--no-red_flags"]
    )


def test_evaluating_the_run_again_breaks_the_same_images(run):
    for name in ("results.json", "evaluation.npz"):
        (run / name).unlink()
    evaluate(run)
    found, expected = (arrays(at / "evaluation.npz") for at in (run, FIXTURE / "run"))
    assert_same_outcomes(found, expected)
    # The checksums say that weights and images are still those of the record.
    assert json.loads(str(found["about"])) == json.loads(str(expected["about"]))
    rows, before = (
        json.loads((at / "results.json").read_text())["evaluation"]
        for at in (run, FIXTURE / "run")
    )
    for name in (*ATTACKS, "worst-case"):
        assert rows[name] == before[name]


def test_outcomes_of_the_version_before_are_kept_and_not_attacked_again(
    run, monkeypatch
):
    def attack(*arguments, **fields):
        raise AssertionError("the attacks are known")

    monkeypatch.setattr(Campaign, "attack", attack)
    evaluate(run)
    found, expected = (arrays(at / "evaluation.npz") for at in (run, FIXTURE / "run"))
    assert_same_outcomes(found, expected)


def test_run_resumed_ends_in_the_measurements_of_the_version_before(run):
    resumed = run_main(run, devices=1, updates=128, **FIELDS)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at update 64" in resumed.stdout
    found, expected = metrics(run), metrics(FIXTURE / "resumed")
    assert len(found) == len(expected) == 19
    for line, before in zip(found, expected):
        line.pop("alignment", None)  # The version before did not measure it.
        assert line.keys() == before.keys()
        kinds = line.pop("kind"), before.pop("kind")
        assert kinds[0] == kinds[1]
        if line["step"] <= 36 or rounds_like_the_fixture():
            assert line == pytest.approx(before, rel=1e-5)
    ended = logits(run), arrays(FIXTURE / "logits.npz")["resumed"]
    outcomes = [arrays(at / "evaluation.npz") for at in (run, FIXTURE / "resumed")]
    if rounds_like_the_fixture():
        assert_close(*ended)
        assert_same_outcomes(*outcomes)
    assert np.mean(np.equal(*(each.argmax(axis=1) for each in ended))) >= 0.9
    for name in ATTACKS:
        found, expected = (each[name].mean() for each in outcomes)
        assert abs(found - expected) <= 0.1


def rounds_like_the_fixture():
    """Return whether this processor sums in the order of those that the fixture fits.

    Those with AMX do not, and the signs of gradients amplify the rounding within a few
    minibatches.
    """
    return "amx_bf16" not in onednn.instructions()
