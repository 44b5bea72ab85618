"""The tables of a report: their figures, their marks, and what they refuse to compare."""

import dataclasses

import numpy as np
import pytest
from fake_models import measured, reported, row

from freeadv_jax.corrupted.images import KINDS
from freeadv_jax.report.accuracy_tables import (
    results_table,
    seeds_table,
    transfer_table,
)
from freeadv_jax.report.certified_tables import certified_table, shares_by_epsilon
from freeadv_jax.report.class_tables import (
    classes_table,
    confused_table,
    robust_images,
)
from freeadv_jax.report.corruption_tables import corruptions_table
from freeadv_jax.report.figures import sandwich_plots
from freeadv_jax.report.reported import strongest_attack
from freeadv_jax.report.run_tables import cost_table, flags_table, settings_table
from freeadv_jax.report.verdict import verdict


def pair(natural, free):
    return [
        reported(natural, method="natural"),
        reported(free, place=1, method="free"),
    ]


def test_best_of_each_column_is_marked_once():
    runs = pair(
        {"natural": row(190), "pgd-20": row(4)},
        {"natural": row(180), "pgd-20": row(90)},
    )
    table = results_table(runs)
    marks = [[cell.mark for cell in line[1:]] for line in table.rows]
    assert marks == [["best", ""], ["", "best"]]
    cell = table.rows[1][2]
    assert cell.text == "45.0"
    assert cell.note == "38.3 to 51.9, of 200"
    assert cell.numbers["examples"] == 200


def test_a_shortened_attack_is_shown_with_what_it_may_have_missed():
    audit = {"audited": 17, "broken": 1, "accuracy_at_least": 0.3512}
    rows = {"natural": row(180), "autoattack-quick": row(90) | {"audit": audit}}
    cell = results_table([reported(rows, method="free")]).rows[0][2]
    assert cell.text == "45.0"
    assert cell.note == (
        "38.3 to 51.9, of 200; an audit of 17 survivors broke 1; the standard version "
        "leaves at least 35.12% (95 %)"
    )
    assert cell.numbers["at_least"] == 0.3512


@pytest.mark.parametrize(
    "other", [row(90, examples=100), row(90, steps=40), row(90, last_iterate=True)]
)
def test_attacks_with_other_settings_or_images_are_not_compared(other):
    runs = pair(
        {"natural": row(190), "pgd-20": row(4)}, {"natural": row(180), "pgd-20": other}
    )
    table = results_table(runs)
    assert {line[2].mark for line in table.rows} == {""}
    assert "Nothing is marked for pgd-20" in table.caption


def corrupted(model, *, shift=0, images=None, examples=100):
    """Return a model with errors of 1, 2, ... percent by kind and severity, shifted."""
    kinds = {}
    for place, kind in enumerate(KINDS):
        severities = {
            str(n): {"accuracy": 1 - (place + n + shift) / 100} for n in range(1, 6)
        }
        kinds[kind] = {
            "mean_error": (place + 3 + shift) / 100,
            "severities": severities,
        }
    record = {
        "mean_error": (10 + shift) / 100,
        "interval": [0.05, 0.25],
        "examples": examples,
        "natural": row(90 - shift, examples=100),
        "kinds": kinds,
        "images": images or {"library": "x"},
    }
    return dataclasses.replace(model, results=model.results | {"corruptions": record})


def test_errors_under_corruptions_are_shown_by_kind_and_severity():
    models = pair({"natural": row(190)}, {"natural": row(180)})
    assert corruptions_table(models) is None
    table = corruptions_table([corrupted(models[0], shift=4), corrupted(models[1])])
    assert table.columns == ("corruption", "Natural", "Free-2")
    names = [line[0].text for line in table.rows]
    assert names[:3] == ["none", "mean of all", "gaussian noise"]
    assert len(names) == 2 + len(KINDS)
    none, mean, noise = table.rows[:3]
    assert [cell.text for cell in none[1:]] == ["14.0", "10.0"]
    assert [cell.text for cell in mean[1:]] == ["14.0", "10.0"]
    assert mean[1].note == "5.0 to 25.0"
    assert noise[2].note == "1.0 2.0 3.0 4.0 5.0"
    assert noise[2].numbers["severity 5"] == pytest.approx(0.05)
    assert {cell.mark for line in table.rows for cell in line[2:]} == {"best"}
    assert {cell.mark for line in table.rows for cell in line[:2]} == {""}
    assert "100 test images" in table.caption


