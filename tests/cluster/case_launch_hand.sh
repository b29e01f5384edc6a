#!/usr/bin/env bash
# title: tandem run started by hand on 3 hosts: the user's key, the map, a cut link, kill -9 of a launcher and of a rank
# needs: hosts 3
# limit: 180
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/launch.sh"
hosts_up 3
launch_ready
export HOME=$WORK/home TANDEM_TIMEOUT=60
mkdir -p "$HOME"

# node I OPTIONS… COMMAND…: node I in the background; its pid in $started, its output in $WORK/out.I and err.I
node()
{
    local i=$1; shift
    on_start "$i" "$TANDEM" run --nnodes 3 --node-rank "$i" --master-addr node0 --nproc-per-node 2 "$@" > "$WORK/out.$i" 2> "$WORK/err.$i"
}
# all COMMAND…: nodes 2, 1, 0, in this order; $launcher is node 0's, $other1 and $other2 the others'
all()
{
    rm -f "$WORK"/running.*
    node 2 "$@"; other2=$started
    node 1 "$@"; other1=$started
    node 0 "$@"; launcher=$started
}

node 0 true
wait "$started" && fail "without a key the job ran"
grep -q '^tandem run: .*tandem env --make-key' "$WORK/err.0" || fail "without a key: $(cat "$WORK/err.0")"
on 0 "$TANDEM" env --make-key > /dev/null || fail "tandem env --make-key"

from=$EPOCHREALTIME
# shellcheck disable=SC2016
all bash -c 'echo "$RANK of $WORLD_SIZE on $(hostname), $LOCAL_RANK of $LOCAL_WORLD_SIZE, host $TANDEM_NODE_RANK of $TANDEM_HOSTS, $MASTER_ADDR"'
wait "$launcher" "$other1" "$other2" || fail "6 ranks on 3 hosts: $(cat "$WORK"/err.*)"
figure "tandem run, 6 ranks on 3 hosts by hand, start to end" "$(awk -v a="$from" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f", b - a }')" s
for i in 0 1 2; do
    [ "$(sort "$WORK/out.$i")" = "$(for r in $((2 * i)) $((2 * i + 1)); do echo "[$r] $r of 6 on node$i, $((r % 2)) of 2, host $i of 3, $(host_address 0)"; done)" ] ||
        fail "node $i shows: $(cat "$WORK/out.$i" "$WORK/err.$i")"
done
grep -q "host 2, node2 ($(host_address 2)): rank 5, " "$WORK/err.0" || fail "the map: $(cat "$WORK/err.0")"
nothing_left "a good end"

running() { wait_until 60 _all_run || fail "the ranks do not come to run: $(cat "$WORK"/err.*)"; }
all "$WORK/silent"
running
kill -9 "$(pid_of_rank 3)"
cp "$WORK/err.0" "$WORK/err"
wait "$launcher"
[ $? = 137 ] || fail "a rank killed: node 0's exit code"
cp "$WORK/err.0" "$WORK/err"
first_line | grep -qE '^tandem run: rank 3 on node1 \(pid [0-9]+\) was killed by signal 9 \(SIGKILL\)' || fail "a rank killed: $(first_line)"
wait "$other2"
[ $? = 137 ] || fail "a rank killed: node 2's exit code"
nothing_left "a rank killed"

for victim in 0 2; do
    all "$WORK/silent"
    running
    [ $victim = 0 ] && kill -9 "$launcher" || kill -9 "$other2"
    wait "$launcher" "$other1" "$other2" 2> /dev/null
    wait_until 6 is_nothing_left || fail "node $victim's launcher killed: left: $(what_is_left)"
done

all "$WORK/silent"
running
cp "$WORK/err.0" "$WORK/err"
ln -sf "$WORK/err.0" "$WORK/err"
cut_and_time 2 "tandem run by hand, a link is cut"
grep -q 'tandem agent: rank 4 on node2 has lost tandem run (no word from it for 3 s' "$WORK/err.2" || fail "the other side says: $(cat "$WORK/err.2")"
