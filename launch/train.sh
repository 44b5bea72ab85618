#!/usr/bin/env bash
# Trains or evaluates, and exits with status 143 if SIGTERM ended that early. A training
# itself then saves and exits with status 0, which a scheduler would take for a finished run.
#
#   bash launch/train.sh --config=configs/imagenet_free4.py --workdir=DIR ...
#   bash launch/train.sh evaluate --workdir=DIR ...
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

program='' terminated=''
# Forward SIGTERM: a container or a batch system may send it to this shell alone.
trap 'terminated=yes; [ -z "$program" ] || kill -TERM "$program" 2>/dev/null' TERM

module=main
if [ "${1:-}" = evaluate ]; then
    module=evaluate
    shift
fi
python -m "freeadv_jax.$module" "$@" &
program=$!
wait "$program"
code=$?
while kill -0 "$program" 2>/dev/null; do # The trap ended `wait`, but not the program.
    wait "$program"
    code=$?
done
[ -z "$terminated" ] || code=143
exit "$code"
