#!/bin/bash
# One GPU, one node or many nodes:   sbatch [--nodes=4 --gpus-per-node=8 ...] slurm/train.sh [ARGUMENTS OF train.py]
#
# It saves and comes back by itself: ahead of the time limit, after a preemption, a requeue, `scancel -s USR1` and the loss
# of a node. slurm/README.md has the picture.
#SBATCH --job-name=resnet-cifar
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x-%j.out
# shellcheck source=slurm/job.sh
. slurm/job.sh 2>/dev/null || { echo "error: $PWD is not the project's folder: cd there, then sbatch slurm/train.sh" >&2; exit 2; }
listen # before SLURM is asked about this job, which can take long
enter_project

# The run directory: named after the job, unless the arguments name one.
folder=''
words=("$@")
for ((i = 0; i < ${#words[@]}; i++)); do
    case ${words[i]} in
    --run) folder=${words[i + 1]:-} ;;
    --run=*) folder=${words[i]#--run=} ;;
    --max?minutes*) fail "${words[i]} would end the job, and the job would be requeued: use sbatch --time" ;;
    esac
done
if [ -z "$folder" ]; then
    folder=$RUNS/$(job_name)
    words+=(--run "$folder")
fi
again=()
for word in "${words[@]}"; do
    [ "$word" = --restart ] || again+=("$word")
done
RESNET_CIFAR_SUBMIT=$(submission slurm/train.sh "${again[@]}")
export RESNET_CIFAR_SUBMIT # for the messages of train.py: the same sbatch command would start a new run
echo "== resumes this run, should the job end early and not be requeued: $RESNET_CIFAR_SUBMIT"

# What RUN/status.json says of this start: running, interrupted, finished, failed, lost; nothing where it is another's.
state() {
    grep -qs "\"job\": \"$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}\"" "$folder/status.json" &&
        sed -n 's/^ "state": "\([a-z]*\)".*/\1/p' "$folder/status.json"
}

inode() { stat -c %i "$folder" 2>/dev/null || echo none; }

# What earlier starts of this job have left for later ones: the folder that they found, where they began, and which of
# them SLURM has ended (those say nothing about progress).
starts=logs/$(job_name).starts
[ -s "$starts" ] || { mkdir -p logs && echo "folder $(inode)" >"$starts"; } || fail "$PWD/logs cannot be written"
# A job starts over once: when --restart has made a new folder, its later starts go on in it.
if [ "$(inode)" != none ] && [ "$(inode)" != "$(sed -n '1s/folder //p' "$starts")" ]; then
    words=("${again[@]}")
fi
count_starts
shape_job
# Images and weights come once, before there are ranks, which then ask nobody.
run_once train.py "${words[@]}" --download-only
code=$?
if [ $code -eq 0 ] && [ -z "$asked" ]; then
    HF_HUB_OFFLINE=1 run_everywhere train.py "${words[@]}"
    code=$?
elif [ $code -eq 138 ] || [ $code -eq 143 ]; then
    code=$ASKED # USR1 or TERM came before Python listened
fi

[ -z "$ended" ] || end_by_slurm
case $(state) in
finished) exit 0 ;;
failed) end_for_good "$(exit_code $code)" ;;
interrupted | lost | running) ;; # running: killed
*)
    # Nothing has begun. A job that has trained before is not wrong in itself, and tries again.
    if [ -z "$asked" ] && [ $code -ne $ASKED ] && { [ $code -eq 0 ] || [ "$begun_at" -eq "$first" ]; }; then
        end_for_good "$(exit_code $code)"
    fi
    ;;
esac
come_again
