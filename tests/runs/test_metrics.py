import json

import pytest

from freeadv_jax.errors import InputError
from freeadv_jax.progress import Progress, duration
from freeadv_jax.runs.metrics import MetricsLog, Window


def test_lines_are_json_objects_and_in_the_file_at_once(tmp_path):
    log = MetricsLog(tmp_path, last_step=0)
    log.write("train", step=1, loss=0.5)
    log.write("validation", step=2, natural=0.75)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"kind": "train", "step": 1, "loss": 0.5},
        {"kind": "validation", "step": 2, "natural": 0.75},
    ]
    assert log.of_kind("validation") == [json.loads(lines[1])]
    log.close()


def test_lines_that_a_killed_run_wrote_after_its_checkpoint_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "train", "step": 2}\n{"ki')
    log = MetricsLog(tmp_path, last_step=1)
    log.write("train", step=2)
    log.close()
    assert path.read_text() == (
        '{"kind": "train", "step": 1}\n{"kind": "train", "step": 2}\n'
    )


@pytest.mark.parametrize(
    "damage",
    [b"\xff\n", b"3\n", b"{}\n", b'{"step": 2}\n', b'{"kind": "train", "step": "2"}\n'],
)
def test_a_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "train", "step": 1}\n' + damage)
    with pytest.raises(InputError, match="metrics.jsonl, line 2"):
        MetricsLog(tmp_path, last_step=1)


def test_window_gives_means_and_continues_from_its_saved_state():
    window = Window()
    window.add({"loss": 1.0})
    resumed = Window(**json.loads(json.dumps(window.as_dict())))
    resumed.add({"loss": 4.0})
    assert resumed.take() == {"loss": 2.5}
    resumed.add({"loss": 7.0})
    assert resumed.take() == {"loss": 7.0}


def test_progress_shows_share_rate_and_time_left(monkeypatch, capsys):
    clock = iter([0.0, 60.0, 60.5, 69.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    progress = Progress("training", total=300, unit="updates", write=print)
    progress.show(110, loss=1.5)  # The first minute is compilation and does not count.
    progress.show(115, loss=1.0)  # This call comes too soon after the last line.
    progress.show(200, loss=0.25)
    assert capsys.readouterr().out == (
        "training 110/300 updates (37%)  loss 1.5000\n"
        "training 200/300 updates (67%)  loss 0.2500  10 updates/s  10 s left\n"
    )


def test_work_under_way_moves_the_share_and_rounds_no_attempt_up(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 4.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    progress = Progress("square", total=4, unit="attempts", write=print)
    progress.show(0.2)
    progress.show(0.8)
    assert capsys.readouterr().out == (
        "square 0/4 attempts (5%)\n"
        "square 0/4 attempts (20%)  0.2 attempts/s  16 s left\n"
    )


def test_the_time_left_follows_the_work_where_units_take_different_times(
    monkeypatch, capsys
):
    """Ninety of a hundred images break in two steps, the others take a hundred each."""
    clock = iter([0.0, 0.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    progress = Progress("pgd-100", total=100, unit="attempts", write=print)
    progress.show(0, work=(100, 9_900))
    progress.show(90, work=(300, 980))
    assert capsys.readouterr().out == (
        "pgd-100 90/100 attempts (90%)  9 attempts/s  49 s left\n"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119.4, "119 s"), (119.6, "2:00"), (3675.2, "1:01:15")],
)
def test_durations_are_seconds_at_first_and_then_read_as_clocks_do(seconds, text):
    assert duration(seconds) == text


@pytest.mark.tensorflow
def test_tensorboard_gets_the_same_figures_where_tensorflow_is(tmp_path):
    pytest.importorskip("tensorflow")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    log = MetricsLog(tmp_path, last_step=0)
    log.write("train", step=3, loss=0.5)
    log.close()
    events = EventAccumulator(
        str(tmp_path / "tensorboard"), size_guidance={"tensors": 0}
    )
    events.Reload()
    (event,) = events.Tensors("train/loss")
    assert event.step == 3
    assert make_ndarray(event.tensor_proto) == 0.5
