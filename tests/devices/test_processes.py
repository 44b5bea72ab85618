"""Two processes with four simulated devices each, connected over loopback."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from tiny_run import ROOT, environment, run_main
from two_processes import (
    FIELDS,
    assert_same_training,
    evaluate_two,
    finish,
    run_two,
    start,
    start_evaluation,
    state_of,
)

from freeadv_jax.devices import processes
from freeadv_jax.errors import InputError

GLOO = re.compile(
    r"\[Gloo\] Rank | is connected to | peer ranks\. |"
    r"Expected number of connected peer ranks is : |\d+|\n"
)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Return the run of one process with eight devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    assert run_main(workdir, devices=8, **FIELDS).returncode == 0
    return workdir


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Return the same run by two processes, and their output."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    return workdir, run_two(workdir)


@pytest.mark.slow
def test_two_processes_train_and_evaluate_like_one(one, two):
    workdir, outcomes = two
    assert [status for status, *_ in outcomes] == [0, 0]
    assert_same_training(workdir, one)
    ours, expected = (np.load(folder / "evaluation.npz") for folder in (workdir, one))
    for attack in ("natural", "pgd-20"):
        np.testing.assert_array_equal(ours[attack], expected[attack])
    made = json.loads((workdir / "results.json").read_text())["environment"]
    assert made["process_count"] == 2
    assert made["device_count"] == 8


@pytest.mark.slow
def test_only_the_first_process_writes_and_prints(one, two):
    workdir, ((_, first, _), (_, second, _)) = two
    lines = [
        (folder / "metrics.jsonl").read_text().splitlines() for folder in (workdir, one)
    ]
    assert len(lines[0]) == len(lines[1])
    assert "pgd-20" in first
    # Gloo's threads print at the same time, so their lines may interleave.
    assert GLOO.sub("", second) == ""


def evaluate_alone(workdir, *flags):
    evaluate = [sys.executable, "-m", "freeadv_jax.evaluate", f"--workdir={workdir}"]
    subprocess.run(
        [*evaluate, *flags],
        cwd=ROOT,
        env=environment(devices=1),
        check=True,
        capture_output=True,
    )


@pytest.mark.thorough
def test_two_processes_evaluate_like_one(tmp_path, one):
    """They go on where one was, on more images, and one goes on where they were."""
    attacks = "--attacks=natural,apgd-t,square"
    alone, together = (shutil.copytree(one, tmp_path / name) for name in "ab")
    evaluate_alone(alone, attacks, "--examples=150")
    evaluate_alone(together, "--attacks=apgd-t", "--examples=30", "--no-red_flags")
    outcomes = evaluate_two(together, attacks, "--examples=120")
    assert [status for status, *_ in outcomes] == [0, 0], outcomes
    (_, first, _), (_, second, _) = outcomes
    assert "apgd-t" in first
    assert GLOO.sub("", second) == ""
    evaluate_alone(together, attacks, "--examples=150")
    ours, expected = (
        np.load(folder / "evaluation.npz") for folder in (together, alone)
    )
    for attack in ("natural", "apgd-t", "square"):
        assert len(expected[attack]) == 150
        np.testing.assert_array_equal(ours[attack], expected[attack])


@pytest.mark.slow
def test_two_processes_certify_like_one(tmp_path, one):
    flags = "--attacks=crown-ibp", "--epsilon=0.004", "--examples=40"
    alone, together = (shutil.copytree(one, tmp_path / name) for name in "ab")
    evaluate_alone(alone, *flags, "--no-red_flags")
    outcomes = evaluate_two(together, *flags, "--no-red_flags")
    assert [status for status, *_ in outcomes] == [0, 0], outcomes
    ours, expected = (
        np.load(folder / "evaluation.npz")["certified/crown-ibp@linf-0.004"]
        for folder in (together, alone)
    )
    assert len(expected) == 40 and expected.any()
    np.testing.assert_array_equal(ours, expected)


@pytest.mark.slow
def test_processes_with_other_options_evaluate_nothing(tmp_path, one):
    workdir = shutil.copytree(one, tmp_path / "run")
    before = (workdir / "results.json").read_bytes()
    flags = (["--epsilon=0.1"], ["--epsilon=0.2"])
    outcomes = evaluate_two(workdir, "--attacks=fgsm", own_flags=flags)
    assert [status for status, *_ in outcomes] == [1, 1]
    for _, _, fault in outcomes:
        assert "the processes differ in their options" in fault
    assert (workdir / "results.json").read_bytes() == before


LONG = "--attacks=natural,apgd-t,square", "--no-red_flags"


@pytest.fixture(scope="module")
def outcomes_of_one(tmp_path_factory, one):
    """Return the outcomes of LONG by one process that nothing interrupts."""
    workdir = shutil.copytree(one, tmp_path_factory.mktemp("alone") / "run")
    evaluate_alone(workdir, *LONG)
    return np.load(workdir / "evaluation.npz")


def interrupted(workdir, *, number, sent):
    """Return the outcomes of two evaluators, one of which gets a signal in an attack.

    It comes when a part of that attack is saved.
    """
    pair = start_evaluation([workdir] * 2, *LONG)
    ends = time.monotonic() + 120
    while "under way/about" not in np.load(workdir / "evaluation.npz"):
        assert time.monotonic() < ends and pair[0].poll() is None
        time.sleep(0.2)
    pair[number].send_signal(sent)
    return finish(pair)


@pytest.mark.slow
def test_sigterm_ends_an_evaluation_and_one_process_goes_on(
    tmp_path, one, outcomes_of_one
):
    workdir = shutil.copytree(one, tmp_path / "run")
    outcomes = interrupted(workdir, number=1, sent=signal.SIGTERM)
    assert outcomes[1][0] == 143
    assert "square" not in np.load(workdir / "evaluation.npz")
    evaluate_alone(workdir, *LONG)
    found = np.load(workdir / "evaluation.npz")
    for attack in ("natural", "apgd-t", "square"):
        np.testing.assert_array_equal(found[attack], outcomes_of_one[attack])


@pytest.mark.thorough
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_evaluator_ends_the_other_and_one_process_goes_on(
    tmp_path, one, outcomes_of_one, killed
):
    workdir = shutil.copytree(one, tmp_path / "run")
    outcomes = interrupted(workdir, number=killed, sent=signal.SIGKILL)
    status, _, said = outcomes[1 - killed]
    assert status == 1
    assert said.splitlines()[-1].startswith("error: the job lost one of its processes")
    evaluate_alone(workdir, *LONG)
    found = np.load(workdir / "evaluation.npz")
    for attack in ("natural", "apgd-t", "square"):
        np.testing.assert_array_equal(found[attack], outcomes_of_one[attack])


@pytest.mark.thorough
def test_two_processes_finish_the_run_of_one_and_the_reverse(tmp_path, one, two):
    # This step schedule changes once, at the end, and so is the same for both budgets.
    schedule = {"schedule": "step", "turns": (0.999,), "learning_rate": 0.02}
    whole = {f"optimizer__{name}": value for name, value in schedule.items()}
    half = whole | {"updates": 6}
    begun_by_one, begun_by_two = tmp_path / "one", tmp_path / "two"
    assert run_main(begun_by_one, devices=8, **FIELDS | half).returncode == 0
    assert [status for status, *_ in run_two(begun_by_two, **half)] == [0, 0]
    ((status, output, _), (other, *_)) = run_two(begun_by_one, **whole)
    assert (status, other) == (0, 0)
    assert "resumed at update 6" in output
    resumed = run_main(begun_by_two, devices=8, **FIELDS | whole)
    assert "resumed at update 6" in resumed.stdout
    assert_same_training(begun_by_one, begun_by_two)


@pytest.mark.thorough
def test_sigterm_to_one_process_saves_and_ends_both(tmp_path):
    workdir = tmp_path / "run"
    long = {"updates": 64_000, "checkpoint__every_updates": 64_000}
    pair = start([workdir] * 2, **long)
    next(line for line in pair[0].stdout if re.match(r"training \d", line))
    pair[1].send_signal(signal.SIGTERM)
    (status, output, _), (other, *_) = finish(pair)
    assert (status, other) == (0, 0)
    assert "SIGTERM: saved at update" in output
    assert 0 < state_of(workdir).step < 32_000


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_a_killed_process_ends_the_other_within_a_minute_and_both_resume(
    tmp_path, killed
):
    workdir = tmp_path / "run"
    long = {"updates": 64_000, "checkpoint__every_updates": 32}
    pair = start([workdir] * 2, **long)
    for line in pair[0].stdout:
        if list(workdir.glob("checkpoints/[0-9]*")):
            break
    pair[killed].kill()
    begun = time.monotonic()
    outcomes = finish(pair)
    assert time.monotonic() - begun < 60
    status, _, said = outcomes[1 - killed]
    assert status == 1
    assert said.splitlines()[-1].startswith("error: the job lost one of its processes")
    step = int(state_of(workdir).step)
    (status, output, fault), (other, _, other_fault) = run_two(
        workdir, **long | {"updates": 2 * step + 2}
    )
    assert (status, other) == (0, 0), fault + other_fault
    assert f"resumed at update {2 * step}" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workdirs", "flags", "message"),
    [
        ("aa", ([], ["--config.seed=1"]), "processes differ in --config or --workdir"),
        ("ab", ([], []), "processes differ in --config or --workdir"),
        ("aa", ([], ["--config.seed=1", "--process_id=2"]), "process_id"),
    ],
    ids=["another seed", "another folder", "a number too high"],
)
def test_processes_that_disagree_all_end(tmp_path, workdirs, flags, message):
    pair = start([tmp_path / name for name in workdirs], own_flags=flags)
    if "process_id" in message:
        status, _, said = finish(pair[1:])[0]
        pair[0].kill()
        pair[0].communicate()
        assert status == 1
        assert message in said
        return
    for status, _, said in finish(pair):
        assert status == 1
        assert said.splitlines()[-1].startswith("error: ")
        assert message in said.splitlines()[-1]
    assert not any((tmp_path / name).exists() for name in workdirs)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"coordinator": "host"}, r"--coordinator=host: must be HOST:PORT"),
        ({}, "--multihost: the processes cannot be joined"),
    ],
)
def test_a_failed_start_is_an_error(monkeypatch, given, message):
    monkeypatch.setattr(processes, "_attend", lambda: None)
    with pytest.raises(InputError, match=message):
        processes.start(multihost=True, **given)


@pytest.mark.parametrize("flag", ["coordinator", "num_processes", "process_id"])
def test_flags_of_several_processes_need_multihost(flag):
    with pytest.raises(InputError, match=f"--{flag} goes with --multihost"):
        processes.start(
            multihost=False, **{flag: "a:1" if flag == "coordinator" else 1}
        )


@pytest.mark.parametrize(
    ("name", "four", "one"),
    [
        ("SLURM_STEP_NUM_TASKS", "4", "1"),
        ("OMPI_COMM_WORLD_SIZE", "4", "1"),
        ("TPU_WORKER_HOSTNAMES", "t0,t1,t2,t3", "localhost"),
    ],
)
def test_processes_of_a_launcher_never_run_independently(monkeypatch, name, four, one):
    monkeypatch.setenv(name, four)
    with pytest.raises(InputError, match=f"{name} says that 4 processes.*--multihost"):
        processes.start(multihost=False)
    monkeypatch.setenv(name, one)
    processes.start(multihost=False)
    assert jax.process_count() == 1


def test_one_process_agrees_with_itself_and_keeps_its_errors():
    with pytest.raises(InputError, match="^no$"), processes.agreement():
        raise InputError("no")
    assert processes.is_first()
