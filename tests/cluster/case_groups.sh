#!/usr/bin/env bash
# title: groups of ranks and messages over 2 and 3 hosts, under mpirun: groups on a host by shared memory, others between hosts, all at once
# needs: hosts 3
# limit: 400
. "$(dirname "$0")/lib.sh"
[ -x "$BUILD/tests/comm/any_group" ] || fail "tests/comm/any_group is not built"

hosts_up 3
for hosts in 2 3; do
    # shellcheck disable=SC2046
    hostfile 2 $(seq 0 $((hosts - 1))) > "$WORK/hostfile"
    seconds on 0 timeout 150 $MPIRUN -q --hostfile "$WORK/hostfile" -np $((2 * hosts)) -x TANDEM_PLUGIN_DIR -x OMP_NUM_THREADS \
        "$BUILD/tests/comm/any_group" any two > "$WORK/out" 2>&1 || fail "$hosts hosts: $(head -n 5 "$WORK/out")"
    grep -q "groups and messages on $((2 * hosts)) ranks" "$WORK/out" || fail "$hosts hosts: $(head -n 5 "$WORK/out")"
    figure "groups and messages, $hosts hosts with 2 ranks each" "$took" s
done
