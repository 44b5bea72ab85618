"""The measurements of a report agree with direct computation, also after an
interruption.
"""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.analysis import measurement
from freeadv_jax.analysis.comparison import first_examples, open_models
from freeadv_jax.analysis.measurement import kept_measurements, measure
from freeadv_jax.attacks.campaign import Campaign
from freeadv_jax.runs.load import load

EXAMPLES = 64


@pytest.fixture(autouse=True)
def fewer_points(monkeypatch):
    monkeypatch.setattr(measurement, "RADII", (0.5, 1, 8))
    monkeypatch.setattr(measurement, "STEP_COUNTS", (1, 20))


@pytest.fixture(scope="module")
def pair(trained_pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    return [shutil.copytree(run, folder / run.name) for run in trained_pair]


def measured(pair):
    models = open_models(pair)
    return measure(
        models,
        lambda: first_examples(models, data="", examples=EXAMPLES),
        examples=EXAMPLES,
    )


def test_the_curves_pass_through_the_figures_of_the_evaluation(pair):
    for one, workdir in zip(measured(pair), pair):
        with np.load(workdir / "evaluation.npz") as file:
            natural, robust = file["natural"], file["pgd-20"]
        np.testing.assert_array_equal(one.by_epsilon[0.2], robust)
        np.testing.assert_array_equal(one.by_steps[20], robust)
        np.testing.assert_array_equal(one.by_epsilon[0.0], natural)
        np.testing.assert_array_equal(one.correct, natural)
        assert list(one.by_epsilon) == [0.0, 0.1, 0.2, 1.0]
        assert one.by_epsilon[0.1].mean() >= one.by_epsilon[0.2].mean()
        assert one.by_epsilon[1.0].mean() == 0


def test_transfer_is_each_models_accuracy_on_the_images_attacked_on_the_others(pair):
    results = measured(pair)
    labels = ["Natural", "Free-2"]
    models = [load(workdir) for workdir in pair]
    for one, model in zip(results, models):
        for other, label in zip(results, labels):
            delta = np.abs(other.attacked - other.images / np.float32(255))
            assert 0.19 < delta.max() <= 0.2 + 1e-6
            by_hand = (
                np.argmax(model(jnp.asarray(other.attacked)), axis=-1) == one.labels
            )
            naturally = (
                np.argmax(model(jnp.asarray(one.images / np.float32(255))), axis=-1)
                == one.labels
            )
            robust = one.robust_to_attack_on(label)
            np.testing.assert_array_equal(robust, by_hand & naturally)
    natural, free = results
    # An attacker who knows the model breaks more of its images.
    assert natural.robust_to_attack_on("Natural").mean() < (
        natural.robust_to_attack_on("Free-2").mean()
    )
    assert (
        free.robust_to_attack_on("Free-2").mean()
        < free.robust_to_attack_on("Natural").mean()
    )


def test_a_second_call_attacks_nothing_and_returns_the_same(pair, monkeypatch):
    before = measured(pair)

    def forbidden(*_):
        raise AssertionError("attacked or loaded again")

    monkeypatch.setattr(Campaign, "attack", forbidden)
    monkeypatch.setattr(Campaign, "logits", forbidden)
    models = open_models(pair)
    after = measure(models, forbidden, examples=EXAMPLES)
    for one, other in zip(before, after):
        np.testing.assert_array_equal(one.attacked, other.attacked)
    assert len(kept_measurements(models, examples=EXAMPLES)) == 2
    assert kept_measurements(models, examples=EXAMPLES + 1) is None


@pytest.mark.thorough
def test_after_a_cut_only_the_missing_measurements_are_made(
    trained_pair, tmp_path, pair
):
    whole = measured(pair)[1]
    run = shutil.copytree(trained_pair[1], tmp_path / "run")
    attack, attacks = Campaign.attack, []

    def cut_at_the_third(self, made, *arguments, **options):
        attacks.append(made)
        if len(attacks) == 3:
            raise KeyboardInterrupt
        return attack(self, made, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Campaign, "attack", cut_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            measured([run])
        (resumed,) = measured([run])
    # The images, three radii and two numbers of steps; the interrupted attack runs twice.
    assert len(attacks) == 1 + 3 + 2 + 1
    np.testing.assert_array_equal(resumed.attacked, whole.attacked)
    for radius, robust in whole.by_epsilon.items():
        np.testing.assert_array_equal(resumed.by_epsilon[radius], robust)
