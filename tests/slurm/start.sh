#!/usr/bin/env bash
# A Slurm of one node on this machine, for tests/slurm/test_slurm.py and for trying sweeps out.
#
#   bash tests/slurm/start.sh [FOLDER]        start munged, slurmctld and slurmd; everything they write is in FOLDER
#   source FOLDER/env.sh                      then sbatch, squeue, scancel talk to it
#   bash tests/slurm/start.sh stop [FOLDER]   end them
#
# FOLDER (default /tmp/slurm-test) must be a path without spaces that this user alone may write. Debian's packages
# slurm-wlm and munge are needed; root installs them where they are missing. CPUS (default: all) is how many tasks of
# one CPU run at once, PREFIX goes before slurmd and with it before all jobs (PREFIX="taskset -c 1"). Jobs of the
# partition "urgent" preempt those of "test", after GRACE seconds (default 30).
# There are no cgroups and no accounting: what a job asks for is counted, not enforced, and sacct knows nothing.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

action=start
case "${1:-}" in
    stop) action=stop; shift ;;
    -h | --help) sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
esac
folder=${1:-/tmp/slurm-test}

stop() {
    for name in slurmd slurmctld munged; do
        [ -s "$folder/$name.pid" ] || continue
        pid=$(cat "$folder/$name.pid")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -9 "$pid" 2>/dev/null || true
        rm -f "$folder/$name.pid"
    done
}

if [ $action = stop ]; then
    if [ -s "$folder/slurmctld.pid" ] && [ -f "$folder/env.sh" ]; then
        source "$folder/env.sh"
        timeout 20 scancel --me 2>/dev/null || true
        for _ in $(seq 100); do [ -n "$(timeout 10 squeue --me --noheader 2>/dev/null)" ] || break; sleep 0.2; done
    fi
    stop
    exit 0
fi

if ! command -v slurmctld >/dev/null || ! command -v slurmd >/dev/null || ! command -v munged >/dev/null; then
    if [ "$(id -u)" != 0 ]; then
        echo "error: slurm-wlm and munge are not installed; apt-get install slurm-wlm munge" >&2
        exit 2
    fi
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge
fi
if [ -s "$folder/slurmctld.pid" ] && kill -0 "$(cat "$folder/slurmctld.pid")" 2>/dev/null; then
    echo "error: a Slurm runs in $folder already; bash ${BASH_SOURCE[0]} stop $folder" >&2
    exit 2
fi

mkdir -p "$folder"/{state,spool,munge}
folder=$(cd "$folder" && pwd)
chmod 700 "$folder" "$folder/munge"
host=$(hostname -s)
read -r ctld_port slurmd_port < <(python3 -c "
import socket
free = [socket.socket() for _ in range(2)]
for each in free:
    each.bind(('127.0.0.1', 0))
print(*(each.getsockname()[1] for each in free))")
[ -f "$folder/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
cat >"$folder/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ctld_port
SlurmdPort=$slurmd_port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=10
SchedulerParameters=sched_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=$host NodeAddr=127.0.0.1 CPUs=${CPUS:-$(nproc --all)} State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=${GRACE:-30}
PartitionName=urgent Nodes=$host MaxTime=INFINITE State=UP PriorityTier=2
END
cat >"$folder/env.sh" <<END
export SLURM_CONF=$folder/slurm.conf
END
source "$folder/env.sh"

failed() {
    echo "error: $1" >&2
    tail -n 5 "$folder"/*.log >&2 || true
    stop
    exit 1
}
# --force: munged otherwise wants to own every folder above its socket, which nobody does below /tmp.
munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munge/seed" >"$folder/munged.out" 2>&1 ||
    failed "munged does not start: $(tail -n 1 "$folder/munged.out")"
slurmctld >"$folder/slurmctld.out" 2>&1 || failed "slurmctld does not start: $(tail -n 1 "$folder/slurmctld.out")"
${PREFIX:-} slurmd >"$folder/slurmd.out" 2>&1 || failed "slurmd does not start: $(tail -n 1 "$folder/slurmd.out")"
for _ in $(seq 100); do
    state=$(timeout 10 sinfo --noheader --format=%T 2>/dev/null || true)
    case "$state" in idle | mixed) break ;; esac
    sleep 0.2
done
case "$state" in idle | mixed) ;; *) failed "the node does not come up (${state:-slurmctld does not answer})" ;; esac
echo "Slurm $(sbatch --version | cut -d' ' -f2) runs; source $folder/env.sh"
