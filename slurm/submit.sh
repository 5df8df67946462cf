#!/bin/bash
# sbatch, after a check of the recipe here on the login node; nothing is submitted where it is wrong:
#
#     slurm/submit.sh --nodes=4 --gpus-per-node=8 slurm/train.sh --recipe scratch
#
# The words are those of sbatch. Of slurm/array.sh, `seeds` and `recipes` are checked; other scripts are submitted as they are.
# shellcheck source=slurm/job.sh
. slurm/job.sh 2>/dev/null || { echo "error: $PWD is not the project's folder: cd there, then slurm/submit.sh" >&2; exit 2; }
# shellcheck source=slurm/site.sh
. slurm/site.sh

# sbatch's options, up to the script; of them the number of processes.
nodes=1 gpus=${SBATCH_GPUS_PER_NODE:-1} script='' words=("$@")
while [ $# -gt 0 ] && [ -z "$script" ]; do
    case $1 in
    --nodes | -N) nodes=${2:-} ;;
    --nodes=*) nodes=${1#*=} ;;
    -N*) nodes=${1#-N} ;;
    --gpus-per-node) gpus=${2:-} ;;
    --gpus-per-node=*) gpus=${1#*=} ;;
    *.sh) script=$1 ;;
    esac
    shift
done
[ -n "$script" ] || fail "no script is named: slurm/submit.sh [OPTIONS OF sbatch] slurm/train.sh [ARGUMENTS OF train.py]"
nodes=${nodes%%-*} gpus=${gpus##*:} # of 2-4 the fewest; of h100:8 the number
[[ $nodes =~ ^[1-9][0-9]*$ && $gpus =~ ^[1-9][0-9]*$ ]] ||
    fail "--nodes=$nodes and --gpus-per-node=$gpus should be numbers, 1 or more, for the recipe to be checked: or call sbatch"

check() {
    (
        site_environment
        PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} exec "${CONTAINER[@]}" python train.py "$@" --check-for $((nodes * gpus))
    ) || exit
}

case $script:${1:-} in
*/train.sh:*) check "$@" ;;
*/array.sh:seeds) check "${@:2}" ;;
*/array.sh:recipes)
    IFS=, read -ra recipes <<<"${2:-}"
    for recipe in "${recipes[@]}"; do
        check "${@:3}" --recipe "$recipe"
    done
    ;;
esac
exec sbatch "${words[@]}"
