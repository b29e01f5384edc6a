#!/bin/bash
# The engine mpirun on this machine: what ranks find, output, verdicts, exit codes, and that nothing is left, whoever is killed.
. "$(dirname "$0")/lib.sh"
for v in $(compgen -e | grep -E '^SLURM_'); do unset "$v"; done
export TANDEM_QUIET=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1

m() { timeout 60 "$TANDEM" run --engine mpirun "$@"; }
run()
{
    local name=$1 code=$2; shift 2
    m "$@" > "$work/out" 2> "$work/err"
    check "$name: exit code" "$code" $?
    first=$(head -n 1 "$work/err")
}

run "all well" 0 -n 2 bash -c 'echo "$RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $GROUP_RANK $TANDEM_NODE_RANK $TANDEM_HOSTS $MASTER_ADDR ${TANDEM_STORE%:*} ${#TANDEM_SECRET} $OMPI_COMM_WORLD_RANK"'
check "what ranks find" "[0] 0 2 0 2 0 0 1 127.0.0.1 tcp:127.0.0.1 64 0,[1] 1 2 1 2 0 0 1 127.0.0.1 tcp:127.0.0.1 64 1" "$(sort "$work/out" | paste -sd,)"
check "all well: silence" "" "$(cat "$work/err")"
map=$(TANDEM_QUIET=0 m -n 2 true 2>&1)
check_like "the map" '^tandem run: 2 ranks on 1 host$' "$map"
check_like "the map: a rank" "host 0, $(hostname) \(127.0.0.1\): rank 1, (processor|not bound)" "$map"
check "a rank's own variables" "1,2" "$(FOO=1 m -n 2 --no-prefix -x BAR=2 bash -c '[ $RANK = 1 ] || echo $FOO,$BAR')"
check "threads" "3 3" "$(m -n 1 --threads 3 bash -c 'echo $OMP_NUM_THREADS $TANDEM_THREADS')"
check "stdin is rank 0's" "0:question,1:" "$(echo question | m -n 2 --no-prefix bash -c 'read -r line; echo $RANK:$line' | sort | paste -sd,)"
check "the secret is on no command line" "none,none" "$(m -n 2 --no-prefix bash -c 'text=$(cat /proc/[0-9]*/cmdline | tr "\0" " "); [[ $text == *$TANDEM_SECRET* ]] && echo found || echo none' 2> /dev/null | paste -sd,)"

# 2 x 50,000 lines: none lost, none mixed, each rank's in order; a line of a megabyte
run "many lines" 0 -n 2 bash -c 'seq -f "line %.0f of many, long enough to be cut in the middle of a message" 50000; seq 1000 >&2'
check "100,000 lines" 100000 "$(wc -l < "$work/out")"
check "standard error" 2000 "$(wc -l < "$work/err")"
for r in 0 1; do
    check "rank $r's lines, in order" "$(seq -f "[$r] line %.0f of many, long enough to be cut in the middle of a message" 50000 | cksum)" \
        "$(grep "^\[$r\]" "$work/out" | cksum)"
done
check "a long line" "2 1000004" "$(m -n 2 bash -c 'head -c 1000000 /dev/zero | tr "\0" x; echo' | awk '{ print length($0) }' | uniq -c | xargs)"
timeout 30 bash -c '"$0" run --engine mpirun -n 2 yes 2> /dev/null | head -n 3 > /dev/null' "$TANDEM"
check "a closed pipe ends the job" 0 $?

