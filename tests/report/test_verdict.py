"""The sentences at the head of a report agree with its figures."""

import dataclasses

import numpy as np
from fake_models import reported, row

from freeadv_jax.report.reported import strongest_attack
from freeadv_jax.report.run_tables import cost_table
from freeadv_jax.report.verdict import verdict


def runs(natural, *free, **more):
    natural = reported({"natural": row(196), "pgd-20": row(natural)}, method="natural")
    return [
        natural,
        *(
            reported(
                {"natural": row(190), "pgd-20": row(correct)},
                label=f"Free-2, {place}",
                **more,
            )
            for place, correct in enumerate(free)
        ),
    ]


def test_the_more_robust_model_is_named_with_its_figures():
    headline, robust, natural, why, cost, trust = verdict(runs(4, 100))
    assert headline == "Free-2 is the most robust of these models."
    assert "Free-2 50.0 % (95 % interval 43.1 to 56.9), Natural 2.0 %" in robust
    assert "attack pgd-20" in robust
    assert "L-inf epsilon 0.2" in robust
    assert natural == "Without an attack: Free-2 95.0 %, Natural 98.0 %."
    assert "Free-2 saw attacked images" in why
    assert "Free-2 60 seconds" in cost
    assert trust == "Not every model was checked for red flags."


def test_a_long_training_has_whole_minutes():
    models = runs(4, 100)
    models[1].results["training"]["seconds"] = 60 * 5418
    assert "Free-2 5,418 minutes, Natural 60 seconds" in verdict(models)[4]
    assert [line[1].text for line in cost_table(models).rows] == ["1", "5,418"]


def test_models_within_chance_have_no_winner():
    headline = verdict(runs(98, 100))[0]
    assert headline == "Free-2 and Natural are equally robust, up to chance."


def test_all_models_within_chance_of_the_best_are_named_with_it():
    models = [
        reported({"natural": row(190), "pgd-20": row(correct)}, attack__replays=m)
        for m, correct in ((2, 100), (4, 98), (8, 97), (16, 30))
    ]
    assert verdict(models[:3])[0] == (
        "Free-2, Free-4 and Free-8 are equally robust, up to chance."
    )
    assert verdict(models)[0] == (
        "Free-2, Free-4 and Free-8 are the most robust of these models, too close to "
        "rank."
    )


def test_several_seeds_are_compared_by_their_deviation():
    apart = verdict(runs(60, 100, 101, 99))
    assert apart[0] == "Free-2 is the most robust of these models."
    assert "(± 0.5 over 3 runs)" in apart[1]
    assert "equally" in verdict(runs(60, 100, 60, 120))[0]


def test_a_single_run_has_a_headline_without_a_comparison():
    headline = verdict(runs(4, 100)[1:])[0]
    assert headline == "Free-2 classifies 50.0 % correctly under attack."


def test_runs_attacked_differently_are_not_ranked():
    models = runs(4, 100)
    models[0].rows["pgd-20"] = row(4, examples=100)
    (sentence,) = verdict(models)
    assert "cannot be ranked" in sentence


def test_a_red_flag_is_named_with_its_model():
    models = runs(4, 100)
    for model in models:
        model.results["red_flags"] = {"flags": {"Square": {"suspicious": False}}}
    assert verdict(models)[-1] == "No red flag speaks against these figures."
    models[1].results["red_flags"] = {"flags": {"Square": {"suspicious": True}}}
    assert "Careful: red flags for Free-2, 0 (Square)" in verdict(models)[-1]


def test_the_strongest_attack_leaves_the_fewest_images_on_all_models():
    rows = {"natural": row(190), "pgd-20": row(90), "cw-100": row(80)}
    both = [reported(rows), reported({**rows, "square": row(1)})]
    assert strongest_attack(both).attack == "cw-100"


def test_autoattack_comes_before_other_attacks_even_if_it_breaks_fewer_images():
    rows = {"natural": row(190), "autoattack": row(80), "pgd-100": row(78)}
    assert strongest_attack([reported(rows)]).attack == "autoattack"


def test_a_worst_case_with_autoattack_comes_before_autoattack_alone():
    attacks = ["pgd-20", "autoattack"]
    rows = {"natural": row(190), "pgd-20": row(90), "autoattack": row(80)}
    rows["worst-case"] = row(80, attacks=attacks)
    assert strongest_attack([reported(rows)]).attack == "worst-case"
    rows["worst-case"] = row(70, attacks=["pgd-20"])
    assert strongest_attack([reported(rows)]).attack == "autoattack"


def test_the_verdict_goes_by_autoattack_on_fewer_images_than_pgd():
    natural = np.arange(200) < 190
    rows = {
        "natural": row(190),
        "pgd-100": row(100),
        "autoattack": row(30, examples=100),
    }
    outcomes = {"label": np.zeros(200, np.int32), "natural": natural}
    model = reported(rows, outcomes=outcomes)
    headline, robustness, on_same_images, *_ = verdict([model])
    assert headline == "Free-2 classifies 30.0 % correctly under attack."
    assert "The attack AutoAttack" in robustness
    assert "Of 100 attacked test images" in robustness
    assert on_same_images == "Without an attack: Free-2 100.0 %."


def test_a_stronger_attack_on_one_model_alone_is_named():
    models = runs(4, 100)
    models[1].rows["autoattack"] = row(20, examples=100)
    sentence = verdict(models)[3]
    assert sentence.startswith(
        "Careful: AutoAttack leaves Free-2, 0 20.0 % of 100 images."
    )
    models[1].rows["autoattack"] = row(90, examples=100)
    assert not verdict(models)[3].startswith("Careful")


def test_an_attack_on_fewer_and_harder_images_is_not_called_stronger():
    models = runs(4, 100)
    robust = np.arange(200) >= 100
    models[1].outcomes["pgd-20"] = robust
    # PGD leaves no image of the first 100 either.
    models[1].rows["square"] = row(0, examples=100)
    assert not verdict(models)[3].startswith("Careful")
    models[1].outcomes["pgd-20"] = ~robust
    assert verdict(models)[3].startswith("Careful: square leaves Free-2, 0 0.0 %")


def test_models_of_other_image_sets_cannot_be_ranked():
    models = [
        dataclasses.replace(model, images=number)
        for number, model in enumerate(runs(4, 100))
    ]
    (sentence,) = verdict(models)
    assert "cannot be ranked" in sentence
