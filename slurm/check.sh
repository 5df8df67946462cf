#!/bin/bash
# Looks a cluster over in a minute, with the nodes and devices that training will have:
#     sbatch --nodes=2 --gpus-per-node=8 slurm/check.sh
#SBATCH --job-name=resnet-cifar-check
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=8
#SBATCH --time=00:05:00
#SBATCH --output=logs/%x-%j.out
# shellcheck source=slurm/job.sh
. slurm/job.sh 2>/dev/null || { echo "error: $PWD is not the project's folder: cd there, then sbatch slurm/check.sh" >&2; exit 2; }
enter_project
listen
shape_job
settings=$(timeout 60 scontrol show config)
setting() { sed -n "s/^$1 *= *//p" <<<"$settings"; }
tracking=$(setting ProctrackType)
echo "slurm      $(scontrol --version), $tracking, $(setting KillWait) between TERM and KILL, preemption: $(setting PreemptMode)"
[ "$tracking" = proctrack/cgroup ] ||
    echo "warning: $tracking also signals the launcher, which may end before its processes have saved: use proctrack/cgroup"
[ "$(setting SignalChildrenProcesses)" != yes ] ||
    echo "warning: SignalChildrenProcesses of cgroup.conf signals the launcher and the ranks too: set it to no"
[ "$(setting JobRequeue)" = 1 ] || echo "warning: JobRequeue is off: jobs come back only where sbatch --requeue is allowed"
LAUNCH_OPTIONS="$LAUNCH_OPTIONS --rdzv_conf timeout=60" run_everywhere slurm/check.py
exit "$(exit_code $?)"
