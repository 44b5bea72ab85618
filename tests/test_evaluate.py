import json

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from freeadv_jax.attacks.threat import Threat
from freeadv_jax.data.split import Split
from freeadv_jax.errors import InputError
from freeadv_jax.evaluate import (
    attack_by_name,
    configured_attacks,
    evaluate_run,
    make_evaluator,
    table,
)
from freeadv_jax.recipes import digits
from freeadv_jax.run import Run


class Brightness(nn.Module):
    """Class 1 for images whose mean pixel exceeds a half: a margin known exactly."""

    @nn.compact
    def __call__(self, images, *, train):
        steepness = self.param("steepness", nn.initializers.constant(20.0), ())
        excess = steepness * (images.mean((1, 2, 3)) - 0.5)
        return jnp.stack([-excess, excess], axis=-1)


RNG = np.random.default_rng(0)
LEVELS = RNG.integers(20, 236, 77)
SPLIT = Split(
    np.tile(LEVELS[:, None, None, None], (1, 4, 4, 1)).astype(np.uint8),
    (LEVELS > 127).astype(np.int32),
)
VARIABLES = {"params": {"steepness": jnp.float32(20.0)}}
THREAT = Threat("linf", 0.1)


def outcomes(name, *, batch_size=32, split=SPLIT, threat=THREAT, seed=0):
    evaluate = make_evaluator(Brightness(), threat=threat, batch_size=batch_size)
    attack = attack_by_name(name, threat=threat, step_size=0.05)
    return evaluate(VARIABLES, split, attack, seed=seed)


@pytest.mark.parametrize("name", ["fgsm", "pgd-20", "cw-20", "pgd-10-x3"])
def test_exactly_the_images_within_epsilon_of_the_boundary_fall(name):
    standing = outcomes(name)
    expected = np.abs(LEVELS / 255 - 0.5) > 0.1
    assert standing.shape == (77,)
    np.testing.assert_array_equal(standing, expected)
    assert 0 < expected.sum() < 77


def test_natural_is_plain_accuracy():
    wrong = Split(
        SPLIT.images, np.where(np.arange(77) < 5, 1 - SPLIT.labels, SPLIT.labels)
    )
    np.testing.assert_array_equal(outcomes("natural", split=wrong), np.arange(77) >= 5)


def test_image_misclassified_as_it_is_never_counts_as_robust():
    """Even where the attack's last iterate happens to be classified right."""
    wrong = Split(SPLIT.images, 1 - SPLIT.labels)
    assert not outcomes("pgd-20", split=wrong).any()


@pytest.mark.parametrize("batch_size", [1, 7, 77, 200])
def test_outcome_is_the_same_for_any_batch_size(batch_size):
    """Weak attacks, whose outcome depends on each image's random start."""
    reference = outcomes("pgd-1", batch_size=32)
    np.testing.assert_array_equal(outcomes("pgd-1", batch_size=batch_size), reference)
    without_start = np.abs(LEVELS / 255 - 0.5) > 0.05
    assert (reference != without_start).any()


def test_random_starts_differ_by_seed_and_restarts_only_break_more():
    seeds = [outcomes("pgd-1", seed=seed) for seed in range(5)]
    one = seeds[0]
    assert any((one != other).any() for other in seeds[1:])
    many = outcomes("pgd-1-x20", seed=0)
    assert not (many & ~one).any()
    assert many.sum() < one.sum()


def test_equal_images_have_random_starts_of_their_own():
    """Seventy-seven copies of one image near the boundary do not share their fate."""
    split = Split(np.full((77, 4, 4, 1), 140, np.uint8), np.ones(77, np.int32))
    standing = outcomes("pgd-1", split=split)
    assert 0 < standing.sum() < 77
    # Nor does any batch repeat the one before.
    assert (standing[:32] != standing[32:64]).any()


def test_pgd_at_epsilon_zero_is_clean_accuracy():
    wrong = Split(
        SPLIT.images, np.where(np.arange(77) < 5, 1 - SPLIT.labels, SPLIT.labels)
    )
    threat = Threat("linf", 0.0)
    np.testing.assert_array_equal(
        outcomes("pgd-20", split=wrong, threat=threat), outcomes("natural", split=wrong)
    )


def test_names_say_steps_restarts_and_loss():
    attack = attack_by_name("cw-100-x7", threat=THREAT, step_size=0.02)
    assert attack.record(seed=3) == {
        "norm": "linf",
        "epsilon": 0.1,
        "steps": 100,
        "step_size": 0.02,
        "restarts": 7,
        "loss": "margin",
        "seed": 3,
    }
    fgsm = attack_by_name("fgsm", threat=THREAT, step_size=0.02)
    assert (fgsm.steps, fgsm.step_size, fgsm.random_start) == (1, 0.1, False)


@pytest.mark.parametrize("name", ["pdg-20", "pgd", "pgd-0", "pgd-20-x0", "fgsm-2", ""])
def test_unknown_names_are_refused_with_the_known_ones(name):
    with pytest.raises(
        InputError, match=r"unknown; allowed: natural, fgsm, pgd-<steps>"
    ):
        attack_by_name(name, threat=THREAT, step_size=0.02)


@pytest.fixture
def run(tmp_path, monkeypatch):
    config = digits()
    config.attack.epsilon = 0.1
    config.evaluation.attacks = ("natural", "pgd-20")
    config.evaluation.examples = 50
    monkeypatch.setattr(Run, "model", lambda self: Brightness())
    return Run(tmp_path, config, num_classes=2, image_shape=(4, 4, 1))


def test_results_name_the_images_and_the_attack(run):
    results = evaluate_run(run, VARIABLES, SPLIT, training={"updates": 8})
    written = json.loads((run.workdir / "results.json").read_text())
    assert written["evaluation"] == results["evaluation"]
    correct = int((np.abs(LEVELS[:50] / 255 - 0.5) > 0.1).sum())
    row = results["evaluation"]["pgd-20"]
    assert (row["correct"], row["examples"]) == (correct, 50)
    assert row["accuracy"] == correct / 50
    assert f"pgd-20{correct / 50:>18.2%}{correct:>10}{50:>8}" in table(results)


def test_finished_attacks_are_kept_unless_they_or_the_model_changed(run, monkeypatch):
    evaluate_run(run, VARIABLES, SPLIT, training={"updates": 8})
    made = []
    attack_again = lambda *a, **k: made.append(a[2].name) or np.ones(50, bool)
    monkeypatch.setattr(
        "freeadv_jax.evaluate.make_evaluator", lambda *a, **k: attack_again
    )
    evaluate_run(run, VARIABLES, SPLIT, training={"updates": 8})
    assert made == []
    run.config.evaluation.step_size = 0.01
    evaluate_run(run, VARIABLES, SPLIT, training={"updates": 8})
    assert made == ["pgd-20"]
    evaluate_run(run, VARIABLES, SPLIT, training={"updates": 16})
    assert made == ["pgd-20", "natural", "pgd-20"]


def test_configured_attacks_take_threat_and_step_from_the_configuration():
    config = digits()
    config.attack.norm = "l2"
    (attack,) = configured_attacks(config, ("pgd-20",))
    assert (attack.norm, attack.epsilon, attack.step_size) == ("l2", 0.2, 0.05)
