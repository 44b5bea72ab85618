"""launch/slurm.sbatch and launch/train.sh work with stand-ins for Slurm's commands."""

import re
import signal

import pytest
from stand_ins import ROOT, eventually

SCRIPT = "launch/slurm.sbatch"
JOB = {
    "SLURM_JOB_ID": "42",
    "CONFIG": "configs/tiny.py",
    "WORKDIR": "/shared/my runs/tiny",
    "DATA": "/shared/data",
}
# Like main, it saves and ends with status 0 on SIGTERM.
TRAINING = """
trap 'echo saved; exit 0' TERM
echo $$ >"$HOME/training"
while [ ! -f "$HOME/exit_code" ]; do sleep 0.02; done
exit "$(<"$HOME/exit_code")"
"""
# Like Slurm's own, it kills what it started when it gets SIGTERM itself.
SRUN = """
[ "$1" != --kill-on-bad-exit=0 ] || shift
env >"$HOME/environment"
"$@" &
step=$!
trap 'echo killed; kill -KILL "$step"' TERM
echo "$step" >"$HOME/step"
wait "$step"
"""


@pytest.fixture
def slurm(desk):
    desk.stand_in("python", TRAINING)
    desk.stand_in("srun", SRUN)
    desk.stand_in("scancel", 'kill -TERM "$(<"$HOME/step")"')
    desk.stand_in("squeue", 'cat "$HOME/state"')
    desk.stand_in("scontrol")
    desk.put("state", "RUNNING\n")
    return desk


def test_the_job_has_the_options_that_it_needs():
    options = re.findall(r"^#SBATCH (\S+)$", (ROOT / SCRIPT).read_text(), re.MULTILINE)
    assert options == [
        "--job-name=freeadv_jax",
        "--nodes=1",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--cpus-per-task=8",
        "--time=24:00:00",
        "--requeue",
        "--signal=B:TERM@300",
        "--open-mode=append",
        "--output=%x-%j.log",
    ]


def test_every_process_gets_the_command_word_for_word(slurm):
    slurm.put("exit_code", "0")
    override = "--config.optimizer.turns=(30, 60)"
    assert slurm.run("bash", SCRIPT, override, **JOB).returncode == 0
    arguments = [
        "--config=configs/tiny.py",
        "--workdir=/shared/my runs/tiny",
        "--config.data.dir=/shared/data",
        "--multihost",
        override,
    ]
    step = ["srun", "--kill-on-bad-exit=0", "bash", "launch/train.sh", *arguments]
    assert slurm.calls("srun") == [step]
    assert slurm.calls("python") == [["python", "-m", "freeadv_jax.main", *arguments]]


def test_evaluate_gives_every_process_the_command_word_for_word(slurm):
    slurm.put("exit_code", "0")
    job = JOB | {"CONFIG": "configs/none.py"}
    option = "--attacks=natural,autoattack"
    assert slurm.run("bash", SCRIPT, "evaluate", option, **job).returncode == 0
    arguments = [
        "--workdir=/shared/my runs/tiny",
        "--data=/shared/data",
        "--multihost",
        option,
    ]
    step = ["srun", "--kill-on-bad-exit=0", "bash", "launch/train.sh", "evaluate"]
    assert slurm.calls("srun") == [[*step, *arguments]]
    evaluation = ["python", "-m", "freeadv_jax.evaluate", *arguments]
    assert slurm.calls("python") == [evaluation]


@pytest.mark.parametrize("code", [0, 1, 137])
def test_a_training_that_ends_by_itself_is_not_queued_again(slurm, code):
    slurm.put("exit_code", str(code))
    assert slurm.run("bash", SCRIPT, **JOB).returncode == code
    assert slurm.calls("scancel", "scontrol") == []


def test_sigterm_is_forwarded_and_the_job_queued_again_once(slurm):
    job = slurm.start("bash", SCRIPT, **JOB)
    eventually(lambda: (slurm.folder / "training").exists())
    job.send_signal(signal.SIGTERM)
    output, errors = job.communicate(timeout=20)
    assert output == "saved\nsaved; job 42 is queued again\n"
    assert (job.returncode, errors) == (0, "")
    assert slurm.calls("scancel", "squeue", "scontrol") == [
        ["scancel", "--signal=TERM", "42"],
        ["squeue", "--noheader", "--jobs=42", "--format=%T"],
        ["scontrol", "requeue", "42"],
    ]


