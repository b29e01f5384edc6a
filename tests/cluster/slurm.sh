# tests/cluster/slurm.sh: sourced by lib.sh: a real Slurm (munged, slurmctld on host 0, a slurmd on every host), all of it in $WORK/slurm.
#
# Nothing is enforced (no cgroups, GPUs are copies of /dev/null): what is tested is what Slurm decides and what it tells the ranks. Two
# things are unlike a cluster's: a requeued job may start again after 5 s, not 120 (the life of munge's credentials), and time limits are
# looked at as often as Slurm lets them, about every 30 s. Each host claims 4 cores, whatever the machine has.
SLURM=$WORK/slurm

_slurm_conf()
{
    local n=$1 gpus=$2 i
    cat << CONF
ClusterName=tandem
SlurmctldHost=$(host_name 0)($(host_address 0))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$SLURM/munge.socket,cred_expire=5
StateSaveLocation=$SLURM/state
SlurmdSpoolDir=$SLURM/spool/%n
SlurmctldPidFile=$SLURM/slurmctld.pid
SlurmdPidFile=$SLURM/slurmd.%n.pid
SlurmctldLogFile=$SLURM/log/slurmctld
SlurmdLogFile=$SLURM/log/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MessageTimeout=10
JobRequeue=1
CONF
    [ "$gpus" = 0 ] || echo "GresTypes=gpu"
    for ((i = 0; i < n; i++)); do
        echo "NodeName=$(host_name "$i") NodeAddr=$(host_address "$i") CPUs=4 RealMemory=2000 $([ "$gpus" = 0 ] || echo "Gres=gpu:$gpus ")State=UNKNOWN"
    done
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP"
}

_slurm_idle() { [ "$(on 0 sinfo -h -o %T 2> /dev/null | sort -u)" = idle ]; }

slurm_up()
{
    local n=$1 gpus=${2:-0} i g
    command -v slurmctld > /dev/null && command -v munged > /dev/null || skip "Slurm is not installed (slurm-wlm, munge)"
    hosts_up "$n"
    mkdir -p "$SLURM"/{state,spool,log,munge} && chmod 700 "$SLURM/munge"
    head -c 1024 /dev/urandom > "$SLURM/munge/key" && chmod 400 "$SLURM/munge/key"
    _slurm_conf "$n" "$gpus" > "$SLURM/slurm.conf"
    : > "$SLURM/cgroup.conf"
    echo "PMIxCliTmpDirBase=$LOCAL" > "$SLURM/mpi.conf"         # a folder of each host's own: shared, the second slurmd finds the first's there
    : > "$SLURM/gres.conf"
    for ((i = 0; gpus > 0 && i < n; i++)); do
        for ((g = 0; g < gpus; g++)); do
            mknod "$SLURM/gpu$i-$g" c 1 3 || fail "device nodes cannot be made in $SLURM"
        done
        echo "NodeName=$(host_name "$i") Name=gpu File=$SLURM/gpu$i-[0-$((gpus - 1))]" >> "$SLURM/gres.conf"
    done
    export SLURM_CONF=$SLURM/slurm.conf
    munged --foreground --force --key-file "$SLURM/munge/key" --socket "$SLURM/munge.socket" --pid-file "$SLURM/munge/pid" \
        --log-file "$SLURM/munge/log" --seed-file "$SLURM/munge/seed" 2> /dev/null &
    SLURM_PIDS=$!
    disown "$SLURM_PIDS"
    wait_until 10 test -S "$SLURM/munge.socket" || fail "munged does not start: $(tail -n 1 "$SLURM/munge/log" 2> /dev/null)"
    _slurm_daemon 0 slurmctld -D
    for ((i = 0; i < n; i++)); do
        mkdir -p "$SLURM/spool/$(host_name "$i")"
        _slurm_daemon "$i" slurmd -D
    done
    wait_until 60 _slurm_idle || fail "Slurm does not come up: $(grep -hE 'error|fatal' "$SLURM"/log/* 2> /dev/null | head -n 3 | tr '\n' ' ')"
}

# A daemon's environment is that of the jobs of no one: what the harness sets for programs reaches them through srun and sbatch, as a user's would.
_slurm_daemon()
{
    local i=$1; shift
    on_start "$i" env -i PATH="$PATH" SLURM_CONF="$SLURM_CONF" TMPDIR="$LOCAL" "$@" > /dev/null 2>&1
    disown "$started"                          # bash need not tell of its end
    SLURM_PIDS="$SLURM_PIDS $started"
}

# slurmd_pid I: for the cases in which a node is lost
slurmd_pid() { cat "$SLURM/slurmd.$(host_name "$1").pid"; }

slurm_down()
{
    local e
    # shellcheck disable=SC2086
    kill -9 $SLURM_PIDS 2> /dev/null
    # steps and jobs outlive their slurmd
    for e in /proc/[0-9]*/comm; do
        [ "$(cat "$e" 2> /dev/null)" != slurmstepd ] || { e=${e%/comm}; kill -9 "${e#/proc/}" 2> /dev/null; }
    done
    rm -rf "$SLURM"
    unset SLURM_CONF
}

slurm_field() { on 0 scontrol show job "$1" 2> /dev/null | grep -oE "(^| )$2=[^ ]*" | head -n 1 | cut -d = -f 2-; }
slurm_state() { slurm_field "$1" JobState; }
_slurm_in() { local job=$1 state; shift; state=$(slurm_state "$job"); [[ " $* " = *" $state "* ]]; }
slurm_wait() { local job=$1 limit=$2; shift 2; wait_until "$limit" _slurm_in "$job" "$@"; }
# slurm_submit ARGUMENTS…: sbatch on host 0, in the current folder; prints the job's number
slurm_submit() { on 0 sbatch --parsable "$@" || fail "sbatch refuses: $*"; }
