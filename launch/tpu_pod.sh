#!/usr/bin/env bash
# Trains and evaluates on all workers of a TPU pod slice:
#
#   launch/tpu_pod.sh COMMAND [--dry-run]
#
#   create                     create the pod
#   setup                      send the committed files, install them, mount the buckets
#   run [--config.FIELD=VALUE ...]
#                              start the training, which outlives this connection
#   run --restart [...]        start the training and watch it: set up and start it again
#                              after an interruption, on a new pod after a preemption
#   evaluate [--attacks=NAME,... ...]
#                              attack the trained model, with options of freeadv-evaluate
#   status | logs [--follow] | stop | delete
#
# Settings are environment variables:
#
#   NAME, ZONE        the pod's name and zone
#   TYPE, VERSION     e.g. v5litepod-16, v2-alpha-tpuv5-lite
#   SPOT              yes for a cheaper pod that may be preempted at any moment
#   WORKDIR, DATA     folders in buckets, gs://BUCKET/FOLDER
#   CONFIG            a file of configs/, by default configs/imagenet_free4.py
#   WORKER            the number of the worker whose log to show, by default 0
#   POLL              seconds between two checks of run --restart, by default 60
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

note() {
    echo "$(date +%H:%M:%S) $*" >&2
}

execute() { # Or print the command, in a dry run.
    if [ -n "$dry_run" ]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

need() {
    declare -A example=([NAME]=free4 [ZONE]=us-west4-a [TYPE]=v5litepod-16
        [VERSION]=v2-alpha-tpuv5-lite [WORKDIR]=gs://BUCKET/runs/free4
        [DATA]=gs://BUCKET/imagenet)
    local setting
    for setting in "$@"; do
        [ -n "${!setting:-}" ] || fail "$setting is not set, e.g. $setting=${example[$setting]}"
        [[ ! $setting =~ ^(WORKDIR|DATA)$ || ${!setting} =~ ^gs://[^/]+/. ]] ||
            fail "$setting=${!setting} must be gs://BUCKET/FOLDER: a pod's disks are deleted with it"
    done
}

# Print the pod's state as gcloud calls it, or NONE.
state() {
    local answer
    if answer=$(gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" \
        --format="value(state)" 2>"$scratch/errors"); then
        echo "$answer"
    elif grep -q NOT_FOUND "$scratch/errors"; then
        echo NONE
    else
        echo "error: gcloud cannot describe $NAME: $(head -n 1 "$scratch/errors")" >&2
        return 1
    fi
}

need_pod() { # Takes the state it must have; by default any but NONE.
    local now
    [ -z "$dry_run" ] || return 0
    now=$(state) || exit 1
    case ${1:-any}:$now in
        NONE:NONE | READY:READY) ;;
        NONE:*) fail "pod $NAME exists already in $ZONE and is $now" ;;
        *:NONE) fail "pod $NAME does not exist in $ZONE; create it: launch/tpu_pod.sh create" ;;
        READY:*) fail "pod $NAME is $now: must be READY" ;;
    esac
}

on_pod() { # Takes a command of gcloud, then its flags.
    execute gcloud compute tpus tpu-vm "$1" "$NAME" --zone="$ZONE" "${@:2}"
}

on_workers() { # Takes the worker or `all`, then a command of tpu_worker.sh.
    on_pod ssh --worker="$1" \
        --command="bash freeadv_jax/launch/tpu_worker.sh$(printf ' %q' "${@:2}")"
}

status() {
    on_pod ssh --worker=all --command="[ ! -d freeadv_jax ] ||
        exec bash freeadv_jax/launch/tpu_worker.sh status
        echo not set up: idle"
}

need_no_training() {
    local answer
    [ -z "$dry_run" ] || return 0
    answer=$(status) || fail "the workers of $NAME do not answer"
    [[ $answer != *": running"* ]] || fail "a training is running on $NAME; stop it first"
    [[ $1 = setup || $answer != *"not set up"* ]] ||
        fail "$NAME is not set up: launch/tpu_pod.sh setup"
}

create() {
    on_pod create --accelerator-type="$TYPE" --version="$VERSION" ${SPOT:+--spot} \
        --scopes=https://www.googleapis.com/auth/cloud-platform
}

setup() {
    local tree="$scratch/freeadv_jax.tar.gz"
    execute git archive --format=tar.gz --output="$tree" "$commit" &&
        execute gcloud compute tpus tpu-vm scp "$tree" "$NAME:" --zone="$ZONE" --worker=all &&
        on_pod ssh --worker=all --command="rm -rf freeadv_jax && mkdir freeadv_jax &&
            tar -xzf freeadv_jax.tar.gz -C freeadv_jax" &&
        on_workers all install "$WORKDIR" "$DATA"
}

start() {
    on_workers all start --config="$CONFIG" --workdir="$WORKDIR" \
        --config.data.dir="$DATA" "${overrides[@]}"
}

evaluate() {
    on_workers all start evaluate --workdir="$WORKDIR" --data="$DATA" "${overrides[@]}"
}

# Watch until the training ends. Each round checks the pod and takes one step.
watch() {
    local begun='' recreating='' failures=0 now answer
    while true; do
        now=$(state) || now=unknown
        answer=$now
        if [ "$now" = READY ]; then
            answer=$(status) || answer="the workers do not answer"
            # The end of an earlier training does not matter.
            [ -n "$begun" ] || [[ $answer = *": running"* ]] || answer=": idle"
        fi
        case $answer in
            PREEMPTED | TERMINATED)
                note "pod $NAME is $now: creating it again"
                recreating=yes begun='' failures=0
                on_pod delete --quiet && continue
                ;;
            NONE)
                [ -n "$recreating" ] || fail "pod $NAME was deleted by somebody else"
                create && continue
                note "the pod could not be created; trying again every $POLL s"
                ;;
            *": running"*) begun=yes ;;
            *": stopped"*)
                note "stopped"
                return
                ;;
            *": idle"* | *": interrupted"*) # Before "failed": one interrupted worker fails the others.
                note "starting the training on $NAME"
                if setup && start; then
                    begun=yes recreating='' failures=0
                else
                    failures=$((failures + 1))
                    [ "$failures" -lt 3 ] || fail "the training could not be started in 3 attempts"
                fi
                ;;
            *": failed"*)
                # The training may fail before gcloud reports the preemption of its pod.
                failures=$((failures + 1))
                [ "$failures" -lt 3 ] || fail "the training failed; see: launch/tpu_pod.sh logs"
                ;;
            *": finished"*)
                note "finished; delete the pod: launch/tpu_pod.sh delete"
                return
                ;;
            *) note "pod $NAME: $answer" ;;
        esac
        sleep "$POLL"
    done
}

