"""The sentences at the head of a report say what the figures do."""

from fake_runs import row, shown

from freeadv_jax.report.shown import hardest_attack
from freeadv_jax.report.tables import cost_table
from freeadv_jax.report.verdict import verdict


def runs(natural, *free, **more):
    natural = shown({"natural": row(196), "pgd-20": row(natural)}, method="natural")
    return [
        natural,
        *(
            shown(
                {"natural": row(190), "pgd-20": row(correct)},
                label=f"Free-2, {place}",
                **more,
            )
            for place, correct in enumerate(free)
        ),
    ]


def test_more_robust_model_is_named_with_its_figures():
    headline, robust, natural, why, cost, trust = verdict(runs(4, 100))
    assert headline == "Free-2 is the most robust of these models."
    assert "Free-2 50.0 % (95 % interval 43.1 to 56.9), Natural 2.0 %" in robust
    assert "attack pgd-20" in robust
    assert "L-inf epsilon 0.2" in robust
    assert natural == "Without an attack: Free-2 95.0 %, Natural 98.0 %."
    assert "Free-2 saw attacked images" in why
    assert "Free-2 1 minutes" in cost
    assert trust.startswith("Red flags were not looked for")


def test_long_training_is_told_in_whole_minutes():
    models = runs(4, 100)
    models[1].results["training"]["seconds"] = 60 * 5418
    assert "Free-2 5,418 minutes, Natural 1 minutes" in verdict(models)[4]
    assert [line[1].text for line in cost_table(models).rows] == ["1", "5,418"]


def test_close_race_has_no_winner():
    headline = verdict(runs(98, 100))[0]
    assert headline == "Free-2 and Natural are equally robust, up to chance."


def test_all_that_cannot_be_told_from_the_best_are_named_with_it():
    models = [
        shown({"natural": row(190), "pgd-20": row(correct)}, attack__replays=m)
        for m, correct in ((2, 100), (4, 98), (8, 97), (16, 30))
    ]
    assert verdict(models[:3])[0] == (
        "Free-2, Free-4 and Free-8 are equally robust, up to chance."
    )
    assert verdict(models)[0] == (
        "Free-2, Free-4 and Free-8 are the most robust of these models, too close to "
        "tell apart."
    )


def test_seeds_count_by_their_spread():
    apart = verdict(runs(60, 100, 101, 99))
    assert apart[0] == "Free-2 is the most robust of these models."
    assert "(± 0.5 over 3 runs)" in apart[1]
    assert "equally" in verdict(runs(60, 100, 60, 120))[0]


def test_single_run_is_told_without_a_comparison():
    headline = verdict(runs(4, 100)[1:])[0]
    assert headline == "Free-2 keeps 50.0 % right under attack."


def test_runs_attacked_differently_are_not_ranked():
    models = runs(4, 100)
    models[0].rows["pgd-20"] = row(4, examples=100)
    (said,) = verdict(models)
    assert "cannot be ranked" in said


def test_suspicious_sign_is_told_with_the_model():
    models = runs(4, 100)
    for model in models:
        model.results["red_flags"] = {"flags": {"Square": {"suspicious": False}}}
    assert verdict(models)[-1] == "No red flag speaks against these figures."
    models[1].results["red_flags"] = {"flags": {"Square": {"suspicious": True}}}
    assert "Careful: suspicious signs at Free-2, 0 (Square)" in verdict(models)[-1]


def test_hardest_attack_is_what_fewest_withstand_on_all():
    rows = {"natural": row(190), "pgd-20": row(90), "cw-100": row(80)}
    both = [shown(rows), shown({**rows, "square": row(1)})]
    assert hardest_attack(both) == "cw-100"
