#!/usr/bin/env bash
# title: tandem run on 3 hosts by mpirun: the map, MPI in ranks, a cut link, kill -9 of launcher, rank and host
# needs: hosts 3
# limit: 240
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/launch.sh"
hosts_up 3
launch_ready
hostfile 2 > "$WORK/hostfile"
run="$TANDEM run --hostfile $WORK/hostfile"

expected=$(for r in 0 1 2 3 4 5; do echo "[$r] $r of 6 on node$((r / 2)), $((r % 2)) of 2, host $((r / 2)) of 3, $(host_address 0)"; done)
# shellcheck disable=SC2016
seconds on 0 timeout 60 $run bash -c 'echo "$RANK of $WORLD_SIZE on $(hostname), $LOCAL_RANK of $LOCAL_WORLD_SIZE, host $TANDEM_NODE_RANK of $TANDEM_HOSTS, $MASTER_ADDR"' > "$WORK/out" 2> "$WORK/err" ||
    fail "6 ranks on 3 hosts: $(cat "$WORK/err")"
[ "$(sort "$WORK/out")" = "$expected" ] || fail "ranks are not where they belong: $(cat "$WORK/out")"
figure "tandem run, 6 ranks on 3 hosts by mpirun, start to end" "$took" s
for r in 0 1 2 3 4 5; do
    grep -q "host $((r / 2)), node$((r / 2)) ($(host_address $((r / 2)))): rank $r, " "$WORK/err" || fail "the map lacks rank $r: $(cat "$WORK/err")"
done
nothing_left "a good end"

# MPI in the ranks, through their agents; hosts by -H; from a host that takes no part
on 0 timeout 60 "$TANDEM" run -H node1:2,node2:2 "$WORK/steps" 3 > "$WORK/out" 2> "$WORK/err" || fail "MPI in ranks: $(cat "$WORK/out" "$WORK/err")"
[ "$(grep -c 'sum 4' "$WORK/out")" = 4 ] || fail "MPI in ranks: $(cat "$WORK/out")"
nothing_left "MPI in ranks"

# a rank is killed: it is named, with its host, and its code is the job's
start 0 $run "$WORK/steps" 100000
kill -9 "$(pid_of_rank 3)"
ended 137 "a rank killed" '^tandem run: rank 3 on node1 \(pid [0-9]+\) was killed by signal 9 \(SIGKILL\)'

# the launcher is killed: nothing is left anywhere
start 0 $run "$WORK/steps" 100000
kill -9 "$launcher"
wait "$launcher" 2> /dev/null
wait_until 6 is_nothing_left || fail "launcher killed: left: $(what_is_left)"

# a host dies
start 0 $run "$WORK/steps" 100000
host_crash 2
ended "[1-9][0-9]*" "a host's processes killed" '^tandem run: (host node2|rank [45] on node2|mpirun ended|what had started|the agent)'

# the link of a host is cut: both sides end within 6 s, the host is named
for n in 1 2; do
    start 0 $run "$WORK/steps" 100000
    cut_and_time 2 "tandem run by mpirun, a link is cut ($n)"
done

# and with ranks that use no MPI and are silent
start 0 $run "$WORK/silent"
cut_and_time 1 "tandem run by mpirun, a link is cut, ranks without MPI"
