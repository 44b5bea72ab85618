import contextlib
import copy
import itertools
import json
import pathlib
import random
import re
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
from tiny_run import ROOT, command, environment, metrics, run_main, tiny_config

from freeadv_jax.config import passes
from freeadv_jax.data.arrays import load_arrays
from freeadv_jax.data.split import Split
from freeadv_jax.devices import parallel
from freeadv_jax.errors import TrainingStoppedError
from freeadv_jax.runs import build
from freeadv_jax.runs.build import (
    configured_optimizer,
    configured_steps,
    initial_state_of,
    model_of,
)
from freeadv_jax.runs.folder import Run, open_run, read_run
from freeadv_jax.runs.train import train_run
from freeadv_jax.runs.watch import Clock
from freeadv_jax.training.methods import METHODS
from freeadv_jax.training.multistep import STATE_LAYOUT, Multistep, minibatches_per_call

DIGITS = load_arrays("digits", "", validation_examples=200)
# The marks of methods whose interruption is not left to the longest tests.
INTERRUPTED = {
    "awp": (),
    "fgsm-pgi": (),
    "free": pytest.mark.slow,
    "trades": pytest.mark.slow,
}
# By default `test_fit` trains by these methods as well.
RARER = (
    "alp",
    "llr",
    "mart",
    "awp",
    "n-fgsm",
    "fgsm-pgi",
    "grad-align",
    "gaussian",
    "ibp",
    "crown-ibp",
)


def start(workdir, **fields):
    return open_run(
        workdir, tiny_config(**fields), num_classes=10, image_shape=(8, 8, 1)
    )


def saved_state(workdir, which="last"):
    run = read_run(workdir)
    checkpoints = run.checkpoints()
    state, _ = checkpoints.restore(jax.eval_shape(lambda: initial_state_of(run)), which)
    checkpoints.close()
    return state


def assert_same_run(one, other):
    a, b = saved_state(one), saved_state(other)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert np.abs(a.delta).max() > 0
    assert metrics(one) == metrics(other)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return an uninterrupted run on one device."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finished = run_main(workdir)
    assert finished.returncode == 0, finished.stderr
    return workdir


def test_the_initial_state_counts_as_compilation(tmp_path, monkeypatch):
    clocked, make = Clock.spending, build.initial_state
    spent_on, seen = [], []

    @contextlib.contextmanager
    def spending(clock, on):
        with clocked(clock, on):
            spent_on.append(on)
            yield
            spent_on.pop()

    def initial_state(config, **parts):
        seen.append(tuple(spent_on))
        return make(config, **parts)

    monkeypatch.setattr(Clock, "spending", spending)
    monkeypatch.setattr("freeadv_jax.runs.train.initial_state", initial_state)
    train_run(start(tmp_path / "run", updates=8), DIGITS)
    # First the shapes, which a checkpoint might have, then the state itself.
    assert seen == [(), ("compiling",)]


def test_results_have_the_schema_that_others_read(whole):
    results = json.loads((whole / "results.json").read_text())
    assert list(results) == ["config", "environment", "training", "evaluation"]
    assert results["config"]["attack"]["replays"] == 2
    assert results["environment"]["device_count"] == 1
    assert results["environment"]["versions"]["jax"] == jax.__version__
    training = results["training"]
    assert training["updates"] == 64
    np.testing.assert_allclose(
        training["seconds_per_update"] * 64, training["seconds"], rtol=1e-9
    )
    np.testing.assert_allclose(
        training["images_per_second"], 64 * 64 / training["seconds"], rtol=1e-9
    )
    assert 0 <= training["input_wait_fraction"] < 1
    assert training["compile_seconds"] > 0
    row = results["evaluation"]["pgd-20"]
    assert row["examples"] == 64
    assert row["accuracy"] == row["correct"] / 64
    attack = {
        "norm": "linf",
        "epsilon": 0.2,
        "steps": 20,
        "step_size": 0.05,
        "restarts": 1,
        "loss": "cross-entropy",
        "seed": 0,
    }
    assert attack.items() <= row["attack"].items()


def test_metrics_hold_training_and_validation_lines_in_order(whole):
    lines = metrics(whole)
    train_steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert train_steps == list(range(4, 33, 4))
    validation_steps = [line["step"] for line in lines if line["kind"] == "validation"]
    assert validation_steps == [8, 16, 24, 32]
    assert {"natural", "pgd-10", "train_loss"} < lines[-1].keys()
    assert all(line["updates"] == 2 * line["step"] for line in lines)


