"""The tables of a report: their figures, their marks, and what is not comparable."""

import numpy as np
import pytest
from fake_runs import measured, row, shown

from freeadv_jax.report.detail_tables import (
    classes_table,
    confused_table,
    settings_table,
    standing_by_class,
    transfer_table,
)
from freeadv_jax.report.tables import (
    cost_table,
    flags_table,
    results_table,
    seeds_table,
)


def pair(natural, free):
    return [
        shown(natural, method="natural"),
        shown(free, place=1, method="free"),
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


@pytest.mark.parametrize(
    "other", [row(90, examples=100), row(90, steps=40), row(90, last_iterate=True)]
)
def test_attacks_made_otherwise_are_not_compared(other):
    runs = pair(
        {"natural": row(190), "pgd-20": row(4)}, {"natural": row(180), "pgd-20": other}
    )
    table = results_table(runs)
    assert [line[2].mark for line in table.rows] == ["", ""]
    assert "Nothing is marked for pgd-20" in table.caption


def test_attack_another_seed_made_is_compared():
    runs = pair({"pgd-20": row(4, seed=0)}, {"pgd-20": row(90, seed=5)})
    assert results_table(runs).rows[1][1].mark == "best"


def test_single_run_marks_nothing():
    table = results_table([shown({"natural": row(190)})])
    assert table.rows[0][1].mark == ""
    assert "best" not in table.caption


def test_published_row_stands_below_the_runs_of_its_kind():
    fields = {"data__name": "cifar10", "attack__epsilon": 8 / 255}
    fields |= {"attack__replays": 8, "updates": 64}
    runs = [
        shown({"natural": row(150), "pgd-20": row(80)}, label=label, **fields)
        for label in ("seed 0", "seed 1")
    ]
    lines = results_table(runs).rows
    assert [line[0].text for line in lines] == ["seed 0", "Free-8, published", "seed 1"]
    assert [cell.text for cell in lines[1][1:]] == ["86.0", "46.8"]
    assert "another recipe: wrn-32-10-madry, 80,000 updates" in lines[1][0].note
    assert cost_table(runs).rows[0][-1].text == "785"


def test_seeds_have_mean_and_deviation():
    runs = [
        shown({"pgd-20": row(correct)}, label=f"seed {correct}")
        for correct in (80, 90, 100)
    ]
    assert seeds_table(runs[:1]) is None
    (line,) = seeds_table(runs).rows
    assert (line[0].text, line[1].text) == ("Free-2, 3 runs", "45.0")
    assert line[1].note == "± 5.0"
    runs[0].rows["pgd-20"] = row(80, steps=40)
    assert seeds_table(runs) is None


def test_white_box_is_framed_and_a_stronger_transfer_is_a_red_flag():
    labels = [0] * 20
    right, wrong = [0] * 20, [1] * 20
    honest = measured(labels, {"Natural": right, "Free-2": wrong})
    masked = measured(labels, {"Natural": right, "Free-2": wrong})
    runs = pair({}, {})
    runs = [
        shown({}, method="natural", measured=masked),
        shown({}, method="free", measured=honest),
    ]
    table = transfer_table(runs)
    assert [[cell.text for cell in line[1:]] for line in table.rows] == [
        ["100.0", "0.0"],
        ["100.0", "0.0"],
    ]
    marks = [[cell.mark for cell in line[1:]] for line in table.rows]
    assert marks == [["own", "suspicious"], ["", "own"]]
    assert "RED FLAG: attacks made on Free-2 break Natural" in table.caption


def test_one_image_more_is_chance_and_is_said():
    labels = [0] * 20
    runs = [
        shown(
            {},
            method="natural",
            measured=measured(labels, {"Natural": [0] * 20, "Free-2": [1] + [0] * 19}),
        ),
        shown(
            {},
            method="free",
            measured=measured(labels, {"Natural": [0] * 20, "Free-2": [1] * 20}),
        ),
    ]
    table = transfer_table(runs)
    assert table.rows[0][2].mark == ""
    assert "up to chance (attacks made on Free-2 break Natural" in table.caption
    assert transfer_table(runs[:1]) is None


def test_classes_and_confusions_are_counted():
    run = shown({}, measured=measured([0, 0, 1, 2], {}))
    table = classes_table([run])
    assert [cell.text for cell in table.rows[0]] == ["a", "100.0", "100.0"]
    assert [cell.text for cell in table.rows[1]] == ["b", "100.0", "0.0"]
    natural, attacked = confused_table([run]).rows
    assert [cell.text for cell in natural[1:]] == ["–"] * 5
    # The logits under attack are those of 2, 1, 0, 0.
    said = [(cell.text, cell.note) for cell in attacked[1:]]
    assert said[:4] == [
        ("a → b", "1 of 2"),
        ("a → c", "1 of 2"),
        ("b → a", "1 of 1"),
        ("c → a", "1 of 1"),
    ]


def test_worst_case_of_more_and_fewer_images_is_of_the_fewer():
    worst = row(2, examples=4, attacks=["pgd-20", "square"])
    run = shown({"natural": row(5, examples=6), "worst-case": worst})
    run.outcomes.update(
        {
            "label": np.array([0, 0, 1, 1, 2, 2], np.int32),
            "natural": np.array([1, 1, 1, 1, 0, 1], bool),
            "pgd-20": np.array([1, 0, 1, 1, 0, 1], bool),
            "square": np.array([1, 1, 0, 1], bool),
        }
    )
    labels, natural, robust = standing_by_class(run, "worst-case")
    assert labels.tolist() == [0, 0, 1, 1]
    assert natural.tolist() == [True] * 4
    assert robust.tolist() == [True, False, False, True]
    cells = [cell.text for cell in classes_table([run]).rows[0]]
    assert cells == ["0", "100.0", "50.0"]


def test_flags_are_told_and_their_absence_too():
    run = shown({})
    assert flags_table([run]).rows[0][2].text == "not looked for"
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


def test_settings_that_differ_are_those():
    runs = pair({}, {})
    fields = [line[0].text for line in settings_table(runs, differing=True).rows]
    assert fields == ["method"]
    everything = settings_table(runs, differing=False).rows
    assert "optimizer.turns" in [line[0].text for line in everything]
    assert settings_table(runs[:1], differing=True) is None