bash -c "$(sleeper)" & stranger=$!
wait_for 5 sleepers_are 1
run "exit 3" 3 -n 3 bash -c "test \$RANK = 1 && exit 3; $(sleeper)"
check_like "exit 3: sentence" "^tandem run: rank 1 on $(hostname) \(pid [0-9]+\) exited with code 3$" "$first"
check "exit 3: only the stranger is left" 1 "$(sleepers)"
run "kill -9" 137 -n 3 bash -c "test \$RANK = 2 && kill -9 \$\$; $(sleeper)"
check_like "kill -9: sentence" '^tandem run: rank 2 on .* was killed by signal 9 \(SIGKILL\)$' "$first"
run "no program" 127 -n 2 no-such-program
check_like "no program: sentence" '^tandem run: rank [01] on .* cannot be started: there is no program "no-such-program" in PATH$' "$first"
run "deaf" 5 -n 2 --timeout-kill 0.5 bash -c "test \$RANK = 1 && exit 5; trap '' TERM; while :; do sleep 0.1; done"
run "daemons" 3 -n 2 bash -c "(setsid bash -c '$(sleeper)' &); sleep 0.3; test \$RANK = 1 && exit 3; wait; sleep 20"
check "daemons: only the stranger is left" 1 "$(sleepers)"
run "left behind by a good end" 0 -n 2 bash -c "(setsid bash -c '$(sleeper)' > /dev/null 2>&1 &); sleep 0.2"
check "left behind: only the stranger is left" 1 "$(sleepers)"
run "black boxes" 137 -n 2 "$BOXED" struck stay
check_like "black boxes: sentence" 'rank 0 on .* was killed by signal 9 \(SIGKILL\) while in all_reduce\(f32, 1000\) #17 of world at boxed.c:[0-9]+, says its black box$' "$first"
check "black boxes: named" "$(hostname):$(ls -d "$work"/boxes/*)" "$(sed -n 's/^tandem run: black box kept: //p' "$work/err")"
rm -f "$work"/boxes/*
run "a peer's report is no cause" 7 -n 3 "$BOXED" peer late-error peer-is-third
check_like "a peer's report: sentence" '^tandem run: rank 1 on .* (exited with code 7|failed): td_dataset_idx: "data" cannot be read' "$first"
rm -f "$work"/boxes/*

# signals, and death from outside: of the launcher, of mpirun, of an agent
lines_are() { [ "$(wc -l < "$1")" -ge "$2" ]; }
begin()
{
    : > "$work/out"
    perl -e '$SIG{$_} = "DEFAULT" for qw(INT HUP TERM USR1 USR2); exec @ARGV' "$TANDEM" run --engine mpirun -n 2 bash -c "$1" > "$work/out" 2> "$work/err" & launcher=$!
    wait_for 20 lines_are "$work/out" 2 || check "$1: both ranks are ready" 2 "$(wc -l < "$work/out")"
}
for s in USR1 TERM INT; do
    begin "trap 'echo got $s; exit 0' $s; echo ready; while :; do sleep 0.05; done"
    kill -$s $launcher
    wait $launcher
    check "$s: exit code" 0 $?
    check "$s reaches both" "[0] got $s,[1] got $s" "$(grep got "$work/out" | sort | paste -sd,)"
done
begin "echo ready; $(sleeper)"
kill -TERM $launcher
wait $launcher
check "TERM, not handled: exit code" 143 $?
check_like "TERM, not handled: sentence" 'was killed by signal 15 \(SIGTERM\), which was passed on to all ranks' "$(head -n 1 "$work/err")"
begin "echo ready; trap '' INT; $(sleeper)"
kill -INT $launcher; sleep 0.2; kill -INT $launcher
wait $launcher
check "INT twice: exit code" 130 $?

child_named() { for p in $(cat /proc/"$1"/task/*/children); do [ "$(cat /proc/"$p"/comm)" = "$2" ] && echo "$p"; done; }
begin "echo ready; (setsid bash -c '$(sleeper)' &); $(sleeper)"
mpirun=$(child_named $launcher mpirun.openmpi) || mpirun=$(child_named $launcher orterun)
[ -n "$mpirun" ] || mpirun=$(cat /proc/$launcher/task/*/children | awk '{ print $1 }')
check "a rank's daemons run" 5 "$(sleepers)"
kill -9 $launcher
wait $launcher 2> /dev/null
wait_for 6 sleepers_are 1
check "launcher killed: only the stranger is left" 1 "$(sleepers)"
engine_gone() { ! kill -0 "$mpirun" 2> /dev/null; }
wait_for 6 engine_gone
check "launcher killed: mpirun is gone, too" gone "$(engine_gone && echo gone)"

begin "echo ready; $(sleeper)"
mpirun=$(cat /proc/$launcher/task/*/children | awk '{ print $1 }')
kill -9 "$mpirun"
wait $launcher
status=$?
[ $status -gt 0 ]; check "mpirun killed: the job fails" 0 $?
check "mpirun killed: only the stranger is left" 1 "$(sleepers)"
check_like "mpirun killed: a sentence" '^tandem run: ' "$(head -n 1 "$work/err")"

begin "echo ready; $(sleeper)"
mpirun=$(cat /proc/$launcher/task/*/children | awk '{ print $1 }')
agent=$(child_named "$mpirun" tandem | tail -n 1)
kill -9 "$agent"
wait $launcher
[ $? -gt 0 ]; check "an agent killed: the job fails" 0 $?
check "an agent killed: only the stranger is left" 1 "$(sleepers)"
check_like "an agent killed: a sentence" '^tandem run: .*(agent of rank|ended with code)' "$(cat "$work/err")"

kill $stranger
wait $stranger 2> /dev/null
finish
