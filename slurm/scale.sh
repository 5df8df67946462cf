#!/bin/bash
# Measures how training scales, from one device to all of this job's, and predicts larger numbers (docs/scaling.md):
#     sbatch --nodes=4 --gpus-per-node=8 slurm/scale.sh [--recipe scratch] [--out DIR] [ARGUMENTS OF resnet-cifar scale]
# One node with 1, 2, 4, ... devices, then 2, 4, ... nodes. DIR is runs/NAME-JOB unless the arguments name one.
#SBATCH --job-name=resnet-cifar-scale
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=8
#SBATCH --time=01:00:00
#SBATCH --output=logs/%x-%j.out
# shellcheck source=slurm/job.sh
. slurm/job.sh 2>/dev/null || { echo "error: $PWD is not the project's folder: cd there, then sbatch slurm/scale.sh" >&2; exit 2; }
enter_project
listen
words=("$@")
out=''
for ((i = 0; i < ${#words[@]}; i++)); do
    case ${words[i]} in
    --out) out=${words[i + 1]:-} ;;
    --out=*) out=${words[i]#--out=} ;;
    --processes | --processes=* | --launched) fail "${words[i]} is for one machine: here sbatch --nodes and --gpus-per-node say how many" ;;
    esac
done
if [ -z "$out" ]; then
    out=$RUNS/$(job_name)
    words+=(--out "$out")
fi
shape_job

# The powers of two up to $1, and $1 itself.
up_to() {
    local number
    for ((number = 1; number < $1; number *= 2)); do echo "$number"; done
    echo "$1"
}

# Ends the job if a measurement failed or a signal came; what was measured before is kept in $out. After a mistake (2) of one
# number only, over which the batch does not divide, others are still measured.
measured=''
check() {
    [ -z "$asked$ended" ] || { echo "== ended by a signal; what was measured is in $out"; exit 1; }
    local code
    code=$(exit_code "$1")
    case $code:$measured in
    0:*) measured=yes ;;
    2:yes) echo "== not measured, for the reason above: $2 processes" ;;
    *) exit "$code" ;;
    esac
}

# Measures $2 processes on each of $1 nodes: the first of the job, so that the head node is among them.
options=("${SRUN_OPTIONS[@]}")
measure() {
    SRUN_OPTIONS=("${options[@]}" "--nodelist=$(IFS=,; echo "${hosts[*]:0:$1}")")
    SLURM_JOB_NUM_NODES=$1 STARTED_PER_NODE=$2 run_everywhere -m resnet_cifar scale --launched "${words[@]}"
    check $? $(($1 * $2))
}

for processes in $(up_to "$PROCESSES_PER_NODE"); do measure 1 "$processes"; done
for nodes in $(up_to "$SLURM_JOB_NUM_NODES"); do
    [ "$nodes" -eq 1 ] || measure "$nodes" "$PROCESSES_PER_NODE"
done
echo "== $out/index.html"