command=${1:-}
case $command in
    create | setup | run | evaluate | status | logs | stop | delete) shift ;;
    *) fail "command '$command' is unknown; allowed: create setup run evaluate status logs stop delete" ;;
esac
dry_run='' restart='' follow='' overrides=()
for option in "$@"; do
    case $command:$option in
        *:--dry-run) dry_run=yes ;;
        run:--restart) restart=yes ;;
        run:--config.* | evaluate:--*) overrides+=("$option") ;;
        logs:--follow) follow=--follow ;;
        *) fail "option $option of $command is unknown; the head of launch/tpu_pod.sh lists them" ;;
    esac
done
[ -n "$dry_run" ] || command -v gcloud >/dev/null ||
    fail "gcloud is missing; install it: https://cloud.google.com/sdk/docs/install"
need NAME ZONE
case $command in create) need TYPE VERSION ;; setup | run | evaluate) need WORKDIR DATA ;; esac
[ -z "$restart" ] || need TYPE VERSION

CONFIG=${CONFIG:-configs/imagenet_free4.py} POLL=${POLL:-60}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ "$command" = setup ] || [ "$command" = run ]; then
    # `run --restart` sends the same commit each time, even if there are newer ones.
    commit=$(git rev-parse HEAD 2>/dev/null) || fail "$PWD must be a clone: git finds no commit"
    git cat-file -e "$commit:$CONFIG" 2>/dev/null ||
        fail "CONFIG is $CONFIG, which is not committed: only committed files are sent"
    [ -z "$(git status --porcelain)" ] || note "note: changes that are not committed are not sent"
fi

case $command in
    create)
        need_pod NONE
        create
        ;;
    setup)
        need_pod READY
        need_no_training setup
        setup
        ;;
    run)
        if [ -n "$dry_run" ]; then
            start
            if [ -n "$restart" ]; then
                echo "# after a preemption:"
                on_pod delete --quiet
                create
                setup
                start
            fi
        elif [ -n "$restart" ]; then
            need_pod
            watch
        else
            need_pod READY
            need_no_training run
            start || fail "not every worker started; stop the others: launch/tpu_pod.sh stop"
        fi
        ;;
    evaluate)
        need_pod READY
        need_no_training evaluate
        evaluate || fail "not every worker started; stop the others: launch/tpu_pod.sh stop"
        ;;
    status)
        need_pod READY
        status
        ;;
    stop)
        need_pod READY
        on_workers all stop
        ;;
    logs)
        need_pod READY
        on_workers "${WORKER:-0}" logs ${follow:+"$follow"}
        ;;
    delete)
        need_pod
        on_pod delete --quiet
        ;;
esac
