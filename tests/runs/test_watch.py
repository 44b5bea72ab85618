import json
import math

import numpy as np
import pytest

from freeadv_jax.errors import TrainingStoppedError
from freeadv_jax.runs.metrics import MetricsLog
from freeadv_jax.runs.watch import Watch


@pytest.fixture
def watch(tmp_path):
    return make_watch(tmp_path)


def make_watch(folder, saved=None, first_step=0, **options):
    return Watch(
        MetricsLog(folder, last_step=first_step),
        replays=8,
        updates=800,
        logs_at=lambda step: step % 2 == 0,
        learning_rate=lambda update: 0.1 if update < 16 else 0.01,
        saved=saved or {},
        write=print,
        **options,
    )


def step_of(watch, step, **metrics):
    watch.steps(
        range(step, step + 1),
        {name: np.array([value]) for name, value in metrics.items()},
    )


def lines(watch, kind):
    return [
        {name: value for name, value in line.items() if name != "seconds"}
        for line in watch._log.of_kind(kind)
    ]


def test_log_lines_hold_the_means_since_the_line_before(watch):
    for step, loss in enumerate([1.0, 3.0, 5.0, 6.0], start=1):
        step_of(watch, step, loss=loss, accuracy=0.5)
    common = {"kind": "train", "accuracy": 0.5}
    assert lines(watch, "train") == [
        {"step": 2, "updates": 16, "loss": 2.0, "learning_rate": 0.1} | common,
        {"step": 4, "updates": 32, "loss": 5.5, "learning_rate": 0.01} | common,
    ]


@pytest.mark.parametrize(
    ("adversarial", "title"),
    [(True, "accuracy on attacked images"), (False, "accuracy")],
)
def test_lines_say_which_accuracy_is_on_attacked_images(
    adversarial, title, tmp_path, capsys
):
    watch = make_watch(tmp_path, adversarial=adversarial)
    step_of(watch, 100, loss=1.5, accuracy=0.125)
    assert f"(100%)  loss 1.5000  {title} 12.50%" in capsys.readouterr().out


def test_several_steps_at_once_are_logged_as_one_by_one(tmp_path):
    together, apart = tmp_path / "together", tmp_path / "apart"
    for folder in (together, apart):
        folder.mkdir()
    losses = np.array([1.0, 3.0, 5.0, 6.0, 7.0])
    watches = make_watch(together), make_watch(apart)
    # The last entry is after the last step that was taken.
    watches[0].steps(range(1, 5), {"loss": losses})
    for step, loss in enumerate(losses[:4], start=1):
        step_of(watches[1], step, loss=loss)
    assert lines(watches[0], "train") == lines(watches[1], "train")
    assert [line["step"] for line in lines(watches[0], "train")] == [2, 4]


def test_watch_of_a_resumed_run_writes_what_it_would_have_written(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    losses = [0.1, 0.7, 0.4, 0.35]
    uninterrupted = make_watch(whole)
    killed = make_watch(parts)
    for step, loss in enumerate(losses, start=1):
        step_of(uninterrupted, step, loss=loss)
        if step <= 3:
            step_of(killed, step, loss=loss)
    progress = killed.progress()
    step_of(
        killed, 4, loss=100.0
    )  # The progress must not change while it is being saved.
    resumed = make_watch(parts, saved=progress, first_step=3)
    step_of(resumed, 4, loss=losses[3])
    assert lines(resumed, "train") == lines(uninterrupted, "train")


def aligned_steps(watch, values, *, first=1):
    for step, value in enumerate(values, start=first):
        step_of(watch, step, loss=1.0, alignment=value)


def test_the_alarm_is_one_line_where_the_alignment_has_halved(tmp_path, caplog):
    watch = make_watch(tmp_path, alarm_period=2)
    aligned_steps(watch, [0.9, 0.7, 0.5, 0.4, 0.2, 0.4, 0.0, 0.0])
    (alarm,) = lines(watch, "alarm")
    assert (alarm["step"], alarm["updates"]) == (6, 48)
    np.testing.assert_allclose((alarm["highest"], alarm["alignment"]), (0.8, 0.3))
    assert watch.alarm.raised["updates"] == 48
    assert caplog.text.count("COLLAPSE AHEAD at update 48") == 1
    assert "fell from 0.80 to 0.30" in caplog.text


def test_an_alignment_that_stays_above_half_of_its_height_raises_no_alarm(watch):
    aligned_steps(watch, [0.9, 0.5, 0.46, 0.99])
    assert lines(watch, "alarm") == []
    assert watch.alarm.raised is None


@pytest.mark.parametrize("killed_after", range(1, 8))
def test_a_killed_run_raises_the_same_alarm(killed_after, tmp_path):
    values = [0.9, 0.8, 0.7, 0.6, 0.2, 0.1, 0.0, 0.0]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    uninterrupted = make_watch(whole, alarm_period=3)
    aligned_steps(uninterrupted, values)
    killed = make_watch(cut, alarm_period=3)
    aligned_steps(killed, values[:killed_after])
    saved = json.loads(json.dumps(killed.progress()))
    resumed = make_watch(cut, saved, killed_after, alarm_period=3)
    aligned_steps(resumed, values[killed_after:], first=killed_after + 1)
    assert lines(resumed, "alarm") == lines(uninterrupted, "alarm") != []
    assert resumed.alarm.raised == uninterrupted.alarm.raised


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_with_the_step_named(bad, watch):
    step_of(watch, 1, loss=1.0)
    with pytest.raises(TrainingStoppedError, match=r"update 16 \(step 2\)"):
        step_of(watch, 2, loss=bad)


def validations(watch, losses, robust):
    for step, (loss, accuracy) in enumerate(zip(losses, robust, strict=True), start=1):
        step_of(watch, step, loss=loss)
        watch.validation(step, **{"natural": 0.9, "pgd-10": accuracy})
        yield watch.collapse()


def test_collapse_is_a_fall_by_more_than_a_fifth_while_the_loss_falls(watch, caplog):
    *before, found = validations(watch, [2.0, 1.5, 1.2, 0.9], [0.3, 0.45, 0.3, 0.2])
    assert before == [None, None, None]
    assert "CATASTROPHIC OVERFITTING at update 32" in found
    assert "from 45.00% (update 16) to 20.00%" in found
    assert found in caplog.text


def test_fall_with_a_rising_loss_is_no_collapse(watch):
    assert list(validations(watch, [1.0, 1.1], [0.5, 0.1])) == [None, None]
