"""benchmarks.collapse: what counts as a collapse, as foreseen and as false."""

import pathlib

import pytest

from benchmarks import collapse
from benchmarks.collapse import configured, cured, folder, history, judged, plan, totals
from freeadv_jax.config import validate
from freeadv_jax.files import read_json


def ran(*accuracies, alarm=None):
    """Return a history with a validation every 10 updates."""
    updates = [10 * number for number in range(1, len(accuracies) + 1)]
    return {"updates": updates, "pgd-10": list(accuracies), "alarm": alarm}


@pytest.mark.parametrize(
    ("accuracies", "alarm", "expected"),
    [
        # It fell in the fourth pass, after update 30.
        ((0.2, 0.3, 0.31, 0.15), 30, (40, 30, True)),
        ((0.2, 0.3, 0.31, 0.15), 31, (40, 31, False)),
        ((0.2, 0.3, 0.31, 0.15), None, (40, None, False)),
        ((0.2, 0.3, 0.31, 0.16), None, (None, None, False)),
        ((0.2, 0.3, 0.31, 0.16), 20, (None, 20, False)),
        # From so little it may fall by chance.
        ((0.14, 0.05, 0.2, 0.25), None, (None, None, False)),
    ],
)
def test_a_collapse_is_foreseen_by_an_alarm_before_its_pass(
    accuracies, alarm, expected
):
    found = judged(ran(*accuracies, alarm=alarm))
    assert tuple(found.values()) == expected


def test_an_alarm_is_false_in_a_run_that_stood():
    fell, stood = (0.2, 0.3, 0.1), (0.2, 0.3, 0.3)
    histories = [
        ran(*fell, alarm=20),
        ran(*fell, alarm=30),
        ran(*fell),
        ran(*stood, alarm=20),
        ran(*stood),
    ]
    assert totals([judged(each) for each in histories]) == {
        "collapses": 3,
        "foreseen": 1,
        "runs that stood": 2,
        "false alarms": 1,
    }


def test_a_history_is_read_from_the_lines_of_a_run():
    lines = [
        {"kind": "train", "updates": 5, "alignment": 0.5, "loss": 1.0},
        {"kind": "alarm", "updates": 7, "alignment": 0.1, "highest": 0.5},
        {"kind": "validation", "updates": 10, "natural": 0.9, "pgd-10": 0.4},
    ]
    assert history(lines) == {
        "updates": [10],
        "pgd-10": [0.4],
        "alignment": {"updates": [5], "values": [0.5]},
        "alarm": 7,
    }


def test_every_planned_run_is_valid_and_has_a_folder_of_its_own():
    settings = list(plan(collapse.SETS, 2, 0.3))
    for *which, misalignment in settings:
        validate(configured(*which, misalignment=misalignment, data="data"))
    # Two methods with and without the cure, and 7-PGD, in three balls.
    assert len({folder(*each) for each in settings}) == len(settings) == 2 * 2 * 3 * 5
    config = configured("cifar10", "fgsm-rs", 16 / 255, 1, misalignment=0.3)
    assert config.attack.step_size == 2 * config.attack.epsilon == 32 / 255
    assert (config.seed, config.attack.misalignment) == (1, 0.3)
    assert folder("cifar10", "fgsm-rs", 16 / 255, 1, 0.3) == (
        "cifar10-fgsm-rs-16-misalignment-0.3-1"
    )


def test_the_cure_is_compared_with_7_pgd_where_the_plain_run_collapsed():
    settings = list(plan(["digits"], 1, 0.3))
    rows = {
        folder(*each): {
            "collapse": 40 if each[1:3] == ("free", 0.2) and not each[-1] else None,
            "accuracy": {"apgd-t": 0.5 if each[1] == "pgd" else 0.45},
        }
        for each in settings
    }
    assert cured(rows, settings) == {
        "digits-free-51-misalignment-0.3-0": {
            "robust": 0.45,
            "of 7-PGD": 0.5,
            "collapse": None,
        }
    }


def test_the_record_grows_with_each_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(
        collapse.SETS, "digits", (*collapse.SETS["digits"][:1], (0.2,), {})
    )
    finished = []

    def trained(config, workdir):
        if finished:
            assert len(read_json(out)["results"]["runs"]) == len(finished)
        finished.append(pathlib.Path(workdir).name)
        cheap = config.method != "pgd" and not config.attack.misalignment
        found = ran(0.3, 0.3, 0.1 if cheap else 0.3, alarm=20 if cheap else None)
        accuracy = {"natural": 0.9, "apgd-t": 0.0 if cheap else 0.25}
        return {"history": found, **judged(found), "accuracy": accuracy}

    monkeypatch.setattr(collapse, "trained", trained)
    monkeypatch.setattr(
        collapse, "cost", lambda rounds: {"small-cnn, free-2": {"ratio": 1.004}}
    )
    out = tmp_path / "collapse.json"
    collapse.main(
        ["collapse", "--data=none", "--sets", "digits", "--seeds=1", f"--out={out}"]
    )
    assert len(finished) == 5
    shown = capsys.readouterr().out.splitlines()
    assert "2 of 2 collapses foreseen, 0 false alarms in 0 other runs" in shown
    assert "  together 100 % of 7-PGD's robust accuracy" in shown
    assert shown[-1].endswith("the alignment adds +0.40 %")
