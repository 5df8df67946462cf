#!/bin/bash
# What srun starts on every node: `accelerate launch` (by launch.py), and the way of a signal to its processes.
#
# SLURM signals this shell only. The launcher would die of USR1, and cut a save short after TERM; so the signal goes past
# it to the processes that it started: they agree on a step, save and end well, and then so does the launcher.
requested=''
trap 'requested=${requested:-USR1}' USR1
trap 'requested=${requested:-TERM}' TERM
# shellcheck source=slurm/job.sh
. slurm/job.sh
# shellcheck source=slurm/site.sh
. slurm/site.sh

fail() {
    echo "error: $*" >&2
    exit $((FAILED + 2))
}

find_python() {
    [ ${#CONTAINER[@]} -gt 0 ] || command -v python >/dev/null ||
        fail "there is no python on $SLURMD_NODENAME: say in slurm/site.sh (site_environment) where the environment is"
}

site_environment
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} RUNS LOCAL_DISK
if [ "$1" = --once ]; then
    shift
    find_python
    [ -z "$requested" ] || exit $ASKED
    trap - USR1 TERM
    exec "${CONTAINER[@]}" python "$@"
fi
if [ -n "$ENVIRONMENT_ARCHIVE" ]; then
    trap 'rm -rf "$LOCAL_ENVIRONMENT" "$LOCAL_ENVIRONMENT.tar"' EXIT
    { mkdir -p "$LOCAL_ENVIRONMENT" && tar -C "$LOCAL_ENVIRONMENT" -xf "$LOCAL_ENVIRONMENT.tar"; } ||
        fail "ENVIRONMENT_ARCHIVE $ENVIRONMENT_ARCHIVE cannot be unpacked in LOCAL_DISK $LOCAL_DISK of $SLURMD_NODENAME"
    PATH=$LOCAL_ENVIRONMENT/bin:$PATH
fi
find_python
gpus=$(count_gpus)
[ "$((gpus > 0 ? gpus : 1))" -eq "$PROCESSES_PER_NODE" ] ||
    fail "$SLURMD_NODENAME got $gpus GPUs and $HEAD_NODE $PROCESSES_PER_NODE: ask with --gpus-per-node, not --gpus"

# The processes that the launcher has started: each leads a session of its own.
# shellcheck disable=SC2329  # called by tell
workers() {
    local pid fields
    while read -r pid; do
        fields=$(cat "/proc/$pid/stat" 2>/dev/null) || continue
        read -ra fields <<<"${fields##*) }" # state, parent, group, session, ...
        if [ "${fields[3]}" = "$pid" ]; then
            echo "$pid"
        else
            workers "$pid"
        fi
    done < <(cat "/proc/$1"/task/*/children 2>/dev/null | tr ' ' '\n')
}

# Passes a signal on, as soon as there are processes. A process that is signaled twice ends at once, so nothing else may signal it.
# shellcheck disable=SC2329  # called by traps
tell() {
    local pids=() tries=0
    requested=$1
    trap : USR1 TERM
    until [ ${#pids[@]} -gt 0 ] || ! kill -0 "$launcher" 2>/dev/null; do
        sleep 0.2
        mapfile -t pids < <(workers "$launcher")
        tries=$((tries + 1))
        [ $tries -ne 300 ] || echo "warning: $SLURMD_NODENAME has found no process to pass $1 to in a minute"
    done
    [ ${#pids[@]} -eq 0 ] || kill "-$1" "${pids[@]}"
}

[ -z "$requested" ] || exit $ASKED
# shellcheck disable=SC2086  # LAUNCH_OPTIONS are words
"${CONTAINER[@]}" python slurm/launch.py --config_file accelerate_configs/multi_node.yaml $LAUNCH_OPTIONS \
    --num_machines "$SLURM_JOB_NUM_NODES" --num_processes $((SLURM_JOB_NUM_NODES * ${STARTED_PER_NODE:-PROCESSES_PER_NODE})) \
    --machine_rank "$SLURM_NODEID" --main_process_ip "$HEAD_NODE" --main_process_port "$HEAD_PORT" "$@" &
launcher=$!
trap 'tell USR1' USR1
trap 'tell TERM' TERM
[ -z "$requested" ] || tell "$requested"
await "$launcher"
code=$?
[ $code -ne 0 ] || exit 0
[ -z "$requested" ] || exit $ASKED
# srun kills the other nodes when this one ends: first rank 0, on node 0, finds out and says who failed. When it is this one's
# turn it goes at once: SLURM repeats a TERM that takes long, and would hit the job's next start.
exit_with=$((code < 50 ? FAILED + code : FAILED + 1))
trap 'exit $exit_with' TERM
if [ "$SLURM_NODEID" -ne 0 ]; then
    sleep 15 &
    wait $!
fi
if command -v scontrol >/dev/null && ! is_newest_start "$(show_job)"; then
    sleep 600 & # srun would kill the newest start's step; SLURM ends this one when it has found its node again
    wait $!
fi
exit $exit_with
