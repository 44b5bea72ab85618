import logging
import shutil
import types

import jax
import numpy as np
import pytest

from freeadv_jax.errors import InputError, TrainingStoppedError
from freeadv_jax.recipes import digits
from freeadv_jax.runs.checkpoint import (
    Checkpoints,
    _reason,
    _show_unraisable,
    _stored,
)
from freeadv_jax.runs.folder import CHECKPOINTS, saved_updates
from freeadv_jax.training.state import TrainState


def state_at(step, value=1.0):
    return TrainState(
        step=np.array(step, np.int32),
        seed=np.array(7, np.uint32),
        params={"kernel": np.full((50, 40), value, np.float32)},
        collections={"batch_stats": {}},
        opt_state=(np.full(3, step, np.float32), np.array(step, np.int32)),
        delta=np.full((2, 4, 4, 1), 0.1, np.float32),
        average={},
    )


LIKE = jax.eval_shape(lambda: jax.tree.map(lambda x: x, state_at(0)))


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    yield checkpoints
    checkpoints.close()


def save(checkpoints, step, value=1.0, robust=None):
    checkpoints.save(state_at(step, value), progress={"at": step}, robust=robust)
    checkpoints.wait()


def test_restored_state_is_the_saved_one_to_the_bit(checkpoints):
    save(checkpoints, 3, value=0.1)
    state, progress = checkpoints.restore(LIKE)
    jax.tree.map(np.testing.assert_array_equal, state, state_at(3, 0.1))
    assert jax.tree.structure(state) == jax.tree.structure(state_at(3))
    assert progress == {"at": 3}


def test_the_running_alignment_is_stored_where_there_is_one(checkpoints):
    """Checkpoints without one have the arrays that they had before it existed."""
    stored = _stored(state_at(3))
    assert list(stored) == [
        "step",
        "seed",
        "params",
        "opt_state",
        "delta",
        "batch_stats",
    ]
    state = state_at(4).replace(alignment={"mean": np.float32(0.0)})
    checkpoints.save(state, progress={})
    checkpoints.wait()
    like = LIKE.replace(alignment={"mean": jax.ShapeDtypeStruct((), np.float32)})
    restored, _ = checkpoints.restore(like)
    assert restored.alignment == {"mean": 0.0}


def test_newest_two_and_the_best_by_robust_accuracy_are_kept(checkpoints):
    for step, robust in [(1, 0.2), (2, 0.5), (3, 0.4), (4, None), (5, None), (6, 0.1)]:
        save(checkpoints, step, robust=robust)
    assert checkpoints.steps == [2, 5, 6]
    assert checkpoints.best_step == 2
    assert checkpoints.restore(LIKE, "best")[1] == {"at": 2}
    assert checkpoints.restore(LIKE)[1] == {"at": 6}


def test_empty_folder_restores_nothing(checkpoints):
    assert checkpoints.restore(LIKE) is None


def test_the_best_of_equals_is_the_newest(checkpoints):
    for step in range(1, 6):
        save(checkpoints, step, robust={2: 0.4, 3: 0.4}.get(step, 0.3))
        assert checkpoints.best_step == (1, 2, 3, 3, 3)[step - 1]
    assert checkpoints.steps == [3, 4, 5]


def test_best_of_unmeasured_checkpoints_is_refused(checkpoints):
    save(checkpoints, 1)
    with pytest.raises(InputError, match="there is no best; allowed: last"):
        checkpoints.restore(LIKE, "best")


