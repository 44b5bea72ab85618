"""benchmarks.speedrun: a recipe of one file, whose schedules end when its time does."""

import dataclasses
import itertools
import pathlib
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import readme, speedrun
from benchmarks.speedrun import (
    CANDIDATES,
    EPSILON,
    RECIPE,
    Recipe,
    amounts,
    epsilon,
    finished,
    first_state,
    learning_rate,
    main,
    train,
)
from freeadv_jax.data.split import Split
from freeadv_jax.errors import InputError, TrainingStoppedError
from freeadv_jax.files import read_json, write_json

TINY = Recipe(
    patch=4, features=(4,), units=(1,), dtype="float32", batch_size=16, average_decay=0
)


def images(number=64):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    return Split(pixels, rng.integers(0, 10, number, dtype=np.int32))


def trained(recipe=TINY, *, seconds=10, seed=0):
    """Train by a clock that each look moves on by a second."""
    clock = itertools.count().__next__
    how = {"seed": seed, "minutes": seconds / 60, "title": "run-0", "clock": clock}
    return train(recipe, images(), **how)


@pytest.fixture(autouse=True)
def one_minibatch_a_call(monkeypatch):
    monkeypatch.setattr(speedrun, "PER_CALL", 1)


def test_the_recipe_fits_into_500_lines():
    assert len(pathlib.Path(speedrun.__file__).read_text().splitlines()) <= 500


def test_the_learning_rate_rises_and_falls_once():
    recipe = Recipe(rate=0.3, rate_rise=0.25)
    rates = [learning_rate(recipe, fraction) for fraction in (0, 0.125, 0.25, 0.5, 1)]
    np.testing.assert_allclose(rates, [0, 0.15, 0.3, 0.2, 0], atol=1e-7)


def test_epsilon_rises_and_stays():
    recipe = Recipe(epsilon_rise=0.2)
    radii = [epsilon(recipe, fraction) for fraction in (0, 0.1, 0.2, 1)]
    np.testing.assert_allclose(radii, [0, EPSILON / 2, EPSILON, EPSILON], rtol=1e-6)
    assert epsilon(Recipe(epsilon_rise=0), 0) == EPSILON


def test_a_training_ends_within_its_time():
    _, training = trained()
    # A second of compilation, eight calls of a second each and one for the result.
    assert (training["compile_seconds"], training["seconds"]) == (1, 10)
    assert (training["updates"], training["passes_over_the_data"]) == (8, 2.0)
    # The first convolution of 48 channels and two of 4, at 8 x 8 pixels.
    forward = 2 * 9 * 64 * (48 * 4 + 2 * 4 * 4)
    assert training["flop"] == 5 * forward * 16 * 8
    assert 0 < training["loss"] < 10 and 0 <= training["accuracy"] <= 1


def test_a_time_that_ends_before_the_first_update_is_refused():
    with pytest.raises(InputError, match="--minutes 0.0166667: compilation takes 1 s"):
        trained(seconds=1)


def test_the_weights_move_by_the_rate_of_the_moment():
    still, _ = trained(dataclasses.replace(TINY, rate=0.0), seconds=4)
    first = jax.device_get(first_state(TINY, 0).params)
    moved, _ = trained(seconds=4)
    for before, after in zip(*map(jax.tree.leaves, (first, still["params"]))):
        np.testing.assert_array_equal(after, before)
    for before, after in zip(*map(jax.tree.leaves, (first, moved["params"]))):
        assert not np.array_equal(after, before)


def test_a_loss_that_is_not_finite_ends_the_program_with_one_line():
    with pytest.raises(TrainingStoppedError, match="run-0: the loss is (nan|inf)"):
        trained(dataclasses.replace(TINY, rate=1e30), seconds=60)


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_candidate_is_another_recipe_with_a_network(name):
    recipe = dataclasses.replace(RECIPE, **CANDIDATES[name])
    assert (recipe == RECIPE) == (name == "recipe")
    state = jax.eval_shape(lambda: first_state(recipe, 0))
    assert state.delta.shape == (recipe.batch_size, 32, 32, 3)


@pytest.mark.parametrize(
    ("name", "updates", "passes"),
    [("FGSM-RS", 6, 5), ("Free-2", 12, 3), ("epsilon from the start", 6, 5)],
)
def test_candidates_of_other_methods_train(name, updates, passes):
    recipe = dataclasses.replace(TINY, **CANDIDATES[name])
    _, training = trained(recipe, seconds=8)
    assert training["updates"] == updates
    of_image = training["flop"] / (updates * 16)
    assert of_image == passes * 2 * 9 * 64 * (48 * 4 + 2 * 4 * 4)


def test_the_usual_recipe_takes_a_fifth_of_preact_resnet_18():
    variables = jax.eval_shape(lambda: first_state(RECIPE, 0)).variables
    flop = amounts(RECIPE, variables, 1, 50_000)["flop"]
    assert flop / (5 * 64) == pytest.approx(0.2 * 1.11e9, rel=0.1)


