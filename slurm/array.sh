#!/bin/bash
# Many runs, each like slurm/train.sh, some at a time (%N); each task saves, comes back and fails by itself:
#
#     sbatch --array=0-4%2 slurm/array.sh seeds --recipe scratch
#     sbatch --array=0-1   slurm/array.sh recipes finetune,scratch --data.limit 10000
#     sbatch --array=0-5%2 slurm/array.sh list sweep.txt --recipe scratch
#     sbatch --array=0-15%4 slurm/array.sh tune scratch --phases.0.lr 1e-3..1e-1 --trials 40
#
# `seeds`: a task's number is its seed. `recipes`: task 0 takes the first. `list`: a line of the file holds the arguments of a
# task (empty lines and those with # do not count). What follows goes to every task. `tune`: the tasks share the trials of one
# search (docs/sweeps.md), each on all of its GPUs, until none is left.
#SBATCH --job-name=resnet-cifar-array
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%A_%a.out
# shellcheck source=slurm/job.sh
. slurm/job.sh 2>/dev/null || { echo "error: $PWD is not the project's folder: cd there, then sbatch slurm/array.sh" >&2; exit 2; }
enter_project
task=${SLURM_ARRAY_TASK_ID:-}
[ -n "$task" ] || fail "slurm/array.sh is for job arrays: sbatch --array=0-4%2 slurm/array.sh ..."

# The value of option $1 among the words that follow; nothing if it is not given.
option() {
    local name=$1 value=''
    shift
    while [ $# -gt 0 ]; do
        case $1 in
        "$name") value=${2:-} ;;
        "$name"=*) value=${1#*=} ;;
        esac
        shift
    done
    echo "$value"
}

# Trains trials of the search that all tasks share: `resnet-cifar tune WORDS`. Any task resumes what another one has left.
search() {
    local words=("$@") at_once=$SLURM_ARRAY_TASK_COUNT throttle launch code
    [ "$SLURM_JOB_NUM_NODES" -eq 1 ] || fail "--nodes=$SLURM_JOB_NUM_NODES is too many: a trial is trained by one task on one node, so use --nodes=1"
    [ -z "$(option --launch "$@")" ] || fail "--launch is set by the job, which trains on all GPUs of its task: remove it"
    name=$(job_name)
    folder=$(option --run "$@")
    if [ -z "$folder" ]; then
        folder=$RUNS/${name%_*}
        words+=(--run "$folder")
    fi
    throttle=$(timeout 60 scontrol show job "$SLURM_ARRAY_JOB_ID" | sed -n 's/.*ArrayTaskThrottle=\([0-9]*\).*/\1/p' | head -n 1)
    array=0-$((SLURM_ARRAY_TASK_COUNT - 1))${throttle:+%$throttle}
    RESNET_CIFAR_SUBMIT=$(submission slurm/array.sh tune "${words[@]}")
    export RESNET_CIFAR_SUBMIT # for the messages of tune and train.py: the same sbatch command would start a new search
    echo "== resumes this search, should its tasks end early and not be requeued: $RESNET_CIFAR_SUBMIT"
    # Once the search exists it knows how many trials run at once, with whatever number of tasks it is resumed.
    if [ -z "$(option --parallel "$@")" ] && [ ! -f "$folder/base.yaml" ]; then
        words+=(--parallel "$((${throttle:-0} > 0 && throttle < at_once ? throttle : at_once))")
    fi
    starts=logs/$name.starts of=' of all trials'
    count_starts
    shape_job
    choose_port
    launch="python slurm/launch.py --config_file accelerate_configs/multi_node.yaml $LAUNCH_OPTIONS --num_machines 1"
    launch+=" --num_processes $PROCESSES_PER_NODE --machine_rank 0 --main_process_ip 127.0.0.1 --main_process_port $HEAD_PORT"
    run_once -m resnet_cifar tune "${words[@]}" --download-only
    code=$?
    if [ $code -eq 0 ] && [ -z "$asked" ]; then
        HF_HUB_OFFLINE=1 run_once -m resnet_cifar tune "${words[@]}" --launch "$launch"
        code=$?
        [ $code -ne 0 ] || end_for_good 0
    fi
    [ -z "$ended" ] || end_by_slurm
    [ -n "$asked" ] || [ $code -eq $ASKED ] || [ $code -gt 128 ] || end_for_good "$(exit_code $code)" # killed: as after a signal
    come_again
}

if [ "${1:-}" = tune ]; then
    listen
    search "${@:2}"
fi
for word in "$@"; do
    case $word in
    --run | --run=*) fail "$word would put every task into one run directory; each has its own, \$RUNS/NAME-JOB_TASK (sbatch --job-name=NAME)" ;;
    esac
done

# Sets `own` to task's element of the list that follows; $1 says what it is.
choose() {
    local what=$1
    shift
    [ "$task" -lt $# ] || fail "task $task has nothing to do: $what holds $#, so submit with --array=0-$(($# - 1))"
    shift "$task"
    own=$1
}

kind=${1:-}
case $kind in
seeds)
    shift
    words=(--seed "$task")
    ;;
recipes)
    IFS=, read -ra recipes <<<"${2:-}"
    choose "the list of recipes" "${recipes[@]}"
    shift 2
    words=(--recipe "$own")
    ;;
list)
    [ -r "${2:-}" ] || fail "list needs a file with a line of arguments for each task, and ${2:-nothing} cannot be read"
    mapfile -t lines < <(grep -v '^[[:space:]]*\(#\|$\)' "$2")
    choose "$2" "${lines[@]}"
    shift 2
    own=$(xargs printf '%s\n' <<<"$own") || fail "line $((task + 1)) of $2 leaves a quote open: $own" # as in a shell
    mapfile -t words <<<"$own"
    ;;
*) fail "slurm/array.sh takes seeds, recipes NAME,NAME, list FILE or tune RECIPE first, and was given ${1:-nothing}" ;;
esac
echo "== task $task: ${words[*]} $*"
name=$(job_name)
group=${name%"_$task"} # of all tasks on W&B, which refuses longer ones
export WANDB_RUN_GROUP="${WANDB_RUN_GROUP:-${group:0:128}}" WANDB_TAGS="${WANDB_TAGS:-$kind}"
echo "== compare all tasks: resnet-cifar compare $RUNS/${name%"$task"}*"
exec bash slurm/train.sh "$@" "${words[@]}"