def biggest_file(folder):
    return max(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def flip_a_bit(folder):
    path = biggest_file(folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(folder):
    path = biggest_file(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_every_file(folder):
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")


def lose_the_arrays(folder):
    for path in list(folder.rglob("manifest.ocdbt")):
        path.unlink()


@pytest.mark.parametrize("robust", [None, 0.3])
@pytest.mark.parametrize(
    "damage", [flip_a_bit, cut_in_half, empty_every_file, lose_the_arrays]
)
def test_damaged_newest_is_skipped_with_a_warning_and_can_be_made_again(
    damage, robust, tmp_path, caplog
):
    rng = np.random.default_rng(0)
    first = Checkpoints(tmp_path, keep=3)
    for step in (1, 2):
        state = state_at(step)
        state.params["kernel"][:] = rng.normal(size=(50, 40))
        first.save(state, progress={"at": step}, robust=robust)
    first.close()
    damage(tmp_path / "2")
    again = Checkpoints(tmp_path, keep=3)
    with caplog.at_level(logging.WARNING):
        _, progress = again.restore(LIKE)
    assert progress == {"at": 1}
    ours, others = [], []
    for record in caplog.records:
        (ours if record.name.startswith("freeadv_jax") else others).append(record)
    assert not others  # The tracebacks of Orbax are details.
    skipped = ours[-1].getMessage()
    assert "checkpoint 2 is damaged and skipped" in skipped
    assert len(skipped) < len(str(tmp_path)) + 300
    save(again, 2, value=5.0)
    assert again.restore(LIKE)[0].params["kernel"][0, 0] == 5.0
    again.close()


@pytest.mark.parametrize(
    "content", ["", "{}", '{"rnbust": 0.4}', '{"robust": "x"}', "[0.4]"]
)
def test_a_damaged_accuracy_is_left_out_with_a_warning(content, tmp_path, caplog):
    first = Checkpoints(tmp_path, keep=3)
    for step, robust in [(1, 0.2), (2, 0.4), (3, 0.3)]:
        save(first, step, robust=robust)
    first.close()
    (tmp_path / "2" / "metrics" / "metrics").write_text(content)
    with caplog.at_level(logging.WARNING):
        again = Checkpoints(tmp_path, keep=3)
    assert "the accuracy of checkpoint 2 is damaged and left out" in caplog.text
    assert (again.steps, again.best_step) == ([1, 2, 3], 3)
    assert again.restore(LIKE)[1] == {"at": 3}
    for step in (4, 5, 6):
        save(again, step, robust=0.1)
    assert again.steps == [3, 4, 5, 6]
    again.close()


def test_a_damaged_accuracy_is_not_told_by_counting_the_updates(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path / CHECKPOINTS, keep=3)
    save(checkpoints, 2, robust=0.2)
    checkpoints.close()
    (tmp_path / CHECKPOINTS / "2" / "metrics" / "metrics").write_text("")
    with caplog.at_level(logging.WARNING):
        assert saved_updates(tmp_path, digits()) == 16
    assert not caplog.records


def test_a_checkpoint_that_cannot_be_written_is_reported_in_one_line(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    save(checkpoints, 1)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "checkpoints").touch()
    with pytest.raises(TrainingStoppedError, match="cannot be written: .") as told:
        save(checkpoints, 2)
    assert "\n" not in str(told.value)


def test_the_reason_is_the_end_of_the_first_fault_without_its_specification():
    first = ValueError(
        "OUT_OF_RANGE: Error reading: " + "x" * 300 + ": No space left [os_error='28']"
    )
    second = RuntimeError("a thread failed")
    second.__cause__ = first
    assert _reason(second) == "No space left"
    assert _reason(KeyError()) == "KeyError"


def test_what_orbax_logs_is_seen_as_details_alone(caplog):
    path = "/site-packages/orbax/checkpoint/threads.py"
    for level in (logging.INFO, logging.DEBUG):
        caplog.clear()
        with caplog.at_level(level, logger="freeadv_jax"):
            logger = logging.getLogger("absl")
            record = logger.makeRecord("absl", 40, path, 1, "a thread failed", (), None)
            logger.handle(record)
            logger.handle(logger.makeRecord("absl", 40, "a.py", 1, "mine", (), None))
        # A save that an earlier test made fail may still be told of.
        said = [
            (found.name, found.getMessage())
            for found in caplog.records
            if found.getMessage() in ("a thread failed", "mine")
        ]
        details = [("freeadv_jax.runs.checkpoint", "a thread failed")]
        assert said == details * (level == logging.DEBUG) + [("absl", "mine")]


@pytest.mark.parametrize(
    ("message", "by", "shown"),
    [
        ("Event loop is closed", None, False),
        ("Event loop is closed", "a task of the user", True),
        ("mine", None, True),
    ],
)
def test_reads_that_end_after_their_event_loop_are_details(message, by, shown, caplog):
    others = []
    fault = types.SimpleNamespace(exc_value=RuntimeError(message), object=by)
    with caplog.at_level(logging.DEBUG, logger="freeadv_jax"):
        _show_unraisable(fault, otherwise=others.append)
    assert others == [fault] * shown
    assert len(caplog.records) == (not shown)


def test_folder_whose_every_checkpoint_is_damaged_is_refused(tmp_path, checkpoints):
    save(checkpoints, 1)
    cut_in_half(tmp_path / "1")
    with pytest.raises(InputError, match=r"none of the checkpoints \[1\] can be read"):
        checkpoints.restore(LIKE)


def test_half_written_checkpoint_of_a_killed_run_is_not_seen(tmp_path, checkpoints):
    save(checkpoints, 1)
    (tmp_path / "2.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    again = Checkpoints(tmp_path, keep=2)
    assert again.steps == [1]
    again.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_state_that_is_not_finite_is_not_saved(bad, checkpoints):
    save(checkpoints, 1)
    with pytest.raises(TrainingStoppedError, match=r"kernel.* is not finite.* step 2"):
        checkpoints.save(state_at(2, bad), progress={})
    assert checkpoints.steps == [1]


def test_saving_asks_nobody_whether_a_sigterm_came(checkpoints, monkeypatch):
    """The manager asks only `processes.preemption`, with its own numbers of steps."""
    asked = []
    monkeypatch.setattr(
        "jax.experimental.multihost_utils.reached_preemption_sync_point",
        lambda step: bool(asked.append(step)),
    )
    save(checkpoints, 3)
    save(checkpoints, 4)
    assert checkpoints.steps == [3, 4]
    assert asked == []
