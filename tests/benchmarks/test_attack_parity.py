"""The records of benchmarks.attack_parity: our attacks are as strong as other people's."""

import json
import pathlib

import pytest

RESULTS = pathlib.Path(__file__).parents[2] / "benchmarks" / "results"
ROWS = [
    pytest.param(row, id=f"{setting}-{attack}")
    for name in ("attack_parity", "attack_parity_digits")
    for setting, result in json.loads((RESULTS / f"{name}.json").read_text())[
        "results"
    ].items()
    for attack, row in result["attacks"].items()
    # An exhaustive search over places bounds what an attack with few of them can miss.
    if attack != "all places"
]


@pytest.mark.parametrize("row", ROWS)
def test_no_attack_is_half_a_point_weaker_than_its_reference(row):
    assert 0 <= row["ours"] <= row["reference"] + 0.5
