#!/usr/bin/env bash
# Trains, and exits with 143 where SIGTERM came before the end. A training saves and exits
# with 0 then, which every scheduler would take for a finished one.
#
#   bash launch/train.sh --config=configs/imagenet_free4.py --workdir=DIR ...
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

program='' terminated=''
# Handed on, because a container's or a batch system's SIGTERM may reach this shell alone.
trap 'terminated=yes; [ -z "$program" ] || kill -TERM "$program" 2>/dev/null' TERM

python -m freeadv_jax.main "$@" &
program=$!
wait "$program"
code=$?
while kill -0 "$program" 2>/dev/null; do # The trap ended `wait`, not the program.
    wait "$program"
    code=$?
done
[ -z "$terminated" ] || code=143
exit "$code"