class Trainer:
    """Count the trainings, and return weights that were never trained."""

    def __init__(self):
        self.count = 0

    def __call__(self, recipe, split, *, seed, minutes, title):
        self.count += 1
        variables = jax.device_get(first_state(recipe, seed).variables)
        return variables, {"seconds": 60 * minutes, "updates": 3}


def finish(folder, recipe=TINY, **changed):
    how = {"seed": 0, "minutes": 2, "attacks": ("natural", "fgsm"), "examples": 8}
    both = {"train_on": images(), "evaluate_on": images(16)}
    return finished(recipe, folder / "run-0", **how | both | changed)


def test_a_finished_training_is_not_repeated(tmp_path, monkeypatch):
    trainer = Trainer()
    monkeypatch.setattr(speedrun, "train", trainer)
    first = finish(tmp_path)
    again = finish(tmp_path)
    assert trainer.count == 1
    assert first["evaluation"] == again["evaluation"]
    assert first["evaluation"]["fgsm"]["examples"] == 8
    assert first["training"]["updates"] == 3
    assert first["training"]["recipe"]["features"] == [4]


def test_a_folder_of_another_recipe_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(speedrun, "train", Trainer())
    finish(tmp_path)
    for changed in ({"recipe": dataclasses.replace(TINY, rate=0.2)}, {"seed": 1}):
        with pytest.raises(InputError, match="run-0 has a model of another recipe"):
            finish(tmp_path, **changed)


@pytest.fixture
def asked(monkeypatch):
    """Replace data and trainings, and return the trainings that are asked for."""
    found = []

    def load_arrays(name, directory, *, validation_examples):
        parts = {"train": validation_examples, "validation": "held-out", "test": "test"}
        return SimpleNamespace(**parts)

    def finished(recipe, folder, **how):
        found.append((recipe, folder, how))
        robust = 0.3 + 0.01 * len(found)
        figures = dict.fromkeys(how["attacks"], robust) | {"natural": 0.5}
        row = {"examples": how["examples"]}
        training = dict.fromkeys(("updates", "passes_over_the_data", "flop"), 7)
        return {
            "training": training | {"seconds": 60 * how["minutes"]},
            "evaluation": {name: row | {"accuracy": x} for name, x in figures.items()},
            "environment": {},
        }

    monkeypatch.setattr(speedrun, "load_arrays", load_arrays)
    monkeypatch.setattr(speedrun, "finished", finished)
    return found


def test_the_hour_trains_on_all_images_and_is_evaluated_on_test_images(
    asked, tmp_path, monkeypatch
):
    main(["speedrun", "--data=data", f"--out={tmp_path / 'speedrun.json'}"])
    assert [recipe for recipe, _, _ in asked] == [RECIPE] * 3
    assert [folder.name for _, folder, _ in asked] == ["run-0", "run-1", "run-2"]
    for seed, (_, _, how) in enumerate(asked):
        assert (how["seed"], how["minutes"], how["examples"]) == (seed, 60, 1000)
        assert (how["train_on"], how["evaluate_on"]) == (0, "test")
        assert how["attacks"] == ("natural", "autoattack")
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert readme.BLOCKS["speedrun"]() == (
        "50.0 ± 0.0 % natural and 32.0 ± 1.0 % under AutoAttack on 1,000 test images, "
        "3 runs of 60 minutes"
    )


def test_a_probe_looks_at_held_out_images_alone(asked, tmp_path, capsys):
    out = tmp_path / "probe.json"
    names = ["recipe", "less noise"]
    main(["speedrun", "--data=data", "--probe", *names, f"--out={out}"])
    for name, (recipe, folder, how) in zip(names, asked, strict=True):
        assert recipe == dataclasses.replace(RECIPE, **CANDIDATES[name])
        assert folder.parts[-2:] == ("probe-10-minutes", name.replace(" ", "-"))
        assert (how["train_on"], how["evaluate_on"]) == (5000, "held-out")
        assert how["attacks"] == ("natural", "apgd-ce")
    assert list(read_json(out)["results"]) == names
    *_, first, second, _ = capsys.readouterr().out.splitlines()
    assert first.startswith("less noise") and "apgd-ce 32.00%" in first
    assert second.startswith("recipe") and "apgd-ce 31.00%" in second


def test_a_probe_without_names_takes_all_candidates(asked, tmp_path):
    flags = ["--probe", "--minutes=3", f"--out={tmp_path / 'probe.json'}"]
    main(["speedrun", "--data=data", *flags])
    assert len(asked) == len(CANDIDATES)
    assert {how["minutes"] for _, _, how in asked} == {3}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--minutes=0"], "--minutes 0: must be above 0"),
        (["--probe", "wider"], "invalid choice: 'wider'"),
        (["--runs=0"], "--runs: '0': must be a whole number above 0"),
    ],
)
def test_unusable_options_are_refused_in_one_line(flags, message, asked):
    with pytest.raises(InputError, match=message):
        main(["speedrun", "--data=data", *flags])
    assert not asked


def test_the_page_says_not_yet_run_without_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    assert readme.BLOCKS["speedrun"]() == "not yet run"
    write_json(tmp_path / "other.json", {})
    assert readme.BLOCKS["speedrun"]() == "not yet run"
