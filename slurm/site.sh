# shellcheck shell=bash disable=SC2034  # job.sh and node.sh read what is set here
# Your cluster's settings. To move to another cluster, edit this file and no other.
#
# Jobs read it on every node. Read it yourself too, in every new bash on a login node, before you submit or fetch:
#     . slurm/site.sh
# Where a line has `:-`, a value that is set already stays: you may set it in your shell instead. So after an edit here,
# take a new shell.

# 1. What sbatch asks for. sbatch's own command line wins over these, and these over a script's #SBATCH lines, in all scripts
# (so leave the time limit to the command line: check.sh wants five minutes).
# export SBATCH_ACCOUNT=my_project
# export SBATCH_PARTITION=gpu
# export SBATCH_QOS=normal
# export SBATCH_CONSTRAINT=h100
# export SBATCH_GPUS_PER_NODE=h100:1 SBATCH_CPUS_PER_GPU=8 SBATCH_MEM_PER_GPU=60G
# export SBATCH_SIGNAL=B:USR1@600    # ten minutes to save, not three

# 2. Software. Called on every node, in the project's folder, before the first Python.
site_environment() {
    # source /etc/profile.d/modules.sh; module purge; module load cuda/12.8
    # source /opt/conda/bin/activate resnet
    if [ -x .venv/bin/python ]; then
        PATH=$PWD/.venv/bin:$PATH
    fi
}
# A container: words that are put before `python`, or (pyxis and enroot) options of srun. The project's folder, runs and
# scratch must be visible in it. The batch script itself stays outside: it needs scontrol.
CONTAINER=()     # (apptainer exec --nv --bind "$PWD" /images/pytorch.sif)
SRUN_OPTIONS=()  # (--container-image=/images/pytorch.sqsh --container-mounts="$PWD" --container-workdir="$PWD")
# A thousand ranks that import torch from one file server can wait minutes for it. Pack the environment once,
#     tar -C .venv -cf /scratch/me/env.tar .
# name it here, and every job copies it to its nodes' own disks (one file, by sbcast) and starts its ranks from there. What is one
# process a job still starts from site_environment: the download, and a search of slurm/array.sh with its trials.
# A container image is one file too and needs no archive.
ENVIRONMENT_ARCHIVE=${ENVIRONMENT_ARCHIVE:-}
LOCAL_DISK=${LOCAL_DISK:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}

# 3. Storage that every node sees. Weights and images are fetched into it once, and then read offline. Without SCRATCH they go
# to ~/.cache, and runs into the project's folder.
if [ -n "${SCRATCH:-}" ]; then
    export HF_HOME=${HF_HOME:-$SCRATCH/huggingface}
    export RESNET_CIFAR_CACHE=${RESNET_CIFAR_CACHE:-$SCRATCH/resnet-cifar}
fi
RUNS=${RUNS:-runs}  # run directories of jobs that name none

# 4. Network.
INTERFACE=${INTERFACE:-}  # the fast one (`ip -brief address` on a compute node), such as ib0; empty: as names are resolved
# export https_proxy=http://proxy.example:3128 no_proxy=localhost
# export NCCL_IB_HCA=mlx5 NCCL_DEBUG=WARN
# export WANDB_MODE=offline          # nodes without a way out; the finished run prints the command that uploads it
# export ACCELERATE_USE_CPU=true     # train on CPUs
LAUNCH_OPTIONS=${LAUNCH_OPTIONS:-}  # more words for `accelerate launch`, such as --dynamo_backend inductor

# 5. Starts of one job that may end without a new checkpoint before the job gives up; those that SLURM ends do not count.
STARTS_WITHOUT_PROGRESS=${STARTS_WITHOUT_PROGRESS:-3}
