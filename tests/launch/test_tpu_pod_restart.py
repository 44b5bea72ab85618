"""launch/tpu_pod.sh run --restart survives preemptions, failures and lost networks."""

import pytest
from pod import SCRIPT, SETTINGS, asked, command, succeed, train, trainings
from stand_ins import eventually


def test_restart_resumes_with_the_same_command_on_a_new_pod_after_a_preemption(pod):
    (pod.folder / "full").touch()  # There is no capacity at first.
    watch = pod.start(
        "bash", SCRIPT, "run", "--restart", "--config.a=(1, 2)", **SETTINGS, SPOT="yes"
    )
    eventually(lambda: len(trainings(pod)) == 2)
    before = trainings(pod)
    pod.put("worker0/end", "preempted")
    eventually(lambda: len(trainings(pod)) == 4)
    assert trainings(pod) == sorted(2 * before)
    pod.put("end", "0")
    _, errors = watch.communicate(timeout=20)
    assert watch.returncode == 0, errors
    assert "pod free4 is PREEMPTED: creating it again" in errors
    assert "the pod could not be created; trying again every 0.05 s" in errors
    work = [word for word in asked(pod) if word != "status"]
    begin = ["scp", "ssh", "install", "start"]
    assert work == [*begin, "delete", "create", "create", *begin]


def test_restart_starts_again_when_one_worker_was_killed_and_the_other_failed(pod):
    watch = pod.start("bash", SCRIPT, "run", "--restart", **SETTINGS)
    eventually(lambda: len(trainings(pod)) == 2)
    eventually(lambda: asked(pod)[-1] == "status" and "start" in asked(pod))
    pod.put("worker1/end", "killed")
    pod.put("worker0/end", "1")
    eventually(lambda: len(trainings(pod)) == 4)
    pod.put("end", "0")
    _, errors = watch.communicate(timeout=20)
    assert watch.returncode == 0, errors
    assert "delete" not in asked(pod)


def test_restart_gives_up_on_a_training_that_fails_by_itself(pod):
    pod.put("end", "1")
    outcome = command(pod, "run", "--restart")
    assert outcome.returncode == 1
    said = "error: the training failed; see: launch/tpu_pod.sh logs"
    assert outcome.stderr.splitlines()[-1] == said
    assert len(trainings(pod)) == 2


def test_restart_begins_again_after_an_earlier_training_was_stopped(pod):
    train(pod)
    succeed(pod, "stop")
    watch = pod.start("bash", SCRIPT, "run", "--restart", **SETTINGS)
    eventually(lambda: len(trainings(pod)) == 4)
    pod.put("end", "0")
    _, errors = watch.communicate(timeout=20)
    assert watch.returncode == 0, errors


def test_restart_watches_a_training_that_is_running_already(pod):
    train(pod)
    watch = pod.start("bash", SCRIPT, "run", "--restart", **SETTINGS)
    before = asked(pod).count("status")
    eventually(lambda: asked(pod).count("status") > before + 1)
    pod.put("end", "0")
    _, errors = watch.communicate(timeout=20)
    assert watch.returncode == 0, errors
    assert len(trainings(pod)) == 2


def test_restart_gives_up_on_a_pod_that_cannot_be_set_up(pod):
    pod.stand_in("gcsfuse", "echo 'bucket does not exist'; exit 1")
    outcome = command(pod, "run", "--restart")
    assert outcome.returncode == 1
    assert "error: the training could not be started in 3 attempts\n" in outcome.stderr
    assert asked(pod).count("install") == 3


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("stop", 0, "stopped"),
        ("delete", 1, "error: pod free4 was deleted by somebody else"),
    ],
)
def test_restart_ends_when_somebody_stops_or_deletes_the_pod(pod, ending, code, said):
    watch = pod.start("bash", SCRIPT, "run", "--restart", **SETTINGS)
    eventually(lambda: len(trainings(pod)) == 2)
    succeed(pod, ending)
    _, errors = watch.communicate(timeout=20)
    assert (watch.returncode, errors.splitlines()[-1][-len(said) :]) == (code, said)


def test_restart_outlives_a_gcloud_that_cannot_be_reached(pod):
    watch = pod.start("bash", SCRIPT, "run", "--restart", **SETTINGS)
    eventually(lambda: len(trainings(pod)) == 2)
    pod.put("errors", "ERROR: no network\n")
    before = len(pod.calls("gcloud"))
    eventually(lambda: len(pod.calls("gcloud")) > before + 3)
    (pod.folder / "errors").unlink()
    pod.put("end", "0")
    _, errors = watch.communicate(timeout=20)
    assert watch.returncode == 0
    assert "error: gcloud cannot describe free4: ERROR: no network\n" in errors
    assert len(trainings(pod)) == 2
