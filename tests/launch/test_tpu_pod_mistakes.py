"""Every mistake with launch/tpu_pod.sh gets one clear line."""

import re

import pytest
from pod import asked, command, train, trainings

MISSING = "{0} is not set, e.g. {0}={1}"
COMMANDS = "allowed: create setup run evaluate status logs stop delete"
NO_POD = "pod free4 does not exist in us-west4-a; create it: launch/tpu_pod.sh create"


@pytest.mark.parametrize(
    ("arguments", "settings", "error"),
    [
        ([], {}, f"command '' is unknown; {COMMANDS}"),
        (["go"], {}, f"command 'go' is unknown; {COMMANDS}"),
        (["stop"], {"NAME": ""}, MISSING.format("NAME", "free4")),
        (["stop"], {"ZONE": ""}, MISSING.format("ZONE", "us-west4-a")),
        (["create"], {"TYPE": ""}, MISSING.format("TYPE", "v5litepod-16")),
        (["run", "--restart"], {"VERSION": ""}, "VERSION is not set, e.g. "),
        (["setup"], {"WORKDIR": ""}, "WORKDIR is not set, e.g. WORKDIR=gs://"),
        (
            ["run"],
            {"DATA": "/data"},
            "DATA=/data must be gs://BUCKET/FOLDER: a pod's disks are deleted with it",
        ),
        (
            ["run"],
            {"CONFIG": "configs/none.py"},
            "CONFIG is configs/none.py, which is not committed: only committed files",
        ),
        (["run", "config.a=1"], {}, "option config.a=1 of run is unknown; "),
        (["stop", "--restart"], {}, "option --restart of stop is unknown; "),
        (["evaluate", "fgsm"], {}, "option fgsm of evaluate is unknown; "),
        (
            ["evaluate"],
            {"WORKDIR": "/runs"},
            "WORKDIR=/runs must be gs://BUCKET/FOLDER",
        ),
    ],
)
def test_a_mistake_gets_one_line_and_calls_no_command(pod, arguments, settings, error):
    outcome = command(pod, *arguments, **settings)
    assert outcome.returncode == 1
    assert outcome.stderr.startswith(f"error: {error}")
    assert outcome.stderr.count("\n") == 1
    assert pod.calls() == []


@pytest.mark.parametrize(
    ("arguments", "state", "error"),
    [
        (
            ["create"],
            "READY",
            "pod free4 exists already in us-west4-a and is READY",
        ),
        (["setup"], None, NO_POD),
        (["run"], None, NO_POD),
        (["evaluate"], None, NO_POD),
        (["run", "--restart"], None, NO_POD),
        (["status"], None, NO_POD),
        (["delete"], None, NO_POD),
        (["status"], "PREEMPTED", "pod free4 is PREEMPTED: must be READY"),
        (["run"], "READY", "free4 is not set up: launch/tpu_pod.sh setup"),
    ],
)
def test_a_pod_in_the_wrong_state_gets_one_line(pod, arguments, state, error):
    (pod.folder / "state").unlink()
    if state:
        pod.put("state", state)
    outcome = command(pod, *arguments)
    assert (outcome.returncode, outcome.stderr) == (1, f"error: {error}\n")
    assert set(asked(pod)) <= {"status"}  # Nothing but the state is asked for.


@pytest.mark.parametrize("work", ["run", "setup"])
def test_a_running_training_is_not_disturbed(pod, work):
    train(pod)
    outcome = command(pod, work)
    error = "error: a training is running on free4; stop it first\n"
    assert (outcome.returncode, outcome.stderr) == (1, error)
    assert len(trainings(pod)) == 2


def test_an_error_of_gcloud_is_passed_on_in_one_line(pod):
    pod.put("errors", "ERROR: no account\n\n$ gcloud auth login\n")
    outcome = command(pod, "status")
    error = "error: gcloud cannot describe free4: ERROR: no account\n"
    assert (outcome.returncode, outcome.stderr) == (1, error)


def test_without_gcloud_the_message_says_where_to_get_it(pod):
    pod.commands.joinpath("gcloud").unlink()
    outcome = command(pod, "status")
    url = "https://cloud.google.com/sdk/docs/install"
    error = f"error: gcloud is missing; install it: {url}\n"
    assert (outcome.returncode, outcome.stderr) == (1, error)


def test_a_bucket_that_cannot_be_mounted_is_named(pod):
    pod.stand_in("gcsfuse", "echo 'bucket does not exist'; exit 1")
    outcome = command(pod, "setup")
    assert outcome.returncode == 1
    error = "gs://runs cannot be mounted: bucket does not exist\n"
    assert re.search(f"error: .*: {error}", outcome.stderr)
