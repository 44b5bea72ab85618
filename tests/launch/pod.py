"""A stand-in for gcloud with one pod of two workers, and calls of launch/tpu_pod.sh.

The pod is a file that holds its state. Its workers are home folders in which commands sent
over `ssh` really run. The training is a command that ends when a file says so.
"""

import re

from stand_ins import eventually

SCRIPT = "launch/tpu_pod.sh"
SETTINGS = {
    "NAME": "free4",
    "ZONE": "us-west4-a",
    "TYPE": "v5litepod-16",
    "VERSION": "v2-alpha-tpuv5-lite",
    "WORKDIR": "gs://runs/a/b",
    "DATA": "gs://data/imagenet",
    "CONFIG": "configs/tiny.py",
    "POLL": "0.05",
}
GCLOUD = r"""
case $4 in
    describe)
        if [ -s "$HOME/errors" ]; then cat "$HOME/errors" >&2; exit 1; fi
        if [ ! -f "$HOME/state" ]; then echo "ERROR: NOT_FOUND: Resource" >&2; exit 1; fi
        cat "$HOME/state" ;;
    create)
        if [ -f "$HOME/full" ]; then rm "$HOME/full"; exit 1; fi
        mkdir -p "$HOME/worker0" "$HOME/worker1"
        echo READY >"$HOME/state" ;;
    delete)
        for pid in "$HOME"/worker?/freeadv_jax_run/pid; do
            kill -KILL -- "-$(<"$pid")" 2>/dev/null
        done
        rm -rf "$HOME/state" "$HOME/worker0" "$HOME/worker1" ;;
    scp) for worker in "$HOME"/worker?; do cat "$5" >"$worker/${5##*/}"; done ;;
    ssh)
        workers=("$HOME"/worker?) code=0
        for option in "$@"; do
            case $option in
                --worker=[0-9]) workers=("$HOME/worker${option#*=}") ;;
                --command=*) command=${option#*=} ;;
            esac
        done
        for worker in "${workers[@]}"; do
            # The end of a connection kills every process of its session.
            (cd "$worker" && HOME=$worker exec setsid bash -c "$command") &
            session=$!
            wait "$session" || code=$?
            kill -KILL -- "-$session" 2>/dev/null
        done
        exit "$code" ;;
esac
"""
# Trains until a file `end` of the pod, or of this worker, says how it ends.
TRAINING = """
trap 'echo saved; exit 0' TERM
pod=${HOME%/*}
echo training
while [ ! -f "$pod/end" ] && [ ! -f "$HOME/end" ]; do sleep 0.02; done
if [ -f "$HOME/end" ]; then
    end=$(<"$HOME/end")
    rm "$HOME/end"
else
    end=$(<"$pod/end")
fi
case $end in
    preempted) echo PREEMPTED >"$pod/state"; kill -KILL 0 ;;
    killed) kill -KILL 0 ;;
    *) exit "$end" ;;
esac
"""


def command(pod, *arguments, **settings):
    return pod.run("bash", SCRIPT, *arguments, **SETTINGS | settings)


def succeed(pod, *arguments, **settings):
    outcome = command(pod, *arguments, **settings)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def asked(pod):
    """Return one word for each call of gcloud, except those that ask for the state."""
    words = []
    for call in pod.calls("gcloud"):
        work = re.search(r"tpu_worker.sh (\w+)", call[-1])
        words.append(work[1] if work else call[4])
    return [word for word in words if word != "describe"]


def trainings(pod):
    return sorted(pod.calls("python"))


def status(pod):
    return [line.split(": ", 1)[1] for line in succeed(pod, "status").splitlines()]


def train(pod, *options):
    succeed(pod, "setup")
    succeed(pod, "run", *options)
    eventually(lambda: len(trainings(pod)) == 2)