def test_validation_never_touches_weights_or_batch_norm_averages(tmp_path, whole):
    run_main(
        tmp_path / "run",
        validation__every_passes=100,
        checkpoint__every_updates=1000,
        evaluation__attacks=("natural",),
    )
    a, b = saved_state(whole), saved_state(tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_sigterm_saves_and_exits_with_0_and_the_same_command_continues(tmp_path, whole):
    """The signal arrives at a step that is no multiple of any period."""
    workdir = tmp_path / "run"
    long = {"updates": 6400, "checkpoint__every_updates": 6400}
    process = subprocess.Popen(
        command(workdir, **long),
        cwd=ROOT,
        env=environment(devices=1),
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if re.match(r"training \d", line):
            break
    process.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    rest = process.stdout.read()
    assert process.wait() == 0
    assert time.monotonic() - signalled < 10
    assert "SIGTERM: saved at update" in rest
    step = int(saved_state(workdir).step)
    assert 0 < step < 3200
    resumed = run_main(workdir, **long | {"updates": (step + 3) * 2})
    assert resumed.returncode == 0
    assert f"resumed at update {step * 2}" in resumed.stdout
    assert int(saved_state(workdir).step) == step + 3


def test_sigterm_during_the_last_call_is_heard_before_the_evaluation(
    tmp_path, monkeypatch, capsys
):
    made, asked = [], []

    divided = Multistep.calls

    def calls(*arguments, **fields):
        for steps in divided(*arguments, **fields):
            made.append(steps)
            yield steps

    @contextlib.contextmanager
    def preemption():
        # The last question comes after the last call, before a call that is never made.
        yield lambda number: asked.append(number) or number == len(made)

    monkeypatch.setattr("freeadv_jax.runs.train.preemption", preemption)
    monkeypatch.setattr(Multistep, "calls", calls)
    with pytest.raises(SystemExit) as ended:
        train_run(start(tmp_path / "run", updates=16), DIGITS)
    assert ended.value.code == 0
    assert asked == list(range(len(made) + 1))
    assert "SIGTERM: saved at update 16;" in capsys.readouterr().out
    assert int(saved_state(tmp_path / "run").step) == 8


@pytest.mark.thorough
def test_run_killed_ten_times_ends_in_the_same_bits(tmp_path):
    """SIGKILL comes at random moments: during start, compilation, training, saving."""
    fields = {
        "updates": 4800,
        "checkpoint__every_updates": 48,
        "validation__every_passes": 20,
    }
    arguments = {"cwd": ROOT, "env": environment(devices=1), "text": True}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole, **fields), **arguments, check=True)
    rng, newest = random.Random(0), [0]

    def newest_saved():
        names = [path.name for path in killed.glob("checkpoints/*")]
        return max((int(name) for name in names if name.isdigit()), default=0)

    for kill in range(12):
        process = subprocess.Popen(
            command(killed, **fields), **arguments, stdout=subprocess.PIPE
        )
        if kill % 4 == 0:
            time.sleep(rng.uniform(0.2, 3))
        else:
            next(line for line in process.stdout if re.match(r"training \d", line))
            while kill % 4 > 1 and newest_saved() == newest[-1]:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.4))
        assert process.poll() is None
        process.kill()
        process.wait()
        newest.append(newest_saved())
    assert newest == sorted(newest)
    assert 0 < newest[3] < newest[-1] < 2400
    subprocess.run(command(killed, **fields), **arguments, check=True)
    assert_same_run(killed, whole)
    ours, expected = (
        json.loads((folder / "results.json").read_text())["evaluation"]
        for folder in (killed, whole)
    )
    assert ours == expected


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 4])
def test_run_saved_on_eight_devices_continues_on_fewer(devices, tmp_path, whole):
    workdir = tmp_path / "run"
    assert run_main(workdir, devices=8, updates=32).returncode == 0
    middle = saved_state(workdir)
    assert middle.delta.shape == (64, 8, 8, 1)
    finished = run_main(workdir, devices=devices)
    assert finished.returncode == 0, finished.stderr
    assert "resumed at update 32" in finished.stdout
    assert int(saved_state(workdir).step) == 32
    loss = [line["loss"] for line in metrics(workdir) if line["kind"] == "train"]
    assert np.all(np.isfinite(loss))
    # A short budget has other learning rates, so only the data are the same.
    assert len(loss) == len([x for x in metrics(whole) if x["kind"] == "train"])


