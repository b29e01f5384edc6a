# tests/cluster/lib.sh: sourced by every tests/cluster/case_*.sh: several "hosts" on one machine, and a real Slurm on them.
#
# A case runs inside its own process, network, mount, UTS and IPC namespaces: the first thing that this file does is to start the case
# again there, as process 1. So whatever a case starts and mounts ends with it, also when the case is killed, nothing of it is seen
# outside, and any number of cases can run at the same time. A host is a network, UTS and mount namespace within: its own name, eth0
# with an address on a bridge, /sys, /dev/shm, /run and $LOCAL (its "local disk"). Processes are seen by all hosts of the case, files
# outside of those folders are shared, as by a network file system.
#
#   hosts_up N                      hosts 0 to N-1
#   on I COMMAND…                   runs a command on host I, in the current folder; on_start I COMMAND… in the background, its pid in $started
#   host_name I, host_address I     node0 and 10.77.0.10, …
#   host_pids I                     the processes that run on host I;  host_crash I  ends them all with SIGKILL
#   hosts_rate RATE [I…]            limits what each host (or those named) sends, and what it is sent: 200mbit, 1gbit; "none" takes the limit away
#   hosts_loss PERCENT [I…]         drops that share of the packets that arrive
#   link_cut I, link_join I         the cable of host I
#   hostfile SLOTS [I…]             prints an Open MPI hostfile
#   slurm_up N [GPUS]               a Slurm of N hosts (starts them if need be) with GPUS made-up GPUs each; commands by `on 0 srun …`
#   slurm_state JOB                 one of Slurm's words;  slurm_wait JOB SECONDS WORD…  until the job is in one of these states
#   slurm_down                      ends it, to start another in the same case
#   wait_until SECONDS COMMAND…     until the command succeeds; 1 when it does not in time
#   figure NAME VALUE UNIT          a row of the closing table
#   fail SENTENCE, skip SENTENCE    end the case
#
# $WORK is an empty folder for the case, on every host; $BUILD the meson build folder, $ROOT the repository, $TANDEM the program.
set -u

ROOT=${ROOT:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)}
BUILD=${BUILD:-$ROOT/build-check}
WORK=/mnt
LOCAL=/mnt/local
TANDEM=$BUILD/launcher/tandem

# ---- inside its own namespaces ----
if [ "$$" != 1 ] || [ -z "${TANDEM_CASE_INSIDE:-}" ]; then
    [ "$(id -u)" = 0 ] || { echo "cluster: hosts are made of namespaces, which needs root"; exit 77; }
    [ -x "$TANDEM" ] || { echo "cluster: $TANDEM is not there: build first, or give the build folder as BUILD"; exit 1; }
    export ROOT BUILD TANDEM_CASE_INSIDE=yes
    # the death of unshare, even by SIGKILL, is the death of process 1, and that of everything in its process namespace
    exec unshare --pid --fork --kill-child --mount --propagation private --mount-proc --net --uts --ipc -- bash "$0" "$@"
fi

mount -t tmpfs -o mode=755 tandem-case "$WORK" || { echo "cluster: a temporary file system cannot be mounted on $WORK"; exit 77; }
mkdir -p "$LOCAL" "$WORK/.hosts"
ip link set lo up

# Whatever the caller's shell has of these would be taken for a launcher's, and change what a case means. TANDEM_CASE_… stay.
for _name in $(compgen -e | grep -E '^(SLURM|OMPI|PMIX|PMI|TANDEM|TORCHELASTIC)_|^(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT)$' |
    grep -v '^TANDEM_CASE_'); do
    unset "$_name"
done
export LOCAL TMPDIR=$LOCAL XDG_RUNTIME_DIR=$LOCAL/run OMP_NUM_THREADS=1
export TANDEM_PLUGIN_DIR=$BUILD/plugins/mpi:$BUILD/plugins/cuda
export PATH=$BUILD/launcher:$PATH
# Open MPI as root and with more ranks than cores: waiting ranks give way. Hosts know each other by eth0 alone; $WORK/rsh is their ssh.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_hwloc_base_binding_policy=none \
    OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_btl_tcp_if_include=eth0 OMPI_MCA_oob_tcp_if_include=eth0 OMPI_MCA_plm_rsh_agent=$WORK/rsh
MPIRUN=mpirun.openmpi                  # by its own name: another MPI may own plain mpirun
HOSTS=0

# ---- verdicts ----
fail() { printf 'FAIL: %s\n' "$*"; : > "$WORK/.failed"; exit 1; }
skip() { printf 'SKIP: %s\n' "$*"; exit 77; }
figure()
{
    printf 'figure: %s: %s %s\n' "$1" "$2" "$3"
    [ -z "${TANDEM_CASE_FIGURES:-}" ] || printf '%s\t%s\t%s\n' "$1" "$2" "$3" >> "$TANDEM_CASE_FIGURES"
}
# a `fail` in a subshell or a pipe ends only that: the case fails nevertheless
trap '_status=$?; [ ! -e "$WORK/.failed" ] || [ "$_status" != 0 ] || _status=1; exit "$_status"' EXIT

wait_until()
{
    local until=$(($(date +%s%N) + $1 * 1000000000)); shift
    until "$@"; do
        [ "$(date +%s%N)" -lt "$until" ] || return 1
        sleep 0.05
    done
}
# seconds COMMAND…: runs it and leaves the seconds that it took in $took
seconds()
{
    local from=$EPOCHREALTIME status=0
    "$@" || status=$?
    took=$(awk -v a="$from" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }')
    return "$status"
}

