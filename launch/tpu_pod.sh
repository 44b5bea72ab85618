#!/usr/bin/env bash
# Trains on a TPU pod slice, all of its workers alike:
#
#   launch/tpu_pod.sh COMMAND [--dry-run]
#
#   create                     the pod
#   setup                      send what is committed here, install it, mount the buckets
#   run [--config.FIELD=VALUE ...]
#                              start the training, which no lost connection ends
#   run --restart [...]        the same, and stay: set up and start anew what was cut off,
#                              on a new pod where a spot pod was taken away
#   status | logs [--follow] | stop | delete
#
# Settings are environment variables:
#
#   NAME, ZONE        of the pod
#   TYPE, VERSION     e.g. v5litepod-16, v2-alpha-tpuv5-lite
#   SPOT              yes: cheaper, and may be taken away at any moment
#   WORKDIR, DATA     folders in buckets, gs://BUCKET/FOLDER
#   CONFIG            a file of configs/, by default configs/imagenet_free4.py
#   WORKER            whose log, by default 0
#   POLL              seconds between two looks of run --restart, by default 60
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    echo "error: $*" >&2
    exit 1
}

note() {
    echo "$(date +%H:%M:%S) $*" >&2
}

execute() { # or say what it would be
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
            fail "$setting=${!setting} is not gs://BUCKET/FOLDER: a pod's disks go with it"
    done
}

# What gcloud calls the pod's state, or NONE.
state() {
    local answer
    if answer=$(gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" \
        --format="value(state)" 2>"$scratch/errors"); then
        echo "$answer"
    elif grep -q NOT_FOUND "$scratch/errors"; then
        echo NONE
    else
        echo "error: gcloud cannot tell of $NAME: $(head -n 1 "$scratch/errors")" >&2
        return 1
    fi
}

need_pod() { # in this state, or in any but NONE
    local now
    [ -z "$dry_run" ] || return 0
    now=$(state) || exit 1
    case ${1:-any}:$now in
        NONE:NONE | READY:READY) ;;
        NONE:*) fail "there is a pod $NAME in $ZONE already; it is $now" ;;
        *:NONE) fail "there is no pod $NAME in $ZONE; make it: launch/tpu_pod.sh create" ;;
        READY:*) fail "pod $NAME is $now, not READY" ;;
    esac
}

on_pod() { # gcloud's command, then its flags
    execute gcloud compute tpus tpu-vm "$1" "$NAME" --zone="$ZONE" "${@:2}"
}

on_workers() { # which, then what tpu_worker.sh shall do
    on_pod ssh --worker="$1" \
        --command="bash freeadv_jax/launch/tpu_worker.sh$(printf ' %q' "${@:2}")"
}

status() {
    on_pod ssh --worker=all --command="[ ! -d freeadv_jax ] ||
        exec bash freeadv_jax/launch/tpu_worker.sh status
        echo not set up: idle"
}

need_no_training() {
    local told
    [ -z "$dry_run" ] || return 0
    told=$(status) || fail "the workers of $NAME cannot be asked"
    [[ $told != *": running"* ]] || fail "a training is running on $NAME; stop it first"
    [[ $1 = setup || $told != *"not set up"* ]] ||
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

# Until the training ends. Each round looks, and does the one next thing to do.
watch() {
    local begun='' anew='' failures=0 now told
    while true; do
        now=$(state) || now=unknown
        told=$now
        if [ "$now" = READY ]; then
            told=$(status) || told="workers cannot be asked"
            # What became of an earlier training does not matter.
            [ -n "$begun" ] || [[ $told = *": running"* ]] || told=": idle"
        fi
        case $told in
            PREEMPTED | TERMINATED)
                note "pod $NAME is $now: making it anew"
                anew=yes begun='' failures=0
                on_pod delete --quiet && continue
                ;;
            NONE)
                [ -n "$anew" ] || fail "pod $NAME is gone: somebody deleted it"
                create && continue
                note "no new pod yet; trying again every $POLL s"
                ;;
            *": running"*) begun=yes ;;
            *": stopped"*)
                note "stopped"
                return
                ;;
            *": idle"* | *": interrupted"*) # Which fails the other workers.
                note "starting the training on $NAME"
                if setup && start; then
                    begun=yes anew='' failures=0
                else
                    failures=$((failures + 1))
                    [ "$failures" -lt 3 ] || fail "the training could not be started, 3 times"
                fi
                ;;
            *": failed"*)
                # A pod that is being taken away may fail before it says so.
                failures=$((failures + 1))
                [ "$failures" -lt 3 ] || fail "the training failed; see: launch/tpu_pod.sh logs"
                ;;
            *": finished"*)
                note "finished; delete the pod: launch/tpu_pod.sh delete"
                return
                ;;
            *) note "pod $NAME: $told" ;;
        esac
        sleep "$POLL"
    done
}

command=${1:-}
case $command in
    create | setup | run | status | logs | stop | delete) shift ;;
    *) fail "unknown command '$command'; allowed: create setup run status logs stop delete" ;;
esac
dry_run='' restart='' follow='' overrides=()
for option in "$@"; do
    case $command:$option in
        *:--dry-run) dry_run=yes ;;
        run:--restart) restart=yes ;;
        run:--config.*) overrides+=("$option") ;;
        logs:--follow) follow=--follow ;;
        *) fail "$command has no option $option; the head of launch/tpu_pod.sh has them all" ;;
    esac
done
[ -n "$dry_run" ] || command -v gcloud >/dev/null ||
    fail "gcloud is missing; install it: https://cloud.google.com/sdk/docs/install"
need NAME ZONE
case $command in create) need TYPE VERSION ;; setup | run) need WORKDIR DATA ;; esac
[ -z "$restart" ] || need TYPE VERSION

CONFIG=${CONFIG:-configs/imagenet_free4.py} POLL=${POLL:-60}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ "$command" = setup ] || [ "$command" = run ]; then
    # One commit, whatever is committed while `run --restart` waits.
    commit=$(git rev-parse HEAD 2>/dev/null) || fail "this is no clone: git finds no commit"
    git cat-file -e "$commit:$CONFIG" 2>/dev/null ||
        fail "CONFIG: $CONFIG is not committed here, and only what is committed is sent"
    [ -z "$(git status --porcelain)" ] || note "note: changes not committed are not sent"
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
