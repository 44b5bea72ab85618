import math

import pytest

from freeadv_jax.errors import TrainingStoppedError
from freeadv_jax.metrics import MetricsLog
from freeadv_jax.watch import Watch


@pytest.fixture
def watch(tmp_path):
    return make_watch(tmp_path)


def make_watch(folder, saved=None, first_step=0):
    return Watch(
        MetricsLog(folder, last_step=first_step),
        replays=8,
        updates=800,
        logs_at=lambda step: step % 2 == 0,
        learning_rate=lambda update: 0.1 if update < 16 else 0.01,
        saved=saved or {},
    )


def lines(watch, kind):
    return [
        {name: value for name, value in line.items() if name != "seconds"}
        for line in watch._log.of_kind(kind)
    ]


def test_log_lines_hold_the_means_since_the_line_before(watch):
    for step, loss in enumerate([1.0, 3.0, 5.0, 6.0], start=1):
        watch.step(step, {"loss": loss, "accuracy": 0.5})
    common = {"kind": "train", "accuracy": 0.5}
    assert lines(watch, "train") == [
        {"step": 2, "updates": 16, "loss": 2.0, "learning_rate": 0.1} | common,
        {"step": 4, "updates": 32, "loss": 5.5, "learning_rate": 0.01} | common,
    ]


def test_watch_of_a_resumed_run_writes_what_it_would_have_written(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    losses = [0.1, 0.7, 0.4, 0.35]
    uninterrupted = make_watch(whole)
    killed = make_watch(parts)
    for step, loss in enumerate(losses, start=1):
        uninterrupted.step(step, {"loss": loss})
        if step <= 3:
            killed.step(step, {"loss": loss})
    progress = killed.progress()
    killed.step(4, {"loss": 100.0})  # What is still being saved must not move.
    resumed = make_watch(parts, saved=progress, first_step=3)
    resumed.step(4, {"loss": losses[3]})
    assert lines(resumed, "train") == lines(uninterrupted, "train")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_not_finite_stops_with_the_step_named(bad, watch):
    watch.step(1, {"loss": 1.0})
    with pytest.raises(TrainingStoppedError, match=r"update 16 \(step 2\)"):
        watch.step(2, {"loss": bad})


def validations(watch, losses, robust):
    for step, (loss, accuracy) in enumerate(zip(losses, robust, strict=True), start=1):
        watch.step(step, {"loss": loss})
        watch.validation(step, **{"natural": 0.9, "pgd-10": accuracy})
        yield watch.collapse()


def test_collapse_is_a_fall_by_more_than_a_fifth_while_the_loss_falls(watch, caplog):
    *before, found = validations(watch, [2.0, 1.5, 1.2, 0.9], [0.3, 0.45, 0.3, 0.2])
    assert before == [None, None, None]
    assert "CATASTROPHIC OVERFITTING at update 32" in found
    assert "from 0.4500 (update 16) to 0.2000" in found
    assert found in caplog.text


def test_fall_with_a_rising_loss_is_no_collapse(watch):
    assert list(validations(watch, [1.0, 1.1], [0.5, 0.1])) == [None, None]
