#!/usr/bin/env bash
# title: hosts, links and Slurm of this harness are what the cases take them for
# needs: slurm 3
# limit: 120
. "$(dirname "$0")/lib.sh"

seconds hosts_up 3
figure "3 hosts, from nothing" "$took" s
[ "$(on 1 hostname)" = node1 ] || fail "host 1 is called $(on 1 hostname)"
[ "$(on 2 ls /sys/class/net | tr '\n' ' ')" = "eth0 lo " ] || fail "host 2 sees the network devices $(on 2 ls /sys/class/net)"
on 2 test -d /sys/fs/cgroup/ || fail "host 2 sees no cgroups"
on 1 touch /dev/shm/mine "$LOCAL/mine" /run/mine
on 2 ls /dev/shm/mine "$LOCAL/mine" /run/mine 2> /dev/null && fail "hosts share local files"
(cd "$ROOT" && [ "$(on 1 pwd)" = "$ROOT" ]) || fail "a command does not start in the caller's folder"

# names and addresses; ranks that Open MPI starts through the agent know which share a host
cat > "$WORK/who.c" << 'C'
#include <mpi.h>
#include <stdio.h>
#include <unistd.h>
int main(int c, char **v)
{
    int rank, size, here, sum, one = 1;
    char host[65];
    MPI_Comm local;
    MPI_Init(&c, &v);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &local);
    MPI_Comm_size(local, &here);
    MPI_Allreduce(&one, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    gethostname(host, sizeof host);
    printf("rank %d of %d on %s with %d, sum %d\n", rank, size, host, here, sum);
    MPI_Finalize();
    return 0;
}
C
mpicc.openmpi -o "$WORK/who" "$WORK/who.c" || fail "mpicc.openmpi does not compile"
hostfile 2 > "$WORK/hostfile"
# Open MPI itself may print a warning beside them when the machine is busy (plm:rsh: setpgid)
ranks_said() { grep -v '^\[.*plm:rsh: Warning: setpgid' "$WORK/who.out" | sort; }
expected=$(for r in 0 1 2 3 4 5; do echo "rank $r of 6 on node$((r / 2)) with 2, sum 6"; done)
seconds on 0 timeout 40 $MPIRUN --hostfile "$WORK/hostfile" -np 6 "$WORK/who" > "$WORK/who.out" 2>&1 || fail "mpirun over 3 hosts: $(tail -n 5 "$WORK/who.out")"
[ "$(ranks_said)" = "$expected" ] || fail "mpirun over 3 hosts printed $(cat "$WORK/who.out")"
figure "mpirun, 6 ranks on 3 hosts, start to end" "$took" s

# a cut link is silence, not an error; joined again it carries at once
reach() { on 0 timeout 1 bash -c ": < /dev/null > /dev/tcp/node2/7777" 2> /dev/null; }
on_start 2 perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalPort => 7777, Listen => 5, ReuseAddr => 1) or die; $s->accept while 1'
listener=$started
wait_until 5 reach || fail "node0 cannot connect to node2"
link_cut 2
reach && fail "the cut link of node2 carries"
link_join 2
wait_until 5 reach || fail "the joined link of node2 does not carry"
kill "$listener"

# the limit is on what leaves a host: 4 MiB at 200 Mbit/s take 168 ms, less the 256 KB that pass at once
hosts_rate 200mbit
on_start 1 perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalPort => 7778, Listen => 5) or die; $c = $s->accept; 1 while sysread $c, $x, 65536; print $c "done"'
wait_until 5 on 1 grep -q :1E62 /proc/net/tcp || fail "node1 does not listen"
seconds on 0 perl -MIO::Socket::INET -e '$c = IO::Socket::INET->new("node1:7778") or die; $x = "x" x 1048576; print $c $x for 1..4; shutdown $c, 1; read $c, $y, 4; exit($y ne "done")' ||
    fail "4 MiB do not arrive at node1"
awk -v t="$took" 'BEGIN { exit !(t > 0.14 && t < 0.6) }' || fail "4 MiB at 200 Mbit/s took $took s instead of 0.16"
figure "4 MiB over a link of 200 Mbit/s (0.16 at best)" "$took" s
hosts_rate none

# Slurm, with Open MPI started by srun itself and from within an allocation, and GPUs
seconds slurm_up 3 4
figure "Slurm on 3 hosts, until all are idle" "$took" s
expected=$(for r in 0 1 2 3; do echo "rank $r of 4 on node$((r / 2)) with 2, sum 4"; done)
seconds on 0 timeout 40 srun --mpi=pmix -w node[0-1] -N2 --ntasks-per-node=2 "$WORK/who" > "$WORK/who.out" 2>&1 || fail "srun --mpi=pmix: $(tail -n 5 "$WORK/who.out")"
[ "$(ranks_said)" = "$expected" ] || fail "srun --mpi=pmix printed $(cat "$WORK/who.out")"
figure "srun --mpi=pmix, 4 ranks on 2 hosts, start to end" "$took" s
on 0 timeout 40 salloc -Q -w node[0-1] -N2 --ntasks-per-node=2 $MPIRUN "$WORK/who" > "$WORK/who.out" 2>&1 || fail "mpirun inside salloc: $(tail -n 5 "$WORK/who.out")"
[ "$(ranks_said)" = "$expected" ] || fail "mpirun inside salloc printed $(cat "$WORK/who.out")"
# shellcheck disable=SC2016
gpus=$(on 0 srun -w node[0-1] -N2 --ntasks-per-node=2 --gpus-per-task=2 bash -c 'echo "$SLURM_PROCID: $CUDA_VISIBLE_DEVICES"' | sort | tr '\n' ' ')
[ "$gpus" = "0: 0,1 1: 2,3 2: 0,1 3: 2,3 " ] || fail "the tasks were given the GPUs $gpus"

host_crash 2
[ -z "$(host_pids 2)" ] || fail "processes are left on a crashed host"
slurm_down
