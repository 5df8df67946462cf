#!/bin/bash
# Many runs, each like slurm/train.sh, some at a time (%N); each task saves, comes back and fails by itself:
#
#     sbatch --array=0-4%2 slurm/array.sh seeds --recipe scratch
#     sbatch --array=0-1   slurm/array.sh recipes finetune,scratch --data.limit 10000
#     sbatch --array=0-5%2 slurm/array.sh list sweep.txt --recipe scratch
#
# `seeds`: a task's number is its seed. `recipes`: task 0 takes the first. `list`: a line of the file holds the arguments of a
# task (empty lines and those with # do not count). What follows goes to every task.
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

case ${1:-} in
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
*) fail "slurm/array.sh takes seeds, recipes NAME,NAME or list FILE first, and was given ${1:-nothing}" ;;
esac
echo "== task $task: ${words[*]} $*"
name=$(job_name)
echo "== compare all tasks: resnet-cifar compare $RUNS/${name%"$task"}*"
exec bash slurm/train.sh "$@" "${words[@]}"
