# shellcheck shell=bash disable=SC2034  # job.sh and node.sh read what is set here
# Facts of one cluster. To move to another one, edit this file and no other.
#
# It is read twice: by a job, on every node; and by you, if part 1 has anything in it, before you submit:
#     . slurm/site.sh
#     sbatch slurm/train.sh
# Where a line has `:-`, what is already set in the environment stays, so a user can do without editing.

# 1. What sbatch asks for. sbatch's own command line wins over these, and these over a script's #SBATCH lines.
# export SBATCH_ACCOUNT=my_project
# export SBATCH_PARTITION=gpu
# export SBATCH_QOS=normal
# export SBATCH_TIMELIMIT=12:00:00
# export SBATCH_CONSTRAINT=h100

# 2. Software. Called on every node, in the project's folder, before the first Python.
site_environment() {
    # module purge; module load cuda/12.8
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
# name it here, and every job copies it to its nodes' own disks (one file, by sbcast) and starts Python from there.
# A container image is one file too and needs no archive.
ENVIRONMENT_ARCHIVE=${ENVIRONMENT_ARCHIVE:-}
LOCAL_DISK=${LOCAL_DISK:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}

# 3. Storage that every node sees. Weights and images are fetched into it once, and then read offline.
if [ -n "${SCRATCH:-}" ]; then
    export HF_HOME=${HF_HOME:-$SCRATCH/huggingface}
    export RESNET_CIFAR_CACHE=${RESNET_CIFAR_CACHE:-$SCRATCH/resnet-cifar}
fi
RUNS=${RUNS:-runs}  # run folders of jobs that name none

# 4. Network.
INTERFACE=${INTERFACE:-}  # the fast one (`ip -brief address`), for example ib0; empty: what the head node's name leads to
# export https_proxy=http://proxy.example:3128 no_proxy=localhost
# export NCCL_IB_HCA=mlx5 NCCL_DEBUG=WARN
# export WANDB_MODE=offline          # nodes without a way out; the finished run prints the command that uploads it
# export ACCELERATE_USE_CPU=true     # train on the CPUs, one process for each GPU of the request

# 5. Starts of one job that may end without a new checkpoint before the job gives up; those that SLURM ends do not count.
STARTS_WITHOUT_PROGRESS=${STARTS_WITHOUT_PROGRESS:-3}
