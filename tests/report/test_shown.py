"""What a report takes from the folder of a run."""

import dataclasses

import pytest
from fake_runs import row, shown

from freeadv_jax.files import write_json
from freeadv_jax.report.shown import read_shown
from freeadv_jax.report.tables import flags_table


@pytest.mark.parametrize(
    ("norm", "epsilon", "answer"),
    [
        ("linf", 0.2, "suspicious"),
        ("linf", 0.1, "not looked for"),
        ("l2", 0.2, "not looked for"),
    ],
)
def test_red_flags_of_another_ball_than_the_training_s_are_left_out(
    tmp_path, norm, epsilon, answer
):
    subject = shown({}).subject
    run = dataclasses.replace(subject.run, workdir=tmp_path)
    flags = {"Square": {"suspicious": True, "text": "breaks 9"}}
    write_json(
        tmp_path / "results.json",
        {
            "evaluation": {"natural": row(190), "pgd-20": row(90)},
            "red_flags": {"norm": norm, "epsilon": epsilon, "flags": flags},
        },
    )
    (read,) = read_shown([dataclasses.replace(subject, run=run)], None)
    assert list(read.rows) == ["natural", "pgd-20"]
    assert flags_table([read]).rows[0][2].text == answer