def test_a_sigterm_to_the_step_alone_queues_the_job_again(slurm):
    job = slurm.start("bash", SCRIPT, **JOB)
    eventually(lambda: (slurm.folder / "training").exists())
    slurm.run("bash", "-c", 'kill -TERM "$(<"$HOME/step")"')
    assert job.wait(timeout=20) == 0
    assert slurm.calls("scancel", "scontrol") == [["scontrol", "requeue", "42"]]


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", ""])
def test_a_cancelled_job_saves_and_is_not_queued_again(slurm, state):
    slurm.put("state", state)
    job = slurm.start("bash", SCRIPT, **JOB)
    eventually(lambda: (slurm.folder / "training").exists())
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=20)
    said = f"saved; job 42 is {state or 'gone'} and is not queued again"
    assert (job.returncode, output) == (143, f"saved\n{said}\n")
    assert slurm.calls("scontrol") == []


def test_a_refused_requeue_is_an_error(slurm):
    slurm.stand_in("scontrol", "exit 1")
    job = slurm.start("bash", SCRIPT, **JOB)
    eventually(lambda: (slurm.folder / "training").exists())
    job.send_signal(signal.SIGTERM)
    _, errors = job.communicate(timeout=20)
    assert errors == "error: job 42 could not be queued again\n"
    assert job.returncode == 1


@pytest.mark.parametrize(
    ("a_node", "cpus", "ids"),
    [("1", "16", "0,1,2,3"), ("4", "4", None)],
)
def test_one_process_a_node_is_given_all_gpus_of_its_node(slurm, a_node, cpus, ids):
    slurm.put("exit_code", "0")
    given = {"SLURM_NTASKS_PER_NODE": a_node, "SLURM_GPUS_ON_NODE": "4"}
    slurm.run("bash", SCRIPT, **JOB, **given, SLURM_CPUS_PER_TASK=cpus)
    lines = (slurm.folder / "environment").read_text().splitlines()
    environment = dict(line.split("=", 1) for line in lines if "=" in line)
    assert environment["SRUN_CPUS_PER_TASK"] == cpus
    assert environment.get("JAX_LOCAL_DEVICE_IDS") == ids


def test_dry_run_prints_the_command_and_starts_nothing(slurm):
    outcome = slurm.run("bash", SCRIPT, "--dry-run", "--config.a=(1, 2)", **JOB)
    assert outcome.returncode == 0
    assert outcome.stdout == (
        "srun --kill-on-bad-exit=0 bash launch/train.sh --config=configs/tiny.py "
        r"--workdir=/shared/my\ runs/tiny --config.data.dir=/shared/data --multihost "
        r"--config.a=\(1\,\ 2\) "
        "\n"
    )
    assert slurm.calls() == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"WORKDIR": ""}, "WORKDIR is not set, e.g. WORKDIR=/shared/runs/free4"),
        ({"DATA": ""}, "DATA is not set, e.g. DATA=/shared/imagenet"),
        (
            {"CONFIG": "configs/none.py"},
            "CONFIG is configs/none.py, which does not exist: must be a file of configs/",
        ),
        ({"SLURM_JOB_ID": ""}, "SLURM_JOB_ID is not set: must be started with sbatch"),
        (
            {"SLURM_SUBMIT_DIR": "/"},
            "/ has no launch/train.sh: submit from the repository's root",
        ),
    ],
)
def test_a_mistake_gets_one_line_and_starts_nothing(slurm, change, error):
    outcome = slurm.run("bash", SCRIPT, **JOB | change)
    assert (outcome.returncode, outcome.stderr) == (1, f"error: {error}\n")
    assert slurm.calls() == []


def test_without_slurm_the_message_names_the_missing_command(slurm):
    (slurm.commands / "srun").unlink()
    outcome = slurm.run("bash", SCRIPT, **JOB)
    error = "error: srun is missing: must run in a job of Slurm\n"
    assert (outcome.returncode, outcome.stderr) == (1, error)


@pytest.mark.parametrize("code", [0, 3])
def test_train_exits_with_the_status_of_the_program(slurm, code):
    slurm.put("exit_code", str(code))
    assert slurm.run("bash", "launch/train.sh", "--a=b c").returncode == code
    assert slurm.calls() == [["python", "-m", "freeadv_jax.main", "--a=b c"]]


def test_train_forwards_sigterm_and_exits_with_143_although_the_program_exits_with_0(
    slurm,
):
    process = slurm.start("bash", "launch/train.sh")
    eventually(lambda: (slurm.folder / "training").exists())
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=20)
    assert (process.returncode, output) == (143, "saved\n")
