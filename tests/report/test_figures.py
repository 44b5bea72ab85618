"""The training curves of a report: the alignment of gradients, and its alarm."""

import pytest
from fake_models import reported

from freeadv_jax.report.figures import training_curves

ALARM = {"kind": "alarm", "updates": 8, "alignment": 0.3, "highest": 0.8}


def lines(*alignments):
    return [
        {
            "kind": "train",
            "updates": 4 * number,
            "loss": 1.0,
            "alignment": value,
            "seconds": 30.0 * number,
        }
        for number, value in enumerate(alignments, start=1)
    ]


@pytest.mark.parametrize("against", ["updates", "minutes"])
def test_the_alignment_has_a_curve_and_its_alarm_a_line(against):
    quiet, loud = (
        {plot.title: plot for plot in training_curves([reported({}, metrics=metrics)])}
        for metrics in (lines(0.8, 0.3, 0.25), [*lines(0.8, 0.3, 0.25), ALARM])
    )
    title = f"Alignment of gradients against {against}"
    assert "At the end: Free-2 0.25." in quiet[title].svg
    assert loud[title].svg.count("stroke-dasharray") == 1
    assert quiet[title].svg.count("stroke-dasharray") == 0


def test_a_method_without_alignment_has_no_such_curve():
    metrics = [{"kind": "train", "updates": 8, "loss": 1.0, "seconds": 60.0}]
    titles = [plot.title for plot in training_curves([reported({}, metrics=metrics)])]
    assert titles == ["Training loss against updates", "Training loss against minutes"]
