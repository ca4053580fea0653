# shellcheck shell=bash
# What the scripts in this folder share; sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# `scontrol requeue` of an array's own number would requeue all of its tasks
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-${SLURM_JOB_ID:-}}
restarts=${SLURM_RESTART_COUNT:-0}
max_restarts=${VDSR_MAX_RESTARTS:-20}

say() { echo "vdsr: $*"; }
die() { echo "error: $*" >&2; exit 1; }

# The comment at the top of the script is its help.
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    sed -n '2,/^$/{ s/^#SBATCH /  /; s/^# \{0,1\}//; p }' "$0"
    exit
fi

# Modules and virtual environment, by variable, and the repository on Python's path.
activate() {
    if [[ ${VDSR_MODULES:-} ]]; then
        set +u # the module command reads variables that are not set
        # shellcheck disable=SC2086  # several modules
        module load $VDSR_MODULES || die "VDSR_MODULES: 'module load $VDSR_MODULES' failed"
        set -u
    fi
    local venv=${VDSR_VENV:-$root/.venv}
    if [[ -e $venv/bin/activate ]]; then
        # shellcheck disable=SC1091
        source "$venv/bin/activate"
    elif [[ ${VDSR_VENV:-} ]]; then
        die "VDSR_VENV=$VDSR_VENV has no bin/activate"
    fi
    export PYTHONPATH=$root/src:$root${PYTHONPATH:+:$PYTHONPATH}
}

# What every rank is to find in its environment.
environment() {
    activate
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000)) # jobs that share a node differ
    export MASTER_ADDR MASTER_PORT
    export PYTHONFAULTHANDLER=1                # a crash in C++ leaves Python's stack in the log
    export NCCL_DEBUG=${NCCL_DEBUG:-WARN}      # NCCL says nothing about a broken link otherwise
    export SLURM_KILL_BAD_EXIT=1 SLURM_WAIT=60 # one dead rank ends the step: the others would wait for it for ever
    if [[ ${SLURM_CPUS_PER_TASK:-} ]]; then
        export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not inherit it since Slurm 22.05
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}
    fi
    say "job $job (restart $restarts of $max_restarts)," \
        "$SLURM_NNODES × ${SLURM_NTASKS_PER_NODE:-1} ranks on $SLURM_JOB_NODELIST," \
        "rendezvous $MASTER_ADDR:$MASTER_PORT, commit $(git -C "$root" rev-parse --short HEAD 2>/dev/null || echo unknown)"
}

# requeue STATUS: start the job again where that helps, and only then.
#   85             the ranks were warned (USR1) and saved
#   134, 137, 139  a rank died (abort, kill -9 or out of memory, segmentation fault)
#   143            the ranks were ended (TERM) and saved: only in the grace time of a preemption, which Slurm would have
#                  waited out to requeue the job; after an end of its own the job would be over
# Not after 1, an error that would come again. And only while the job still is RUNNING: if it is not, its user has cancelled
# it, or Slurm has requeued it, after a preemption or the loss of a node.
requeue() {
    local shown state=unknown
    shown=$(scontrol show job -o "$job")
    [[ ! $shown =~ \ JobState=([A-Z_]+) ]] || state=${BASH_REMATCH[1]}
    case $1 in
    85 | 134 | 137 | 139) ;;
    138) [[ ${warned:-} ]] || return 0 ;; # USR1 found Python without its handlers yet
    143) [[ $shown != *" PreemptTime=None "* ]] || return 0 ;;
    *) return 0 ;;
    esac
    if [[ $state != RUNNING ]]; then
        say "job $job ended with status $1 and is $state already: left to Slurm"
    elif ((restarts >= max_restarts)); then
        say "job $job ended with status $1 after $restarts restarts: not requeued; submit it again to go on" \
            "(VDSR_MAX_RESTARTS=$max_restarts)"
    else
        say "job $job ended with status $1: requeued"
        scontrol requeue "$job"
    fi
}

