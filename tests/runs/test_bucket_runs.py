"""Runs in buckets end in the same bits as runs in a folder of this machine."""

import json
import shutil
import subprocess

import jax
import numpy as np
import pytest
from test_checkpoint import LIKE, state_at
from tiny_run import ROOT, command, environment, metrics, train_and_evaluate
from two_processes import assert_same_training, run_two

import freeadv_jax
from freeadv_jax import evaluate, export
from freeadv_jax.errors import InputError, TrainingStoppedError
from freeadv_jax.files import local_folder, read_json, whole_file
from freeadv_jax.files.buckets import BucketPath
from freeadv_jax.report import __main__ as report
from freeadv_jax.runs.checkpoint import Checkpoints
from freeadv_jax.runs.folder import CHECKPOINTS, read_run
from freeadv_jax.runs.load import trained_state
from freeadv_jax.runs.metrics import MetricsLog, read_metrics
from freeadv_jax.runs.outcomes import read_arrays

pytestmark = pytest.mark.buckets
FIELDS = {"updates": 24, "data__validation_examples": 64}
# The kinds of store differ in freeadv_jax.files alone, whose tests take both each time.
stores = pytest.mark.parametrize(
    "store", ["s3", pytest.param("gs", marks=pytest.mark.thorough)], indirect=True
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of a run on this machine that was never interrupted."""
    return train_and_evaluate(tmp_path_factory.mktemp("whole") / "run", **FIELDS)


def names(folder):
    return sorted(
        str(path.relative_to(folder))
        for path in folder.files_below()
        if ".lease" not in path.parts
    )


def assert_same_run(bucket, whole):
    """Compare every number but the seconds, to the bit."""
    for which in ("last", "best"):
        ours, expected = (trained_state(read_run(f), which) for f in (bucket, whole))
        jax.tree.map(np.testing.assert_array_equal, ours, expected)
    for line in (lines := read_metrics(bucket)):
        line.pop("seconds", None)
    assert lines == metrics(whole)
    ours, expected = (
        read_json(f / "results.json")["evaluation"] for f in (bucket, whole)
    )
    assert ours == expected
    ours, expected = (read_arrays(f / "evaluation.npz") for f in (bucket, whole))
    assert ours.keys() == expected.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.slow
@stores
def test_a_run_killed_in_a_bucket_ends_in_the_same_bits(bucket, whole):
    """SIGKILL comes while a checkpoint is put, and while the model is evaluated."""
    first, last = bucket / CHECKPOINTS, bucket / "results.json"
    for reached in (first.is_dir, last.exists):
        process = subprocess.Popen(
            command(bucket, **FIELDS),
            cwd=ROOT,
            env=environment(devices=8),
            stdout=subprocess.DEVNULL,
        )
        while not reached():
            assert process.poll() is None
        process.kill()
        process.wait()
    subprocess.run(
        command(bucket, **FIELDS), cwd=ROOT, env=environment(devices=8), check=True
    )
    assert_same_run(bucket, whole)
    assert not (bucket / "metrics.jsonl.parts").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_two_processes_share_a_run_in_a_bucket(bucket, tmp_path):
    for folder in (str(bucket), tmp_path / "run"):
        ended = run_two(folder)
        assert [code for code, *_ in ended] == [0, 0], ended
    assert_same_training(bucket, tmp_path / "run", tolerance=0)
    assert metrics(bucket) == metrics(tmp_path / "run")
    ended = run_two(str(bucket), updates=16)
    assert [code for code, *_ in ended] == [0, 0], ended
    assert "resumed at update 12" in ended[0][1]


@pytest.mark.slow
@stores
def test_commands_read_and_write_a_run_in_a_bucket(bucket, whole, tmp_path):
    # The evaluation below adds rows to it, and other tests compare with `whole`.
    whole = shutil.copytree(whole, tmp_path / "whole")
    workdir = bucket / "run"
    train_and_evaluate(workdir, **FIELDS)
    assert_same_run(workdir, whole)
    with local_folder(workdir) as copy:
        assert_same_run(copy, whole)
    assert {name for name in names(workdir) if "/" not in name} == {
        "evaluation.npz",
        "metrics.jsonl",
        "results.json",
        "run.json",
    }
    flags = ["--attacks=natural,fgsm", "--examples=64", "--no-red_flags"]
    for folder in (workdir, whole):
        evaluate.main(["evaluate", f"--workdir={folder}", *flags])
    assert_same_run(workdir, whole)
    rows = read_json(workdir / "results.json")["evaluation"]
    assert {"natural", "fgsm", "pgd-20"} <= rows.keys()
    flags = [f"--out={bucket}/table.csv", "--format=csv", "--no-measure"]
    report.main(["report", str(workdir), *flags])
    assert "fgsm" in (bucket / "table.csv").read_text()
    out = bucket / "exported"
    export.main(["export", f"--workdir={workdir}", f"--out={out}"])
    assert "model.json" in names(out)
    images = np.random.default_rng(0).random((3, 8, 8, 1), np.float32)
    ours, expected = (freeadv_jax.load(str(folder))(images) for folder in (out, whole))
    np.testing.assert_array_equal(ours, expected)
    with whole_file(bucket / "mine.npz") as mine, mine.open("wb") as file:
        np.savez(file, images=images, labels=np.arange(3))
    flags = [f"--images={bucket}/mine.npz", "--attacks=natural,fgsm", "--no-red_flags"]
    evaluate.main(["evaluate", f"--workdir={out}", *flags])
    rows = read_json(out / "mine" / "results.json")["evaluation"]
    assert rows["fgsm"]["examples"] == 3
    with pytest.raises(InputError, match=f"{out} exists already"):
        export.main(["export", f"--workdir={workdir}", f"--out={out}"])


def test_lines_in_parts_are_joined_when_they_are_read_and_at_the_end(bucket):
    log = MetricsLog(bucket)
    for step in (1, 2, 3):
        log.write("train", step=step)
        log.flush()
    log.write("validation", step=3, natural=0.5)
    assert names(bucket) == [
        "metrics.jsonl",
        *(f"metrics.jsonl.parts/00000000{part}.jsonl" for part in (1, 2, 3)),
    ]
    assert [line["step"] for line in read_metrics(bucket)] == [1, 2, 3]
    again = MetricsLog(bucket, last_step=2)
    again.write("train", step=3)
    again.close()
    assert names(bucket) == ["metrics.jsonl"]
    lines = (bucket / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_lines_that_a_kill_left_twice_count_once(bucket):
    log = MetricsLog(bucket)
    log.write("train", step=1)
    log.flush()
    (part,) = (bucket / "metrics.jsonl.parts").files_below()
    (bucket / "metrics.jsonl").write_text(part.read_text())
    assert [line["step"] for line in read_metrics(bucket)] == [1]


def test_a_checkpoint_whose_commit_is_missing_is_not_seen(bucket):
    checkpoints = Checkpoints(bucket, keep=2)
    for step in (1, 2, 3, 4):
        robust = {2: 0.5}.get(step, 0.1)
        checkpoints.save(state_at(step), progress={"at": step}, robust=robust)
    checkpoints.close()
    assert sorted(path.name for path in bucket.iterdir()) == ["2", "3", "4"]
    (bucket / "4" / "commit_success.txt").unlink()
    reading = Checkpoints(bucket)
    assert reading.steps == [2, 3]
    assert reading.best_step == 2
    state, progress = reading.restore(LIKE)
    jax.tree.map(np.testing.assert_array_equal, state, state_at(3))
    assert progress == {"at": 3}
    reading.close()
    assert (bucket / "4").is_dir()
    Checkpoints(bucket, keep=2).close()
    assert not (bucket / "4").exists()


def test_a_damaged_checkpoint_is_skipped_and_written_again(bucket):
    checkpoints = Checkpoints(bucket, keep=2)
    checkpoints.save(state_at(1), progress={"at": 1})
    checkpoints.save(state_at(2), progress={"at": 2})
    checkpoints.close()
    objects = [path for path in (bucket / "2").files_below() if "d" in path.parts]
    biggest = max(objects, key=lambda path: path.stat().st_size)
    biggest.write_bytes(biggest.read_bytes()[:100])
    again = Checkpoints(bucket, keep=2)
    assert again.restore(LIKE)[1] == {"at": 1}
    again.save(state_at(2), progress={"at": "again"})
    again.close()
    reading = Checkpoints(bucket)
    assert reading.restore(LIKE)[1] == {"at": "again"}
    reading.close()


def test_a_store_that_fails_is_no_damaged_checkpoint(bucket, monkeypatch):
    checkpoints = Checkpoints(bucket, keep=2)
    checkpoints.save(state_at(1), progress={})
    checkpoints.close()

    def fail(path, file):
        raise OSError(5, "the store is away", str(path))

    reading = Checkpoints(bucket)
    with monkeypatch.context() as away:
        away.setattr(BucketPath, "download", fail)
        with pytest.raises(InputError, match=f"^{bucket}/1/.*: the store is away$"):
            reading.restore(LIKE)
    assert int(reading.restore(LIKE)[0].step) == 1
    reading.close()


def test_a_store_that_refuses_a_checkpoint_stops_the_training(bucket, monkeypatch):
    checkpoints = Checkpoints(bucket, keep=2)
    checkpoints.save(state_at(1), progress={})
    checkpoints.wait()

    def refuse(path, file):
        raise OSError(28, "the quota is used up", str(path))

    monkeypatch.setattr(BucketPath, "upload", refuse)
    checkpoints.save(state_at(2), progress={})
    with pytest.raises(TrainingStoppedError, match="the quota is used up"):
        checkpoints.wait()
    checkpoints.close()
    assert [path.name for path in bucket.iterdir()] == ["1"]
