#!/usr/bin/env bash
# A Slurm cluster of pretended nodes on this machine, for tests: munged, slurmctld and a slurmd per node. Each node has
# its own host name, network, processes and node-local disk; killing its first process is a power cut. Needs root.
#
#   cluster.sh up DIR NODES | down DIR | power-off DIR NODE | power-on DIR NODE
#
# Debian: apt-get install --no-install-recommends slurmctld slurmd slurm-client munge iproute2
set -euo pipefail
command=$1 dir=$2
export SLURM_CONF=$dir/slurm.conf

# Its own bridge, addresses and port: another cluster may be up, or have left its bridge behind.
name_it() {
    for ((number = 0; number < 200; number++)); do
        ! ip link add "vdsr$number" type bridge 2>/dev/null || break
    done
    echo "$number" >"$dir/number"
}
names() {
    number=$(cat "$dir/number")
    bridge=vdsr$number net=10.87.$number
}

# A process is remembered with the time it started, so that no other with its number is ever killed.
started() { cut -d ' ' -f 22 "/proc/$1/stat" 2>/dev/null || true; }
remember() { echo "$2 $(started "$2")" >"$dir/run/$1"; }
end() { # NAME SIGNAL
    local pid since
    [[ -s $dir/run/$1 ]] || return 0
    read -r pid since <"$dir/run/$1"
    rm "$dir/run/$1"
    [[ $(started "$pid") == "$since" ]] || return 0
    kill "-$2" "$pid"
    for ((i = 0; i < 100; i++)); do
        [[ -e /proc/$pid ]] || return 0
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
}
until_true() { # SECONDS COMMAND…
    local seconds=$1
    shift
    for ((i = 0; i < seconds * 10; i++)); do
        ! "$@" >/dev/null 2>&1 || return 0
        sleep 0.1
    done
    echo "gave up waiting: $*" >&2
    return 1
}
idle() { [[ $(sinfo --noheader --partition=normal --states=idle --format=%D) == "$1" ]]; }
init_of() { init=$(tr -d ' ' <"/proc/$1/task/$1/children") && [[ $init ]]; }

power_on() { # NODE
    local address=$net.$((10 + ${1#node}))
    mkdir -p "$dir/local/$1"
    # shellcheck disable=SC2016
    setsid unshare --uts --net --pid --mount --fork --kill-child=KILL bash -ec '
        hostname "$1"
        mount --make-rprivate /
        mount -t proc proc /proc
        mount --bind "$2/hosts" /etc/hosts
        mount --bind /dev/null /etc/resolv.conf
        mount --bind "$2/local/$1" "$2/local"
        ip link set lo up
        until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
        ip address add "$3/24" dev eth0
        ip link set eth0 up
        slurmd -D -N "$1" -f "$2/slurm.conf" &
        sleep infinity &
        wait # as process 1 of the node, whose orphans it inherits
    ' node "$1" "$dir" "$address" </dev/null >>"$dir/log/$1.out" 2>&1 &
    until_true 5 init_of $!
    init_of $!
    remember "$1" "$init"
    ip link add "$bridge-$1" type veth peer name eth0 netns "$init"
    ip link set "$bridge-$1" master "$bridge" up
}

power_off() { # NODE: first the network, so that nobody hears it die
    ip link delete "$bridge-$1" 2>/dev/null || true
    end "$1" KILL
}

configure() { # NODES
    cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname)($net.1)
SlurmctldPort=$((6900 + number))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# a requeued job waits until its credential has expired, for two minutes by default
AuthInfo=socket=$dir/run/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/spool/slurmctld.pid
SlurmdPidFile=$dir/spool/%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog=$dir/bin/task_prolog
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
JobRequeue=1
ReturnToService=2
SlurmdTimeout=5
# What a node does not answer in time is sent again a minute later: then a late kill would meet the step of the same
# number in the requeued job, which starts so soon only here
MessageTimeout=100
TCPTimeout=3
KillWait=30
MinJobAge=3600
GresTypes=gpu
$(for ((k = 1; k <= $1; k++)); do echo "NodeName=node$k NodeAddr=$net.$((10 + k)) CPUs=4 RealMemory=4000 Gres=gpu:2"; done)
PartitionName=normal Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=grace Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=120
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
CONF
    # what pretends to be a GPU
    ln -sfn /dev/null "$dir/run/gpu0"
    ln -sfn /dev/null "$dir/run/gpu1"
    echo "Name=gpu File=$dir/run/gpu[0-1]" >"$dir/gres.conf"
    {
        echo "127.0.0.1 localhost"
        echo "$net.1 $(hostname)"
        for ((k = 1; k <= $1; k++)); do echo "$net.$((10 + k)) node$k"; done
    } >"$dir/hosts"
    cat >"$dir/bin/task_prolog" <<SH
#!/bin/sh
mkdir -p $dir/local/\$SLURM_JOB_ID
echo export SLURM_TMPDIR=$dir/local/\$SLURM_JOB_ID
SH
    # There is no accounting here; submitit asks `sacct -o JobID,State,NodeList --parsable2 -j ID …`
    cat >"$dir/bin/sacct" <<'SH'
#!/bin/bash
echo 'JobID|State|NodeList'
while (($#)); do
    [[ $1 != -j ]] || scontrol show job -o "$2" 2>/dev/null
    shift
done | awk '{
    delete field
    for (i = 1; i <= NF; i++) if (n = index($i, "=")) { key = substr($i, 1, n - 1); if (!(key in field)) field[key] = substr($i, n + 1) }
    print ("ArrayJobId" in field ? field["ArrayJobId"] "_" field["ArrayTaskId"] : field["JobId"]) "|" field["JobState"] "|" field["NodeList"]
}'
SH
    chmod 755 "$dir/bin/"*
}

up() { # NODES
    mkdir -p "$dir"/{bin,local,log,run,spool,state}
    chmod 755 "$dir" "$dir"/{bin,local,log,run}
    chmod 700 "$dir/state"
    head -c 1024 /dev/urandom >"$dir/munge.key"
    chmod 600 "$dir/munge.key"
    name_it
    names
    configure "$1"
    ip address add "$net.1/24" dev "$bridge"
    ip link set "$bridge" up
    setsid munged --foreground --force --key-file="$dir/munge.key" --socket="$dir/run/munge.socket" \
        --log-file="$dir/log/munged.log" --pid-file="$dir/spool/munged.pid" --seed-file="$dir/spool/munged.seed" \
        </dev/null >"$dir/log/munged.out" 2>&1 &
    remember munged $!
    until_true 10 test -S "$dir/run/munge.socket"
    setsid slurmctld -D -f "$dir/slurm.conf" </dev/null >"$dir/log/slurmctld.out" 2>&1 &
    remember slurmctld $!
    until_true 10 scontrol ping
    for ((k = 1; k <= $1; k++)); do power_on "node$k"; done
    until_true 20 idle "$1"
}

down() {
    local node
    for node in "$dir"/run/node*; do
        [[ ! -e $node ]] || power_off "$(basename "$node")"
    done
    end slurmctld TERM
    end munged TERM
    ip link delete "$bridge" 2>/dev/null || true
}

bridge=''
[[ $command == up || ! -e $dir/number ]] || names
case $command in
up) up "$3" ;;
down) down ;;
power-on) power_on "$3" ;;
power-off) power_off "$3" ;;
esac