# stage OVERRIDES…: copy the sets that the run reads to each node's own disk, if it has one; sets `staged` to the override
# that says so. Whatever is in the way, the run reads them where they are.
# shellcheck disable=SC2016  # what is not to be expanded here is Hydra's, or the other shells'
stage() {
    staged=()
    local config folder sets set
    # an override that refers to the path would give the run another name
    [[ ${SLURM_TMPDIR:-} && $* != *'${paths.data}'* ]] || return 0
    config=$(python "$root/src/train.py" "$@" --cfg job 2>/dev/null) || return 0 # the run itself will say why
    mapfile -t sets < <(python -c '
import sys, yaml
config = yaml.safe_load(sys.stdin)
data, below = config["data"], "${paths.data}/"
names = {name for name in [data["train"], *data["val"], *(data["test"] or [])] if name.startswith(below)}
print(config["paths"]["data"], *sorted(name.removeprefix(below) for name in names), sep="\n")' <<<"$config")
    folder=$(realpath -m "${sets[0]}")
    sets=("${sets[@]:1}")
    for set in "${sets[@]}"; do
        [[ -d $folder/$set ]] || return 0 # not prepared yet
    done
    ((${#sets[@]})) || return 0
    if srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1 bash -c '
        cd "$1" && mkdir -p "$2" || exit
        (( $(du -skc "${@:3}" | tail -n 1 | cut -f 1) < $(df -k --output=avail "$2" | tail -n 1) )) || exit
        cp -r --parents "${@:3}" "$2"' stage "$folder" "$SLURM_TMPDIR/data" "${sets[@]}"; then
        say "staged to $SLURM_TMPDIR/data: ${sets[*]}"
        staged=("paths.data=$SLURM_TMPDIR/data")
    else
        say "no room in $SLURM_TMPDIR: reading from $folder"
    fi
}

# await PID: sets `status` to that of a child. A trap interrupts `wait`, the child goes on.
await() {
    status=0
    while kill -0 "$1" 2>/dev/null; do
        wait "$1" || true
    done
    wait "$1" || status=$?
}

# first_status FILE: sets `status` to that of the rank which ended first, of which srun tells in FILE. Its own status is the
# highest: 143 of those that were ended because one had died covers the 137 of that one.
first_status() {
    local line
    line=$(grep --max-count=1 -E '^srun: error: [^:]+: tasks? [0-9,-]+: ' "$1") || return 0
    case $line in
    *": Killed"*) status=137 ;;
    *": Aborted"*) status=134 ;;
    *": Segmentation fault"*) status=139 ;;
    *" exit code "*) status=${line##* } ;;
    esac
}

# train OVERRIDES…: the ranks, from start to end or requeue.
train() {
    local step='' said reader ranks=${SLURM_NTASKS_PER_NODE:-1}
    warned=
    # srun passes it on to every rank
    trap 'warned=yes; say "warned before the end of the job: USR1 passed on"; [[ ! $step ]] || kill -USR1 "$step"' USR1
    if ((${SLURM_GPUS_ON_NODE:-0} && SLURM_GPUS_ON_NODE != ranks)); then
        die "$SLURM_GPUS_ON_NODE GPUs a node but $ranks ranks: give sbatch the same --gpus-per-node and --ntasks-per-node"
    fi
    environment
    stage "$@"
    said=$(mktemp -d)
    mkfifo "$said/pipe"
    tee "$said/all" <"$said/pipe" >&2 &
    reader=$!
    # python is srun's own child: where Slurm tracks processes by cgroup, a signal reaches no other
    srun python "$root/src/train.py" "$@" "${staged[@]}" trainer.num_nodes="$SLURM_NNODES" trainer.devices="$ranks" \
        2>"$said/pipe" &
    step=$!
    [[ ! $warned ]] || kill -USR1 "$step"
    await "$step"
    wait "$reader" || true
    ((status == 0)) || first_status "$said/all"
    rm -r "$said"
    requeue "$status"
    exit "$status"
}
