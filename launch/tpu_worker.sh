#!/usr/bin/env bash
# Runs on every worker of a TPU pod, called by tpu_pod.sh. It reads and writes gs:// paths
# through a mount of their bucket under ~/gs.
#
#   tpu_worker.sh install GS_PATH... | start [evaluate] FLAG... | status | logs [--follow] |
#       stop
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

host=$(hostname)
environment=$HOME/freeadv_jax_environment
folder=$HOME/freeadv_jax_run # The training's process ID, exit code and log.
mkdir -p "$folder"

fail() {
    echo "error: $host: $*" >&2
    exit 1
}

running() {
    [ -f "$folder/pid" ] && kill -0 -- "-$(<"$folder/pid")" 2>/dev/null
}

mount_bucket_of() {
    local bucket=${1#gs://}
    bucket=${bucket%%/*}
    local point=$HOME/gs/$bucket
    ! mountpoint --quiet "$point" || return 0
    mkdir -p "$point"
    # Metadata are not cached, so that a worker immediately sees the files that another one
    # wrote. Renaming folders is allowed, because a complete checkpoint is renamed.
    gcsfuse --implicit-dirs --rename-dir-limit=10000 --metadata-cache-ttl-secs=0 \
        --metadata-cache-negative-ttl-secs=0 "$bucket" "$point" >"$folder/mount.log" 2>&1 ||
        fail "gs://$bucket cannot be mounted: $(tail -n 1 "$folder/mount.log")"
}

install() {
    if ! command -v gcsfuse >/dev/null; then
        local key=/usr/share/keyrings/cloud.google.asc
        curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg |
            sudo tee "$key" >/dev/null
        echo "deb [signed-by=$key] https://packages.cloud.google.com/apt" \
            "gcsfuse-$(lsb_release --codename --short) main" |
            sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
        # Wait for the lock: a new machine often updates itself.
        sudo apt-get -o DPkg::Lock::Timeout=600 -qq update
        sudo apt-get -o DPkg::Lock::Timeout=600 -qq install --yes gcsfuse
    fi
    for path in "$@"; do
        mount_bucket_of "$path"
    done
    # uv brings a Python of its own, because the machine's may be too old.
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --allow-existing --python 3.11 "$environment"
    python3 -m uv pip install --quiet --python "$environment" '.[tpu,imagenet]'
    echo "$host: ready"
}

start() {
    if running; then # ssh repeats a command when its connection breaks.
        echo "$host: running (pid $(<"$folder/pid"))"
        return
    fi
    local job=(launch/train.sh) flags=()
    if [ "${1:-}" = evaluate ]; then
        job+=(evaluate)
        shift
    fi
    for flag in "$@"; do
        [[ $flag != *=gs://* ]] || mount_bucket_of "${flag#*=}"
        flags+=("${flag/=gs:\/\//=$HOME/gs/}")
    done
    rm -f "$folder/exit_code" "$folder/stopped"
    export PATH="$environment/bin:$PATH"
    # A session of its own outlives the connection.
    # shellcheck disable=SC2016 # The inner shell expands these variables.
    setsid bash -c 'trap : TERM
        bash "${@:2}"
        echo $? >"$1/exit_code"' bash "$folder" "${job[@]}" --multihost "${flags[@]}" \
        </dev/null >"$folder/log" 2>&1 &
    echo $! >"$folder/pid"
    # Until `setsid` has run, the end of the connection would end the training too, and
    # `status` would call it interrupted.
    until running || ! kill -0 "$!" 2>/dev/null; do
        sleep 0.05
    done
    echo "$host: running (pid $!)"
}

status() {
    local answer=idle code
    if running; then
        answer="running (pid $(<"$folder/pid"))"
    elif [ -f "$folder/exit_code" ]; then
        code=$(<"$folder/exit_code")
        case $code in
            0) answer=finished ;;
            143) answer=interrupted ;;
            *) answer="failed with exit code $code" ;;
        esac
        [ "$code" != 143 ] || [ ! -f "$folder/stopped" ] || answer=stopped
    elif [ -f "$folder/pid" ]; then
        answer=interrupted # Without an exit code, the machine itself went down.
    fi
    echo "$host: $answer"
}

logs() {
    [ -f "$folder/log" ] || fail "no training was started here yet"
    tail -n 50 ${1:+--follow=name} "$folder/log"
}

stop() {
    if running; then
        touch "$folder/stopped"
        kill -TERM -- "-$(<"$folder/pid")"
        for _ in {1..600}; do # It saves before it ends.
            running || break
            sleep 0.5
        done
        ! running || fail "the training has not ended 300 s after SIGTERM"
    fi
    status
}

case ${1:-} in
    install | start | status | logs | stop) "$@" ;;
    *) fail "unknown command '${1:-}'" ;;
esac