@pytest.mark.parametrize(
    "other", [{"images": {"library": "y"}}, {"examples": 50}, None]
)
def test_errors_on_other_corruptions_or_images_are_not_compared(other):
    models = pair({"natural": row(190)}, {"natural": row(180)})
    first, second = corrupted(models[0]), models[1]
    table = corruptions_table(
        [first, second if other is None else corrupted(second, **other)]
    )
    assert {cell.mark for line in table.rows for cell in line} == {""}
    assert "Nothing is marked as best" in table.caption


OUTCOMES = {
    "label": np.zeros(8, np.int32),
    "natural": np.array([1, 1, 1, 1, 1, 1, 0, 0], bool),
    "pgd-20": np.array([1, 1, 0, 0, 1, 1, 0, 0], bool),
    "autoattack": np.array([1, 0, 0, 0], bool),
}


def evaluated_on(examples, **fields):
    """Return a model with AutoAttack on 4 images and other rows on the first
    `examples`.
    """
    names = ("natural", "pgd-20", "autoattack")
    arrays = {name: array[:examples] for name, array in OUTCOMES.items()}
    rows = {
        name: row(int(arrays[name].sum()), examples=len(arrays[name])) for name in names
    }
    return reported(rows, outcomes=arrays, **fields)


def test_rows_of_different_images_are_on_lines_of_their_own():
    table = results_table([evaluated_on(8)])
    assert table.columns == ("model", "natural", "autoattack", "pgd-20")
    texts = [[cell.text for cell in line[1:]] for line in table.rows]
    # The second line counts every attack on the four images that AutoAttack has.
    assert texts == [["75.0", "–", "50.0"], ["100.0", "25.0", "50.0"]]
    notes = [line[0].note for line in table.rows]
    assert notes == ["the first 8 images", "the first 4 images"]
    assert "different numbers of images" in table.caption


def test_models_with_different_numbers_of_images_are_compared_on_the_common_ones():
    models = [
        evaluated_on(8, method="natural"),
        evaluated_on(4, place=1, method="free", label="Free-2"),
    ]
    lines = results_table(models).rows
    headings = [(line[0].text, line[0].note) for line in lines]
    assert headings == [
        ("Natural", "the first 8 images"),
        ("Natural", "the first 4 images"),
        ("Free-2", "the first 4 images"),
    ]
    assert [line[3].mark for line in lines] == ["", "best", "best"]


def test_models_evaluated_on_other_image_sets_are_not_compared():
    models = [
        dataclasses.replace(evaluated_on(8, method=method), images=images)
        for method, images in (("natural", 1), ("free", 2))
    ]
    assert strongest_attack(models) is None
    table = results_table(models)
    assert {cell.mark for line in table.rows for cell in line} == {""}


def test_autoattack_is_the_second_column_and_the_worst_case_the_last():
    rows = dict.fromkeys(("natural", "fgsm", "worst-case", "pgd-20", "autoattack"))
    models = [reported({name: row(100) for name in rows})]
    columns = results_table(models).columns
    assert columns == (
        "model",
        "natural",
        "autoattack",
        "fgsm",
        "pgd-20",
        "worst-case",
    )


def test_confusions_of_all_models_are_counted_on_the_common_images():
    predictions = np.array([1, 0, 0, 0, 0, 0, 2, 2])
    models = [evaluated_on(8, method="natural"), evaluated_on(4, method="free")]
    for model, examples in zip(models, (8, 4)):
        model.outcomes["prediction"] = predictions[:examples]
    for line in confused_table(models).rows:
        assert line[0].note == "4 images"
        assert (line[1].text, line[1].note) == ("0 → 1", "1 of 4")
        assert line[2].text == "–"


