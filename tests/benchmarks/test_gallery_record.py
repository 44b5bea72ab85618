"""The records of the gallery say what the slides say, and no flag is a false alarm."""

import json
import pathlib

import pytest

from freeadv_jax.gallery.defences import DEFENCES

RESULTS = pathlib.Path(__file__).parents[2] / "benchmarks" / "results"
RECORDS = sorted(RESULTS.glob("gallery*.json"))
ROWS = [
    pytest.param(row, id=f"{path.stem}-{row['defence']}")
    for path in RECORDS
    for row in json.loads(path.read_text())["rows"]
]


def test_there_is_a_record():
    assert RECORDS


@pytest.mark.parametrize("row", ROWS)
def test_masking_defences_are_flagged_and_honest_ones_are_not(row):
    assert row["masks"] == DEFENCES[row["defence"]].masks
    assert bool(row["flags"]) == row["masks"]


@pytest.mark.parametrize("row", ROWS)
def test_masking_defences_fall_as_far_as_the_slides_print(row):
    assert 0 <= row["adaptive"] <= row["naive"] <= row["natural"] <= 1
    if row["masks"]:
        assert abs(row["adaptive"] - (row["published"] or 0)) <= 0.05


@pytest.mark.parametrize("row", ROWS)
def test_no_attack_goes_below_a_certificate(row):
    assert 0 <= row.get("certified", 0) <= row["adaptive"]


@pytest.mark.parametrize("row", ROWS)
def test_a_weak_defence_falls_to_plain_pgd(row):
    if row["defence"] in ("stability", "input-gradients", "cascade", "fgsm"):
        assert row["naive"] - row["adaptive"] < 0.15
    if row["defence"] in ("stability", "input-gradients", "fgsm"):
        assert row["naive"] < row["natural"] / 2
    # It is attacked in a smaller ball, as in the slides.
    if row["defence"] == "cascade":
        assert row["adaptive"] <= min(row["published"] + 0.05, row["natural"] / 2)
