# shellcheck shell=bash disable=SC2034,SC2154  # the scripts that read this one use and set variables
# What the batch scripts and node.sh share: the shape of a job, steps, signals, its starts, and whether one is still the newest.

# Exit codes of node.sh. srun ends with the highest of all nodes', so a failure outdoes what it made others do.
ASKED=75  # was asked to end before it had anything to save
FAILED=76 # and the code of a process that failed by itself

# The exit code of that process, from srun's.
exit_code() {
    case $1 in
    75 | 76 | 12[89] | 1[3-9]? | 2??) echo 1 ;; # ended by SLURM, or on request
    *) echo $(($1 > FAILED ? $1 - FAILED : $1)) ;;
    esac
}

fail() {
    echo "error: $*" >&2
    exit 2
}

# Checks where we are and reads the site's facts.
enter_project() {
    [ -n "${SLURM_JOB_ID:-}" ] || fail "$0 is a batch script: submit it with sbatch $0"
    { [ -f train.py ] && [ -f slurm/site.sh ]; } || fail "$PWD is not the project's folder: cd there, then sbatch $0"
    # shellcheck source=slurm/site.sh
    . slurm/site.sh
    forget_outer_job
}

# A job that another one submits finds that one's variables in its environment. SLURM replaces only those that it sets for this
# job; srun would take the others for options, which exclude this job's own, and this file for the job's array and starts.
forget_outer_job() {
    local facts pair name
    unset RESNET_CIFAR_SUBMIT
    facts=$(show_job "$SLURM_JOB_ID" | awk -v RS= -v id="JobId=$SLURM_JOB_ID" '$1 == id') # an array's last task has its number
    [ -n "$facts" ] || return
    [[ $facts == *" ArrayJobId="* ]] || unset "${!SLURM_ARRAY_@}"
    [[ $facts != *" Restarts=0 "* ]] || unset SLURM_RESTART_COUNT
    [[ $facts != *" CpusPerTres="* ]] || unset SLURM_CPUS_PER_TASK
    for pair in CPUS_PER_GPU:CpusPerTres MEM_PER_GPU:MemPerTres MEM_PER_CPU:MinMemoryCPU MEM_PER_NODE:MinMemoryNode \
        GPUS:TresPerJob GPUS_PER_NODE:TresPerNode GPUS_PER_TASK:TresPerTask TRES_PER_TASK:TresPerTask; do
        name=SLURM_${pair%:*} # 0 is what SLURM shows for memory that was not requested, or for all of it
        [[ $facts =~ [[:space:]]${pair#*:}=([^0]|${!name:-none}[[:space:]]) ]] || unset "$name"
    done
}

# The job's number, as SLURM takes it and as logs are named: in an array the bare number can mean every task.
job_number() {
    if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then
        echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    else
        echo "$SLURM_JOB_ID"
    fi
}

# The job's name and number, for its run directory.
job_name() {
    echo "${SLURM_JOB_NAME//[^A-Za-z0-9._-]/-}-$(job_number)"
}

# The command that submits this job once more, to be pasted into a shell: SCRIPT and its ARGUMENTS, after those options of
# sbatch that the script's own lines do not give. `array`: the tasks, if all of them are submitted. The user may have submitted
# a copy of SCRIPT, with other lines: then SLURM runs the copy ($0 is elsewhere), and its name is said.
submission() {
    local command=(sbatch) facts script
    facts=$(timeout 60 scontrol show job "$(job_number)" 2>/dev/null)
    script=$(sed -n 's/^ *Command=//p' <<<"$facts" | head -n 1) # with its arguments
    script=${script#"$PWD/"}
    script=${script%% *}
    [[ $0 != "$1" && -f $script ]] || script=$1
    fact() { sed -n "s/.*\b$1=\([^ ]*\).*/\1/p" <<<"$facts" | head -n 1; }
    add() { # OPTION VALUE DEFAULT; the default is said, too, where a variable of site.sh asks for something else
        local variable=SBATCH_${1^^}
        variable=${variable//-/_}
        [[ -z $2 || $2 == "(null)" || ($2 == "$3" && -z ${!variable:-}) ]] || command+=("--$1=$2")
    }
    [[ $SLURM_JOB_NAME == resnet-cifar* ]] || add job-name "$SLURM_JOB_NAME" ''
    add account "${SLURM_JOB_ACCOUNT:-}" ''
    add partition "${SLURM_JOB_PARTITION:-}" ''
    add qos "${SLURM_JOB_QOS:-}" normal
    add reservation "${SLURM_JOB_RESERVATION:-}" ''
    add constraint "$(fact Features)" ''
    add array "${array:-}" ''
    add nodes "$SLURM_JOB_NUM_NODES" 1
    add gpus-per-node "${SLURM_GPUS_PER_NODE:-}" 1
    add gpus "${SLURM_GPUS:-}" ''
    add cpus-per-gpu "${SLURM_CPUS_PER_GPU:-}" 8
    add cpus-per-task "${SLURM_CPUS_PER_TASK:-}" ''
    if [ -n "${SLURM_MEM_PER_GPU:-}" ]; then # only one of these options may be given
        add mem-per-gpu "$SLURM_MEM_PER_GPU" ''
    else
        add mem "${SLURM_MEM_PER_NODE:-}" ''
        add mem-per-cpu "${SLURM_MEM_PER_CPU:-}" ''
    fi
    add time "$(fact TimeLimit)" "${SBATCH_TIMELIMIT:-04:00:00}"
    printf '%s' "$(printf ' %q' "${command[@]}" "$script" "${@:2}" | cut -c 2-)"
}

# GPUs that SLURM has given to this job on this node. Before 21.08 it said so in a list only.
count_gpus() {
    local devices
    IFS=, read -ra devices <<<"${CUDA_VISIBLE_DEVICES:-}"
    echo "${SLURM_GPUS_ON_NODE:-${#devices[@]}}"
}

# Hosts, processes and threads.
shape_job() {
    mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    [ ${#hosts[@]} -gt 0 ] || fail "scontrol does not say which nodes this job has ($SLURM_JOB_NODELIST)"
    HEAD_NODE=${hosts[0]}
    if [ -n "$INTERFACE" ]; then
        HEAD_NODE=$(ip -4 -o address show dev "$INTERFACE" 2>/dev/null | sed -n '1s/.*inet \([0-9.]*\).*/\1/p')
        [ -n "$HEAD_NODE" ] || fail "INTERFACE $INTERFACE of slurm/site.sh has no address on $SLURMD_NODENAME"
        export NCCL_SOCKET_IFNAME=$INTERFACE GLOO_SOCKET_IFNAME=$INTERFACE
    fi
    PROCESSES_PER_NODE=$(count_gpus)
    [ "$PROCESSES_PER_NODE" -gt 0 ] || PROCESSES_PER_NODE=1
    LOCAL_ENVIRONMENT=$LOCAL_DISK/resnet-cifar-$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
    export HEAD_NODE PROCESSES_PER_NODE LOCAL_ENVIRONMENT
    local threads=$((${SLURM_CPUS_ON_NODE:-1} / PROCESSES_PER_NODE))
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
    export PYTHONUNBUFFERED=1 COLUMNS=${COLUMNS:-120}
    echo "== job $(job_number) ($SLURM_JOB_NAME), start $((${SLURM_RESTART_COUNT:-0} + 1)): ${hosts[*]}," \
        "$PROCESSES_PER_NODE process(es) a node, $OMP_NUM_THREADS thread(s) each"
}

# A port of the head node that nobody has: below those of outgoing connections, another one for each job and each start
# (who is left of an earlier start must not find this one's ranks).
choose_port() {
    HEAD_PORT=$((20000 + (SLURM_JOB_ID + 4001 * ${SLURM_RESTART_COUNT:-0}) % 12000))
    while (: <"/dev/tcp/127.0.0.1/$HEAD_PORT") 2>/dev/null; do
        HEAD_PORT=$((20000 + (HEAD_PORT - 20000 + 97) % 12000))
    done
    export HEAD_PORT
    echo "== ranks meet at $HEAD_NODE:$HEAD_PORT"
}

# What has arrived: `asked` by a signal to save and be requeued, `ended` by SLURM, which decides itself what follows.
# TERM goes to every step by itself.
asked='' ended='' child=''
listen() {
    trap 'asked=yes; [ -z "$child" ] || kill -USR1 "$child"' USR1
    trap 'ended=yes' TERM
}

# Returns what child process $1 ends with. Traps run meanwhile: bash runs none while it waits for a foreground command.
# Where a signal arrives as the child ends, bash forgets the child's code, and this is 128 and the signal's number.
await() {
    local code again
    while wait "$1"; code=$?; [ $code -gt 128 ] && kill -0 "$1" 2>/dev/null; do :; done
    if [ $code -gt 128 ]; then
        wait "$1" 2>/dev/null
        again=$?
        [ $again -eq 127 ] || [ $again -eq 255 ] || code=$again
    fi
    return $code
}

# Runs a step, which is told what `listen` hears, also what came just before it.
run() {
    local code
    "$@" &
    child=$!
    [ -z "$asked" ] || kill -USR1 "$child"
    await "$child"
    code=$?
    child=''
    return $code
}

# Runs `PROGRAM ARGUMENTS` in every process of the job. srun passes USR1 on to node.sh, on all nodes.
run_everywhere() {
    if [ -n "$ENVIRONMENT_ARCHIVE" ] && ! run sbcast --force "$ENVIRONMENT_ARCHIVE" "$LOCAL_ENVIRONMENT.tar"; then
        [ -z "$asked" ] || return $ASKED
        fail "ENVIRONMENT_ARCHIVE $ENVIRONMENT_ARCHIVE cannot be copied to LOCAL_DISK $LOCAL_DISK of every node"
    fi
    choose_port
    run srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpu-bind=none \
        --export=ALL --kill-on-bad-exit=1 "${SRUN_OPTIONS[@]}" bash slurm/node.sh "$@"
}

# Runs `PROGRAM ARGUMENTS` in one process, on the first of shape_job's hosts.
run_once() {
    run srun --nodes=1 --ntasks=1 --nodelist="${hosts[0]}" --cpu-bind=none --export=ALL "${SRUN_OPTIONS[@]}" \
        bash slurm/node.sh --once "$@"
}

# What `scontrol show job` says of this job, or of $1; waits at least five minutes for a controller or a network that is gone.
show_job() {
    local facts
    for _ in {1..60}; do
        facts=$(timeout 60 scontrol show job "${1:-$(job_number)}" 2>/dev/null) && [ -n "$facts" ] && break
        sleep 5
    done
    echo "$facts"
}

# Whether this is still the newest start of the job that show_job has shown: SLURM begins a job again elsewhere when it
# loses a node, and a start that was cut off with it goes on. Its steps have the same numbers as the new ones.
is_newest_start() {
    [[ $1 =~ " Restarts="([0-9]+) ]] && [ "${BASH_REMATCH[1]}" -eq "${SLURM_RESTART_COUNT:-0}" ]
}

# The life of a job that saves and is requeued, the run or search $folder: `starts` is the file of its starts, and `of` says
# what the steps of a search are counted over.

# The updates that the newest checkpoint has seen; of a search, those of all trials.
saved() {
    local run path newest total=0
    for run in "$folder" "$folder"/trial-*; do
        newest=0
        for path in "$run"/checkpoints/step-*; do
            [[ $path =~ /step-([0-9]+)$ ]] && ((10#${BASH_REMATCH[1]} > newest)) && newest=$((10#${BASH_REMATCH[1]}))
        done
        total=$((total + newest))
    done
    echo "$total"
}

# Notes where this start began: `begun_at`, and `first` of the first start; `fruitless`: how many starts in a row, this one
# included, began there. Those that SLURM has ended say nothing about progress.
count_starts() {
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
}

# Begins this job again, as soon as there is room for it.
come_again() {
    local facts
    if [ "$(saved)" -eq "$begun_at" ] && [ "$fruitless" -ge "$STARTS_WITHOUT_PROGRESS" ]; then
        give_up
    fi
    facts=$(show_job)
    if ! is_newest_start "$facts"; then
        echo "== SLURM has begun this job again elsewhere: start $((${SLURM_RESTART_COUNT:-0} + 1)) leaves it alone"
        exit 1
    fi
    [[ -z $ended && $facts == *JobState=RUNNING* ]] || end_by_slurm # a canceled job is not requeued
    echo "== saved at step $(saved)${of:-}, and coming again"
    for _ in {1..6}; do
        timeout 60 scontrol requeue "$(job_number)" && exit 0
        sleep 10
    done
    fail "job $(job_number) cannot be requeued; to resume: $RESNET_CIFAR_SUBMIT"
}

give_up() {
    fail "$STARTS_WITHOUT_PROGRESS starts of this job went no further than step $begun_at${of:-} (STARTS_WITHOUT_PROGRESS of" \
        "slurm/site.sh): it is not requeued. When the cause is fixed: $RESNET_CIFAR_SUBMIT"
}

end_by_slurm() {
    echo "ended ${SLURM_RESTART_COUNT:-0}" >>"$starts"
    echo "== ended by SLURM at step $(saved)${of:-}, which starts this job again if it was preempted or requeued;" \
        "otherwise, to resume: $RESNET_CIFAR_SUBMIT"
    exit 1
}

end_for_good() {
    [ "$1" -eq 0 ] ||
        echo "== failed with exit code $1 and is not requeued; the reason is the first error after the last \`== job\`." \
            "When it is fixed: $RESNET_CIFAR_SUBMIT"
    exit "$1"
}