def test_attacks_with_another_seed_are_compared():
    runs = pair({"pgd-20": row(4, seed=0)}, {"pgd-20": row(90, seed=5)})
    assert results_table(runs).rows[1][1].mark == "best"


def test_a_single_run_marks_nothing():
    table = results_table([reported({"natural": row(190)})])
    assert table.rows[0][1].mark == ""
    assert "best" not in table.caption


def test_the_published_row_follows_the_first_run_of_its_kind():
    fields = {"data__name": "cifar10", "attack__epsilon": 8 / 255}
    fields |= {"attack__replays": 8, "updates": 64}
    runs = [
        reported({"natural": row(150), "pgd-20": row(80)}, label=label, **fields)
        for label in ("seed 0", "seed 1")
    ]
    lines = results_table(runs).rows
    assert [line[0].text for line in lines] == ["seed 0", "Free-8, published", "seed 1"]
    assert [cell.text for cell in lines[1][1:]] == ["86.0", "46.8"]
    assert "another recipe: wrn-32-10-madry, 80,000 updates" in lines[1][0].note
    assert cost_table(runs).rows[0][-1].text == "785"


def test_seeds_have_a_mean_and_a_deviation():
    runs = [
        reported({"pgd-20": row(correct)}, label=f"seed {correct}")
        for correct in (80, 90, 100)
    ]
    assert seeds_table(runs[:1]) is None
    (line,) = seeds_table(runs).rows
    assert (line[0].text, line[1].text) == ("Free-2, 3 runs", "45.0")
    assert line[1].note == "± 5.0"
    runs[0].rows["pgd-20"] = row(80, steps=40)
    assert seeds_table(runs) is None


def test_the_white_box_is_framed_and_a_stronger_transfer_is_a_red_flag():
    labels = [0] * 20
    right, wrong = [0] * 20, [1] * 20
    honest = measured(labels, {"Natural": right, "Free-2": wrong})
    masked = measured(labels, {"Natural": right, "Free-2": wrong})
    runs = pair({}, {})
    runs = [
        reported({}, method="natural", measured=masked),
        reported({}, method="free", measured=honest),
    ]
    table = transfer_table(runs)
    assert [[cell.text for cell in line[1:]] for line in table.rows] == [
        ["100.0", "0.0"],
        ["100.0", "0.0"],
    ]
    marks = [[cell.mark for cell in line[1:]] for line in table.rows]
    assert marks == [["own", "suspicious"], ["", "own"]]
    assert "RED FLAG: attacks made on Free-2 break Natural" in table.caption


def test_one_broken_image_more_is_reported_as_chance():
    labels = [0] * 20
    runs = [
        reported(
            {},
            method="natural",
            measured=measured(labels, {"Natural": [0] * 20, "Free-2": [1] + [0] * 19}),
        ),
        reported(
            {},
            method="free",
            measured=measured(labels, {"Natural": [0] * 20, "Free-2": [1] * 20}),
        ),
    ]
    table = transfer_table(runs)
    assert table.rows[0][2].mark == ""
    assert "up to chance (attacks made on Free-2 break Natural" in table.caption
    assert transfer_table(runs[:1]) is None


def test_classes_and_confusions_are_counted_by_hand():
    run = reported({}, measured=measured([0, 0, 1, 2], {}))
    table = classes_table([run])
    assert [cell.text for cell in table.rows[0]] == ["a", "100.0", "100.0"]
    assert [cell.text for cell in table.rows[1]] == ["b", "100.0", "0.0"]
    natural, attacked = confused_table([run]).rows
    assert [cell.text for cell in natural[1:]] == ["–"] * 5
    # The attacked images are classified as 2, 1, 0, 0.
    pairs = [(cell.text, cell.note) for cell in attacked[1:]]
    assert pairs[:4] == [
        ("a → b", "1 of 2"),
        ("a → c", "1 of 2"),
        ("b → a", "1 of 1"),
        ("c → a", "1 of 1"),
    ]


