#!/bin/bash
# Scores a run on as many devices as are asked for:   sbatch slurm/eval.sh runs/big [ARGUMENTS OF eval.py]
#SBATCH --job-name=resnet-cifar-eval
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=8
#SBATCH --time=00:30:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.out
# shellcheck source=slurm/job.sh
. slurm/job.sh 2>/dev/null || { echo "error: $PWD is not the project's folder: cd there, then sbatch slurm/eval.sh" >&2; exit 2; }
enter_project
listen
shape_job
run_everywhere eval.py "$@"
exit "$(exit_code $?)"
