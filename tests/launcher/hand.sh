#!/bin/bash
# Nodes that are started by hand: two of them on this machine, over loopback; without any MPI.
. "$(dirname "$0")/lib.sh"
for v in $(compgen -e | grep -E '^SLURM_'); do unset "$v"; done
unset MASTER_ADDR MASTER_PORT
export TANDEM_QUIET=1 TANDEM_TIMEOUT=40 HOME=$work
TANDEM_SECRET=$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')
export TANDEM_SECRET

# both CODE0 CODE1 NAME OPTIONS… -- COMMAND…: node 1 with one rank, then node 0 with two
both()
{
    local code0=$1 code1=$2 name=$3; shift 3
    timeout 60 "$TANDEM" run --nnodes 2 --node-rank 1 --master-addr 127.0.0.1 --rdzv-id "$mark" --nproc-per-node 1 "$@" > "$work/out1" 2> "$work/err1" & node1=$!
    timeout 60 "$TANDEM" run --nnodes=2 --node_rank=0 --rdzv-endpoint 127.0.0.1 --rdzv_id "$mark" --nproc-per-node=2 "$@" > "$work/out0" 2> "$work/err0"
    check "$name: exit code of node 0" "$code0" $?
    wait $node1
    check "$name: exit code of node 1" "$code1" $?
    first=$(head -n 1 "$work/err0")
}
both 0 0 "all well" -- bash -c 'echo "$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $TANDEM_HOSTS ${TANDEM_STORE%:*}"; echo word >&2'
check "node 0 shows its ranks" "[0] 0 3 0 3 1 tcp:[127.0.0.1],[1] 1 3 1 3 1 tcp:[127.0.0.1]" "$(sort "$work/out0" | paste -sd,)"
check "node 1 shows its own" "[2] 2 3 2 3 1 tcp:[127.0.0.1]" "$(cat "$work/out1")"
check "standard error" "[0] word,[1] word,[2] word" "$(sort "$work/err0" "$work/err1" | paste -sd,)"
both 0 0 "the job's secret is not the user's" -- bash -c '[ "$TANDEM_SECRET" != '"$TANDEM_SECRET"' ]'

bash -c "$(sleeper)" & stranger=$!
wait_for 5 sleepers_are 1
both 3 3 "exit 3 on node 1" -- bash -c "test \$RANK = 2 && exit 3; (setsid bash -c '$(sleeper)' &); $(sleeper)"
check_like "exit 3 on node 1: sentence" "^tandem run: rank 2 on $(hostname) \(pid [0-9]+\) exited with code 3$" "$first"
check "exit 3 on node 1: only the stranger is left" 1 "$(sleepers)"
both 137 137 "kill -9 on node 0" -- bash -c "test \$RANK = 1 && kill -9 \$\$; $(sleeper)"
check_like "kill -9 on node 0: sentence" "^tandem run: rank 1 on .* was killed by signal 9 \(SIGKILL\)$" "$first"
check "kill -9 on node 0: only the stranger is left" 1 "$(sleepers)"

# a launcher is killed: its own ranks end, and the others'
begin()
{
    timeout -s KILL 60 "$TANDEM" run --nnodes 2 --node-rank 1 --master-addr 127.0.0.1 --nproc-per-node 1 bash -c "$(sleeper)" > "$work/out1" 2> "$work/err1" & node1=$!
    "$TANDEM" run --nnodes 2 --node-rank 0 --master-addr 127.0.0.1 --nproc-per-node 2 bash -c "$(sleeper)" > "$work/out0" 2> "$work/err0" & node0=$!
    wait_for 20 sleepers_are 4 || check "three ranks and the stranger run" 4 "$(sleepers)"
}
begin
kill -9 $node0
wait $node0 2> /dev/null
wait $node1
[ $? -gt 0 ]; check "node 0's launcher killed: node 1 fails" 0 $?
check_like "node 0's launcher killed: a sentence on node 1" 'tandem agent: rank 2 on .* has lost tandem run \(it has ended\): the rank is ended' "$(cat "$work/err1")"
wait_for 6 sleepers_are 1
check "node 0's launcher killed: only the stranger is left" 1 "$(sleepers)"
begin
kill -9 $(cat /proc/$node1/task/*/children)    # timeout's child: the launcher
wait $node0
[ $? -gt 0 ]; check "node 1's launcher killed: node 0 fails" 0 $?
check_like "node 1's launcher killed: a sentence on node 0" "^tandem run: what had started rank 2's agent on .* has died" "$(cat "$work/err0")"
wait $node1 2> /dev/null
wait_for 6 sleepers_are 1
check "node 1's launcher killed: only the stranger is left" 1 "$(sleepers)"
kill $stranger
wait $stranger 2> /dev/null

# per-rank files, as torchrun's
both 0 0 "files" --log-dir "$work/logs" --tee 1 --redirects 2 -- bash -c 'echo out $RANK; echo err $RANK >&2'
check "files: what is shown" "[0] out 0,[1] out 1,[2] out 2," "$(sort "$work/out0" "$work/out1" | paste -sd,),$(cat "$work/err0" "$work/err1")"
for r in 0 1 2; do
    check "files of rank $r" "out $r,err $r" "$(cat "$work"/logs/*/$r/stdout.log),$(cat "$work"/logs/*/$r/stderr.log)"
done

# what cannot work is a sentence
(unset TANDEM_SECRET
    timeout 20 "$TANDEM" run --nnodes 2 --node-rank 0 --master-addr 127.0.0.1 --nproc-per-node 1 true > /dev/null 2> "$work/err"
    check "no key: exit code" 1 $?
    check_like "no key: sentence" '^tandem run: .*(TANDEM_SECRET|key)' "$(cat "$work/err")")
TANDEM_TIMEOUT=1 timeout 20 "$TANDEM" run --nnodes 2 --node-rank 0 --master-addr 127.0.0.1 --nproc-per-node 1 true > /dev/null 2> "$work/err"
check "nobody comes: exit code" 1 $?
check "nobody comes: sentence" 'tandem run: node 1 of 2 has not come within 1 s (TANDEM_TIMEOUT)' "$(cat "$work/err")"
TANDEM_TIMEOUT=1 timeout 20 "$TANDEM" run --nnodes 2 --node-rank 1 --master-addr 127.0.0.1 --nproc-per-node 1 true > /dev/null 2> "$work/err"
check_like "no node 0: sentence" '^tandem run: node 0 cannot be found: host 127.0.0.1 did not answer on ports [0-9]+ to [0-9]+ within 1 s' "$(cat "$work/err")"
finish
