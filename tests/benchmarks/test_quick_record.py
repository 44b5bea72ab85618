"""The record of benchmarks.quick holds what the docs claim of `quick`."""

import json
import pathlib

import pytest

from benchmarks.quick import RESIDUAL, ROWS, with_audit

RESULTS = pathlib.Path(__file__).parents[2] / "benchmarks" / "results"
FOUND = json.loads((RESULTS / "quick.json").read_text())["results"]["rows"]
SPEED = json.loads((RESULTS / "attack_speed_quick.json").read_text())["results"]


def test_the_networks_are_of_eight_kinds_and_their_threats_of_four():
    assert len(FOUND) >= 8 and set(FOUND) <= {*ROWS, RESIDUAL}
    threats = {(row["norm"], round(255 * row["epsilon"], 3)) for row in FOUND.values()}
    assert {("linf", 2.0), ("linf", 4.0), ("linf", 8.0), ("l2", 127.5)} <= threats


@pytest.mark.parametrize("name", FOUND)
def test_quick_and_standard_differ_on_one_image_of_a_thousand_at_most(name):
    row = FOUND[name]
    assert row["images"] == 1000
    assert 0 <= row["quick"]["robust"] - row["standard"]["robust"] <= 1
    assert row["different"] <= 1


@pytest.mark.parametrize("name", FOUND)
def test_quick_makes_a_fifth_of_the_passes_of_standard(name):
    row = FOUND[name]
    for kind, passes in with_audit(row).items():
        assert 0 < row["quick"][kind] < passes <= row["standard"][kind] / 5


@pytest.mark.parametrize("name", FOUND)
def test_each_network_has_learned_and_some_images_survive(name):
    row = FOUND[name]
    assert row["standard"]["robust"] >= 50


def test_quick_is_four_times_as_fast_as_the_authors_code_on_the_same_images():
    row = SPEED["autoattack-quick"]
    assert (SPEED["network"], SPEED["examples"]) == ("preact-resnet-18", 256)
    assert row["seconds"]["reference"] / row["seconds"]["ours"] >= 4
    assert row["standing"]["ours"] == row["standing"]["reference"] > 30
    (turn,) = row["turns"]["ours"]
    assert {"audit apgd-t", "audit fab-t", "audit square"} <= turn["seconds"].keys()
