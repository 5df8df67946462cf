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
enter_project
listen

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

# The updates that the newest checkpoint has seen.
saved() {
    local path newest=0
    for path in "$folder"/checkpoints/step-*; do
        [[ $path =~ /step-([0-9]+)$ ]] && ((10#${BASH_REMATCH[1]} > newest)) && newest=$((10#${BASH_REMATCH[1]}))
    done
    echo "$newest"
}

# What RUN/status.json says of this start: running, interrupted, finished, failed, lost; nothing where it is another's.
state() {
    grep -qs "\"job\": \"$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}\"" "$folder/status.json" &&
        sed -n 's/^ "state": "\([a-z]*\)".*/\1/p' "$folder/status.json"
}

inode() { stat -c %i "$folder" 2>/dev/null || echo none; }

# Begins this job again, as soon as there is room for it.
come_again() {
    local facts
    facts=$(show_job)
    if ! is_newest_start "$facts"; then
        echo "== SLURM has begun this job again elsewhere: start $((${SLURM_RESTART_COUNT:-0} + 1)) leaves it alone"
        exit 1
    fi
    # A canceled job is not requeued.
    [[ -z $ended && $facts == *JobState=RUNNING* ]] || exit 1
    echo "== saved at step $(saved), and coming again"
    for _ in {1..6}; do
        timeout 60 scontrol requeue "$(job_number)" && exit 0
        sleep 10
    done
    fail "job $(job_number) cannot be requeued; to resume: $RESNET_CIFAR_SUBMIT"
}

give_up() {
    fail "$STARTS_WITHOUT_PROGRESS starts of this job went no further than step $begun_at (STARTS_WITHOUT_PROGRESS of" \
        "slurm/site.sh): it is not requeued. When the cause is fixed: $RESNET_CIFAR_SUBMIT"
}

end_for_good() {
    [ "$1" -eq 0 ] ||
        echo "== failed with exit code $1 and is not requeued; the reason is the first error after the last \`== job\`." \
            "When it is fixed: $RESNET_CIFAR_SUBMIT"
    exit "$1"
}

# What earlier starts of this job have left for later ones: the folder that they found, where they began, and which of
# them SLURM has ended (those say nothing about progress).
starts=logs/$(job_name).starts
[ -s "$starts" ] || { mkdir -p logs && echo "folder $(inode)" >"$starts"; } || fail "$PWD/logs cannot be written"
# A job starts over once: when --restart has made a new folder, its later starts go on in it.
if [ "$(inode)" != none ] && [ "$(inode)" != "$(sed -n '1s/folder //p' "$starts")" ]; then
    words=("${again[@]}")
fi
begun_at=$(saved)
echo "start ${SLURM_RESTART_COUNT:-0} at $begun_at" >>"$starts"
read -r fruitless first < <(awk '
    /^start/ { number[++count] = $2; step[count] = $4 }
    /^ended/ { ended[$2] = 1 }
    END {
        for (i = 1; i <= count; i++) {
            if (step[i] != step[i - 1]) fruitless = 0
            if (!(number[i] in ended)) fruitless++
        }
        print fruitless, step[1]
    }' "$starts")
[ "$fruitless" -le "$STARTS_WITHOUT_PROGRESS" ] || give_up

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

if [ -n "$ended" ]; then
    echo "ended ${SLURM_RESTART_COUNT:-0}" >>"$starts"
    echo "== ended by SLURM at step $(saved), which starts this job again if it was preempted or requeued;" \
        "otherwise, to resume: $RESNET_CIFAR_SUBMIT"
    exit 1
fi
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
if [ "$(saved)" -eq "$begun_at" ] && [ "$fruitless" -ge "$STARTS_WITHOUT_PROGRESS" ]; then
    give_up
fi
come_again
