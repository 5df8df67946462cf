#!/bin/bash
# torchrun for schedulers that start a node again by its exit code: Kubernetes (trainjob.yaml), SkyPilot (skypilot.yaml).
#
#     containers/train.sh [ARGUMENTS OF train.py] --run DIRECTORY
#
# torchrun reads from PET_NNODES, PET_NODE_RANK, PET_NPROC_PER_NODE, PET_MASTER_ADDR and PET_MASTER_PORT what starts where; Kubeflow sets
# them. Its own exit code is 0 for an interrupted run too, or 1 where it got the signal. Here every node ends with 0 when the run is
# finished, and with 75 when it is to be started again: it was interrupted, or has lost a rank after a new checkpoint (without one it
# may be lost at the same place forever). Otherwise the code is torchrun's.
set -u
cd "$(dirname "$0")/.." || exit

folder=''
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
    --run) folder=${*:i+1:1} ;;
    --run=*) folder=${!i#--run=} ;;
    esac
done
[ -n "$folder" ] || { echo "error: containers/train.sh needs --run: it reads from DIRECTORY/status.json how the run ended" >&2; exit 2; }
newest() { find "$folder/checkpoints" -maxdepth 1 -name 'step-*' 2>/dev/null | grep -E '/step-[0-9]+$' | sort | tail -n 1; }
before=$(cat "$folder/status.json" 2>/dev/null)
saved=$(newest)

# This shell is the container's first process, which gets its signals. They go to the ranks past torchrun: it would pass them on too,
# but not end well, and for it the torchruns of other nodes would wait five minutes (torch 2.15).
# shellcheck disable=SC2329  # called by the trap
tell() {
    asked=yes
    [ -n "$launcher" ] || return
    local ranks
    read -ra ranks < <(cat "/proc/$launcher"/task/*/children 2>/dev/null | tr '\n' ' ')
    kill -TERM "${ranks[@]:-$launcher}"
}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-100} # seconds to save, of the pod's 120
# Nodes that are not there yet, because no machine is free for them, are waited for: torchrun would fail after a quarter of an hour.
export PET_RDZV_CONF=${PET_RDZV_CONF:-timeout=86400}
# One node is its own: torchrun would look for the container's host name, and wait for ever where it is not in /etc/hosts.
case ${PET_NNODES:-1} in 1 | 1:1) export PET_LOCAL_ADDR=${PET_LOCAL_ADDR:-127.0.0.1} ;; esac
asked='' launcher=''
trap tell TERM INT
python -m torch.distributed.run -- train.py "$@" & # without `--`, torchrun would read --run as the beginning of its --run-path
launcher=$!
[ -z "$asked" ] || tell
while wait "$launcher"; code=$?; kill -0 "$launcher" 2>/dev/null; do :; done

has_ended() {
    after=$(cat "$folder/status.json" 2>/dev/null)
    state=$(sed -n 's/^ "state": "\([a-z]*\)".*/\1/p' <<<"$after")
    case $state in
    finished) ;;
    interrupted | lost | failed) [ "$after" != "$before" ] ;;
    *) false ;;
    esac
}
# The first node writes status.json, and others may see it later (a cached bucket). They wait, unless torchrun's own code says enough.
for ((seconds = 0; seconds < 60; seconds += 2)); do
    has_ended || [ "$code" -ne 0 ] || [ -n "$asked" ] || [ "${PET_NODE_RANK:-0}" = 0 ] || { sleep 2 && continue; }
    break
done
case $state in
finished) [ "$code" -ne 0 ] || exit 0 ;;
interrupted) [ "$after" = "$before" ] || exit 75 ;; # otherwise it is an earlier start's: this one has failed before training
lost | running) [ "$(newest)" = "$saved" ] || exit 75 ;; # running: rank 0, which writes the state, was killed
esac
# Asked to end before training: also to be started again.
[ -z "$asked" ] || exit 75
exit $((code > 0 ? code : 1))