# ---- hosts ----
host_name() { echo "node$1"; }
host_address() { echo "10.77.0.$((10 + $1))"; }
_host_pid() { cat "$WORK/.hosts/node$1"; }
_enter() { echo "nsenter --target $(_host_pid "$1") --net --uts --mount"; }

# shellcheck disable=SC2046
on() { local i=$1; shift; $(_enter "$i") --wdns="$PWD" -- "$@"; }
# the command takes the place of nsenter, so $started is its own pid
# shellcheck disable=SC2046
on_start() { local i=$1; shift; $(_enter "$i") --wdns="$PWD" -- "$@" & started=$!; }

_host_up()
{
    local i=$1 name pid
    name=$(host_name "$i")
    unshare --net --uts --mount --propagation private bash -c '
        hostname "$0" && mount --bind "$1/.hosts/names" /etc/hosts &&
        mount -t tmpfs -o mode=1777 local "$2" && mkdir -m 700 "$2/run" && mount -t tmpfs -o mode=1777 shm /dev/shm && mount -t tmpfs -o mode=755 run /run &&
        mkdir "$2/.cgroup" && mount --rbind /sys/fs/cgroup "$2/.cgroup" && mount -t sysfs sysfs /sys &&
        mount --rbind "$2/.cgroup" /sys/fs/cgroup && umount -l "$2/.cgroup" && rmdir "$2/.cgroup" &&
        echo up > "$1/.hosts/$0.up"; exec sleep infinity' "$name" "$WORK" "$LOCAL" &
    pid=$!
    echo "$pid" > "$WORK/.hosts/$name"
    wait_until 10 test -s "$WORK/.hosts/$name.up" || fail "host $name cannot be made"
    ip link add "port$i" type veth peer name eth0 netns "$pid" && ip link set "port$i" master bridge0 up &&
        on "$i" ip link set lo up && on "$i" ip addr add "$(host_address "$i")/24" dev eth0 && on "$i" ip link set eth0 up ||
        fail "host $name cannot be connected"
}

hosts_up()
{
    local n=$1 i
    if ! ip link show bridge0 > /dev/null 2>&1; then
        ip link add bridge0 type bridge && ip link set bridge0 up || fail "this kernel has no bridges between network namespaces"
        { echo "127.0.0.1 localhost"; for i in {0..31}; do echo "$(host_address "$i") $(host_name "$i")"; done; } > "$WORK/.hosts/names"
        # what mpirun starts its daemons with: rsh HOST COMMAND…, the command being one line for a shell
        cat > "$WORK/rsh" << 'AGENT'
#!/bin/sh
while case $1 in -*) true ;; *) false ;; esac; do shift; done
pid=$(cat "/mnt/.hosts/$1" 2> /dev/null) || { echo "rsh: there is no host $1" >&2; exit 255; }
shift
exec nsenter --target "$pid" --net --uts --mount --wdns=/ -- /bin/sh -c "$*"
AGENT
        chmod +x "$WORK/rsh"
    fi
    for ((i = HOSTS; i < n; i++)); do
        _host_up "$i"
    done
    [ "$n" -le "$HOSTS" ] || HOSTS=$n
    # the ports of the bridge are up once both ends are: the first packets would be lost
    for ((i = 1; i < HOSTS; i++)); do
        wait_until 5 on "$i" bash -c ": < /dev/null > /dev/udp/$(host_address 0)/9" 2> /dev/null || fail "$(host_name "$i") cannot reach $(host_name 0)"
    done
}

# network namespaces tell the processes of hosts apart; a host's own first process, which holds its namespaces, is left out
host_pids()
{
    local here p me
    me=$(_host_pid "$1")
    here=$(readlink "/proc/$me/ns/net")
    for p in /proc/[0-9]*; do
        [ "${p#/proc/}" = "$me" ] || [ "$(readlink "$p/ns/net" 2> /dev/null)" != "$here" ] || echo "${p#/proc/}"
    done
}
host_crash()
{
    local pids
    pids=$(host_pids "$1")
    # shellcheck disable=SC2086
    [ -z "$pids" ] || kill -9 $pids 2> /dev/null || true
}

_each() { [ $# -gt 0 ] && echo "$@" || seq 0 $((HOSTS - 1)); }
# both ends of the pair of devices, so a link is as slow to a host that several send to as it is from it
hosts_rate()
{
    local rate=$1 i side; shift
    for i in $(_each "$@"); do
        for side in "on $i tc qdisc SUB dev eth0" "tc qdisc SUB dev port$i"; do
            if [ "$rate" = none ]; then
                ${side/SUB/del} root 2> /dev/null
            else
                ${side/SUB/replace} root tbf rate "$rate" burst 128kb latency 400ms || fail "the link of $(host_name "$i") cannot be limited to $rate"
            fi
        done
    done
}
hosts_loss()
{
    local percent=$1 i; shift
    for i in $(_each "$@"); do
        on "$i" iptables -A INPUT -i eth0 -m statistic --mode random --probability "$(awk -v p="$percent" 'BEGIN { print p / 100 }')" -j DROP ||
            fail "packets to $(host_name "$i") cannot be dropped"
    done
}
link_cut() { ip link set "port$1" down; }
link_join() { ip link set "port$1" up; }

hostfile()
{
    local slots=$1 i; shift
    for i in $(_each "$@"); do
        echo "$(host_name "$i") slots=$slots"
    done
}

. "$(dirname "${BASH_SOURCE[0]}")/slurm.sh"
