"""The models of a report: their folders, and comparisons on common images."""

import dataclasses

import pytest
from fake_models import reported, row

from freeadv_jax.files import write_json
from freeadv_jax.report.reported import read_reported
from freeadv_jax.report.run_tables import flags_table


@pytest.mark.parametrize(
    ("norm", "epsilon", "answer"),
    [
        ("linf", 0.2, "suspicious"),
        ("linf", 0.1, "not checked"),
        ("l2", 0.2, "not checked"),
    ],
)
def test_red_flags_of_another_ball_than_the_training_ball_are_dropped(
    tmp_path, norm, epsilon, answer
):
    model = reported({}).model
    model = dataclasses.replace(model, folder=tmp_path, results_folder=tmp_path)
    flags = {"Square": {"suspicious": True, "text": "breaks 9"}}
    write_json(
        tmp_path / "results.json",
        {
            "evaluation": {"natural": row(190), "pgd-20": row(90)},
            "red_flags": {"norm": norm, "epsilon": epsilon, "flags": flags},
        },
    )
    (read,) = read_reported([model], None)
    assert list(read.rows) == ["natural", "pgd-20"]
    assert flags_table([read]).rows[0][2].text == answer
