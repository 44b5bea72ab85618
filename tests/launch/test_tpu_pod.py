"""launch/tpu_pod.sh and tpu_worker.sh work together, with a stand-in for gcloud."""

import os
import re
import signal

import pytest
from pod import asked, status, succeed, train, trainings
from stand_ins import alive, eventually


def test_create_asks_gcloud_for_the_pod(pod):
    (pod.folder / "state").unlink()
    succeed(pod, "create", SPOT="yes")
    (pod.folder / "state").unlink()
    succeed(pod, "create")
    on_demand = (
        "gcloud compute tpus tpu-vm create free4 --zone=us-west4-a "
        "--accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite "
        "--scopes=https://www.googleapis.com/auth/cloud-platform"
    )
    spot = on_demand.replace(" --scopes", " --spot --scopes")
    created = [" ".join(call) for call in pod.calls("gcloud") if call[4] == "create"]
    assert created == [spot, on_demand]


def test_setup_sends_the_commit_and_installs_it_on_every_worker(pod):
    (pod.repository / "not_committed").touch()
    succeed(pod, "setup")
    assert asked(pod) == ["status", "scp", "ssh", "install"]
    for name in ("worker0", "worker1"):
        home = pod.folder / name
        tree = home / "freeadv_jax"
        assert sorted(path.name for path in tree.iterdir()) == ["configs", "launch"]
        options = [
            "--implicit-dirs",
            "--rename-dir-limit=10000",
            "--metadata-cache-ttl-secs=0",
            "--metadata-cache-negative-ttl-secs=0",
        ]
        for bucket in ("runs", "data"):
            mounted = ["gcsfuse", *options, bucket, f"{home}/gs/{bucket}"]
            assert mounted in pod.calls("gcsfuse")
        venv = f"{home}/freeadv_jax_environment"
        installing = (
            f"python3 -m uv pip install --quiet --python {venv} .[tpu,imagenet]"
        )
        assert installing.split() in pod.calls("python3")


def test_run_gives_every_worker_the_command_word_for_word(pod):
    override = "--config.optimizer.turns=(30, 60) $(date) 'x'"
    train(pod, override)
    assert trainings(pod) == [
        [
            *["python", "-m", "freeadv_jax.main", "--multihost"],
            "--config=configs/tiny.py",
            f"--workdir={pod.folder}/{name}/gs/runs/a/b",
            f"--config.data.dir={pod.folder}/{name}/gs/data/imagenet",
            override,
        ]
        for name in ("worker0", "worker1")
    ]


def test_evaluate_gives_every_worker_the_command_word_for_word(pod):
    option = "--attacks=natural,autoattack"
    succeed(pod, "setup")
    succeed(pod, "evaluate", option)
    eventually(lambda: len(trainings(pod)) == 2)
    assert trainings(pod) == [
        [
            *["python", "-m", "freeadv_jax.evaluate", "--multihost"],
            f"--workdir={pod.folder}/{name}/gs/runs/a/b",
            f"--data={pod.folder}/{name}/gs/data/imagenet",
            option,
        ]
        for name in ("worker0", "worker1")
    ]


def test_the_training_outlives_the_connection_that_started_it(pod):
    train(pod)
    for line in status(pod):
        process_id = int(re.fullmatch(r"running \(pid (\d+)\)", line)[1])
        assert alive(process_id)
        assert os.getsid(process_id) == process_id
    assert succeed(pod, "logs") == "training\n"


def test_stop_lets_it_save_and_says_how_it_ended(pod):
    train(pod)
    stopped = [line.split(": ")[1] for line in succeed(pod, "stop").splitlines()]
    assert stopped == ["stopped", "stopped"]
    assert succeed(pod, "logs", WORKER="1").splitlines()[-1] == "saved"
    assert status(pod) == ["stopped", "stopped"]


@pytest.mark.parametrize(
    ("end", "said"), [("0", "finished"), ("3", "failed with exit code 3")]
)
def test_status_says_how_the_training_ended(pod, end, said):
    assert status(pod) == ["idle", "idle"]
    train(pod)
    pod.put("end", end)
    eventually(lambda: status(pod) == [said, said])


def test_status_distinguishes_a_killed_machine_from_a_failed_training(pod):
    train(pod)
    for pid in pod.folder.glob("worker?/freeadv_jax_run/pid"):
        os.killpg(int(pid.read_text()), signal.SIGKILL)
    eventually(lambda: status(pod) == ["interrupted", "interrupted"])


def test_a_start_that_ssh_repeats_starts_no_second_training(pod):
    train(pod)
    (call,) = [
        call for call in pod.calls("gcloud") if "tpu_worker.sh start" in call[-1]
    ]
    outcome = pod.run(*call)
    assert [line.split(": ")[1][:7] for line in outcome.stdout.splitlines()] == [
        "running",
        "running",
    ]
    assert len(trainings(pod)) == 2


POD = "gcloud compute tpus tpu-vm {} free4 --zone=us-west4-a {}"
START = (
    r"--worker=all --command=bash\ freeadv_jax/launch/tpu_worker.sh\ start\ "
    r"--config=configs/tiny.py\ --workdir=gs://runs/a/b\ "
    r"--config.data.dir=gs://data/imagenet"
)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["delete"], [POD.format("delete", "--quiet")]),
        (["run"], [POD.format("ssh", START)]),
        (["run", "--config.a=1"], [POD.format("ssh", rf"{START}\ --config.a=1")]),
        (
            ["logs", "--follow"],
            [
                POD.format(
                    "ssh",
                    r"--worker=0 --command=bash\ freeadv_jax/launch/tpu_worker.sh\ "
                    r"logs\ --follow",
                )
            ],
        ),
    ],
)
def test_dry_run_prints_the_commands_and_calls_none(pod, arguments, said):
    pod.commands.joinpath("gcloud").unlink()  # A dry run needs no gcloud.
    output = succeed(pod, *arguments, "--dry-run")
    assert [line.rstrip() for line in output.splitlines()] == said
    assert pod.calls() == []


def test_dry_run_of_a_restart_prints_the_commands_after_a_preemption(pod):
    lines = succeed(pod, "run", "--restart", "--dry-run", SPOT="yes").splitlines()
    words = [line.split()[4] for line in lines if line.startswith("gcloud")]
    assert words == ["ssh", "delete", "create", "scp", "ssh", "ssh", "ssh"]
    assert lines[1] == "# after a preemption:"
    assert pod.calls() == []