def test_a_worst_case_covers_the_images_that_all_its_attacks_have():
    worst = row(2, examples=4, attacks=["pgd-20", "square"])
    run = reported({"natural": row(5, examples=6), "worst-case": worst})
    run.outcomes.update(
        {
            "label": np.array([0, 0, 1, 1, 2, 2], np.int32),
            "natural": np.array([1, 1, 1, 1, 0, 1], bool),
            "pgd-20": np.array([1, 0, 1, 1, 0, 1], bool),
            "square": np.array([1, 1, 0, 1], bool),
        }
    )
    labels, natural, robust = robust_images(run, strongest_attack([run]))
    assert labels.tolist() == [0, 0, 1, 1]
    assert natural.tolist() == [True] * 4
    assert robust.tolist() == [True, False, False, True]
    cells = [cell.text for cell in classes_table([run]).rows[0]]
    assert cells == ["0", "100.0", "50.0"]


def test_red_flags_and_unchecked_models_have_their_own_lines():
    run = reported({})
    assert flags_table([run]).rows[0][2].text == "not checked"
    run.results["red_flags"] = {
        "flags": {"Square": {"suspicious": True, "text": "breaks 9"}}
    }
    (line,) = flags_table([run]).rows
    assert [cell.text for cell in line] == [
        "Free-2",
        "Square",
        "suspicious",
        "breaks 9",
    ]


def test_differences_list_only_fields_with_different_values():
    runs = pair({}, {})
    fields = [line[0].text for line in settings_table(runs, differing=True).rows]
    assert fields == ["method"]
    everything = settings_table(runs, differing=False).rows
    assert "optimizer.turns" in [line[0].text for line in everything]
    assert settings_table(runs[:1], differing=True) is None


def sandwich_record(epsilon, certified, broken, **changed):
    parts = {"certified": certified, "broken": broken}
    parts["open"] = 200 - certified - broken
    return (
        {
            "norm": "linf",
            "epsilon": epsilon,
            "examples": 200,
            "certificates": ["crown"],
            "attacks": ["pgd-20"],
            "suspicious": False,
            "text": "of 200 images",
        }
        | parts
        | changed
    )


def certified_model(**changed):
    model = reported({"natural": row(180, epsilon=0.0), "pgd-20": row(90)})
    model.results["sandwich@linf-0.05"] = sandwich_record(0.05, 120, 40)
    model.results["sandwich"] = sandwich_record(0.2, 10, 110, **changed)
    return model


def test_certified_open_and_broken_images_are_shown_by_epsilon():
    assert certified_table([reported({"natural": row(180), "pgd-20": row(90)})]) is None
    first, second = certified_table([certified_model()]).rows
    texts = [cell.text for cell in first]
    assert texts[1:] == ["linf 0.05", "60.0", "20.0", "20.0", "200", "none"]
    assert first[0].note == "crown; pgd-20"
    assert [cell.text for cell in second][2:5] == ["5.0", "40.0", "55.0"]
    shares = shares_by_epsilon(certified_model())
    assert list(shares) == [0.0, 0.05, 0.2]
    assert shares[0.0]["certified"] == 0.9
    (plot,) = sandwich_plots([certified_model()])
    assert "0.05: 60 certified, 20 open, 20 broken" in plot.svg
    assert plot.svg.startswith("<svg")


def test_a_contradiction_of_proof_and_attack_is_a_red_flag():
    told = "of 200 images; image 3 is certified by crown and broken by pgd-20"
    model = certified_model(suspicious=True, text=told)
    assert certified_table([model]).rows[1][-1].text == told
    lines = [[cell.text for cell in line] for line in flags_table([model]).rows]
    assert [model.label, "certified and broken", "suspicious", told] in lines
    assert f"{model.label} (certified and broken)" in verdict([model])[-1]