def test_run_continues_with_a_larger_budget(tmp_path, capsys):
    _, training = train_run(start(tmp_path / "run", updates=16), DIGITS)
    assert training["updates"] == 16
    state, training = train_run(start(tmp_path / "run", updates=32), DIGITS)
    assert training["updates"] == 32
    assert int(state.step) == 16
    said = capsys.readouterr().out
    assert "updates: 16 before, now 32" in said
    assert "resumed at update 16" in said


def stage(method, norm):
    """Return the mark of a method's test, the later the rarer it is and the longer."""
    if method == "crown-ibp" or (norm == "l2" and method != "free"):
        return pytest.mark.thorough
    return pytest.mark.slow if norm == "l2" or method in RARER else ()


@pytest.mark.parametrize(
    ("method", "norm"),
    [
        pytest.param(method, norm, marks=stage(method, norm))
        for method in METHODS
        for norm in ("linf", "l2")
    ],
)
def test_every_method_learns_with_either_norm(method, norm, tmp_path):
    """The training loss falls; only Free-m and FGSM-PGI change delta."""
    run = start(
        tmp_path / "run",
        method=method,
        updates=40,
        attack__norm=norm,
        attack__steps=2,
        attack__epsilon=0.1 if norm == "linf" else 0.5,
        # The radius of certified training would rise, and its loss with it. In so few
        # updates a large one makes the logits constant.
        attack__certified_warmup=0.0,
        attack__certified_rampup=0.0,
        attack__certified_scale=0.1,
        data__validation_examples=0,
        optimizer__turns=(0.1,),
    )
    state, _ = train_run(run, DIGITS)
    losses = [line["loss"] for line in metrics(run.workdir) if line["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    assert bool(state.delta.any()) == (method in ("free", "fgsm-pgi"))


def test_loss_of_nan_stops_with_the_update_named_and_checkpoints_kept(tmp_path):
    train_run(start(tmp_path / "run", updates=16), DIGITS)
    run = read_run(tmp_path / "run")
    checkpoints = run.checkpoints(writable=True)
    state, progress = checkpoints.restore(jax.eval_shape(lambda: initial_state_of(run)))
    # The largest finite weights overflow in the next forward pass.
    huge = jax.tree.map(lambda p: np.sign(p) * np.float32(3e38), state.params)
    checkpoints.save(
        state.replace(params=huge, step=np.array(9, np.int32)), progress=progress
    )
    checkpoints.close()
    with pytest.raises(TrainingStoppedError, match=r"loss is nan at update 20"):
        train_run(start(tmp_path / "run", updates=32), DIGITS)
    assert int(saved_state(tmp_path / "run").step) == 9


def test_collapse_stops_the_run_if_so_configured_and_the_best_is_kept(
    tmp_path, monkeypatch
):
    """A model that gets better gets worse on a validation set with wrong labels."""
    dataset = load_arrays("digits", "", validation_examples=200)
    validation = dataset.validation
    model_errs = np.where(np.arange(200) % 2, validation.labels, 0).astype(np.int32)
    wrong = Split(validation.images, model_errs)
    run = start(
        tmp_path / "run",
        updates=400,
        validation__stop_on_collapse=True,
        attack__epsilon=1e-6,
        attack__step_size=1e-6,
    )
    monkeypatch.setattr("freeadv_jax.runs.watch.COLLAPSE", 0.01)
    object.__setattr__(dataset, "validation", wrong)
    with pytest.raises(TrainingStoppedError, match="CATASTROPHIC OVERFITTING"):
        train_run(run, dataset)
    lines = [x for x in metrics(run.workdir) if x["kind"] == "validation"]
    best = max(lines, key=lambda line: line["pgd-10"])
    assert int(saved_state(run.workdir, "best").step) == best["step"]


@pytest.mark.parametrize("start", ["carried", "random", "zero"])
def test_a_minibatch_starts_where_the_configuration_says(start):
    """With a step size near 0, delta stays at its start."""
    config = tiny_config(attack__start=start, attack__step_size=1e-9)
    run = Run(pathlib.Path(), config, num_classes=10, image_shape=(8, 8, 1))
    carried = np.full((64, 8, 8, 1), 0.05, np.float32)
    state = initial_state_of(run).replace(delta=carried)
    batch = {
        "image": np.zeros((64, 8, 8, 1), np.uint8),
        "label": np.zeros(64, np.int32),
    }
    state = parallel.place(state, STATE_LAYOUT)
    steps = configured_steps(
        config, model=model_of(run), tx=configured_optimizer(run.config)
    ).program
    after, _ = steps(state, (parallel.place(batch, parallel.SPLIT),), np.int32(1))
    delta = np.array(after.delta).reshape(carried.shape)
    if start == "random":
        assert np.abs(delta).max() <= config.attack.epsilon
        assert delta.std() > config.attack.epsilon / 2
    else:
        expected = {"carried": carried, "zero": 0 * carried}[start]
        np.testing.assert_allclose(delta, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", ["natural", "free", "pgd"])
def test_dividing_a_run_into_calls_changes_no_bit(method):
    config = tiny_config(method=method, model__name="small-cnn-bn")
    run = Run(pathlib.Path(), config, num_classes=10, image_shape=(8, 8, 1))
    steps = configured_steps(
        config, model=model_of(run), tx=configured_optimizer(run.config)
    ).program
    batches = DIGITS.batches(config.batch_size, seed=0)(0)
    drawn = list(itertools.islice(batches, 4))

    def trained(*counts):
        state = parallel.place(initial_state_of(run), STATE_LAYOUT)
        losses, begin = [], 0
        for count in counts:
            group = drawn[begin : begin + count]
            group = (*group, *[drawn[0]] * (4 - count))
            state, metrics = steps(state, group, np.int32(count))
            losses += np.asarray(metrics["loss"])[:count].tolist()
            begin += count
        return parallel.fetch(state), losses

    at_once, losses = trained(4)
    assert int(at_once.step) == 4
    assert len(set(losses)) == 4
    for counts in ((1, 1, 1, 1), (3, 1)):
        state, others = trained(*counts)
        assert others == losses
        jax.tree.map(np.testing.assert_array_equal, state, at_once)


class Interrupted(Exception):
    pass


def cut_off(dataset, last):
    """Return a data set that hands out minibatches up to step `last`, then interrupts."""

    def batches(batch_size, *, seed):
        whole = dataset.batches(batch_size, seed=seed)

        def up_to_last(first):
            yield from itertools.islice(whole(first), last - first)
            raise Interrupted

        return up_to_last

    cut = copy.copy(dataset)
    object.__setattr__(cut, "batches", batches)
    return cut


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=INTERRUPTED.get(name, pytest.mark.thorough))
        for name in METHODS
        if name != "natural"  # It is Free-1.
    ],
)
def test_every_method_ends_in_the_same_bits_after_an_interruption(
    method, tmp_path, capsys
):
    fields = {
        "method": method,
        "updates": 16,
        "attack__steps": 2,
        "attack__replays": 1,
        "attack__misalignment": 0.3,
        "data__validation_examples": 0,
    }
    dataset = load_arrays("digits", "", validation_examples=0)
    train_run(start(tmp_path / "whole", **fields), dataset)
    cut = tmp_path / "cut"
    with pytest.raises(Interrupted):
        train_run(start(cut, **fields), cut_off(dataset, 7))
    train_run(start(cut, **fields), dataset)
    assert "resumed at update 6" in capsys.readouterr().out
    states = [saved_state(folder) for folder in (tmp_path / "whole", cut)]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert metrics(tmp_path / "whole") == metrics(cut)


def test_calls_end_at_their_multiples_and_where_they_must():
    steps = Multistep(lambda state, batch: (state, {}), per_call=4)
    calls = steps.calls(3, 13, ends_at=lambda step: step == 6)
    assert [list(steps) for steps in calls] == [
        [3, 4],
        [5, 6],
        [7, 8],
        [9, 10, 11, 12],
        [13],
    ]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"method": "natural"}, 8),
        ({"method": "free", "attack__replays": 3}, 2),
        ({"method": "free", "attack__replays": 8}, 1),
        ({"method": "fgsm-rs"}, 4),
        ({"method": "pgd", "attack__steps": 7}, 1),
        ({"method": "trades", "attack__steps": 10}, 1),
        ({"method": "mart", "attack__steps": 1}, 2),
    ],
)
def test_a_call_is_of_eight_passes_and_at_least_one_minibatch(fields, count):
    assert minibatches_per_call(passes(tiny_config(**fields))) == count
