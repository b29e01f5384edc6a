#!/bin/bash
# Signals that the launcher gets are the ranks'.
. "$(dirname "$0")/lib.sh"

lines_are() { [ "$(wc -l < "$1")" -ge "$2" ]; }

# begin NAME SCRIPT: starts two ranks in the background with default signals, waits for their word "ready"
begin()
{
    name=$1
    : > "$work/out"
    perl -e '$SIG{$_} = "DEFAULT" for qw(INT HUP TERM USR1 USR2); exec @ARGV' "$TANDEM" run -n 2 bash -c "$2" > "$work/out" 2> "$work/err" & launcher=$!
    wait_for 5 lines_are "$work/out" 2 || check "$name: both ranks are ready" 2 "$(wc -l < "$work/out")"
}

for s in USR1 USR2 HUP TERM INT; do
    begin $s "trap 'echo got $s; exit 0' $s; echo ready; while :; do sleep 0.05; done"
    kill -$s $launcher
    wait $launcher
    check "$s: exit code" 0 $?
    check "$s reaches both" "[0] got $s,[1] got $s" "$(grep got "$work/out" | sort | paste -sd,)"
done

begin "TERM, not handled" "echo ready; $(sleeper)"
kill -TERM $launcher
wait $launcher
check "TERM, not handled: exit code" 143 $?
check_like "TERM, not handled: sentence" 'rank [01] \(pid [0-9]+\) was killed by signal 15 \(SIGTERM\), which was passed on to all ranks' "$(head -n 1 "$work/err")"

# time for a checkpoint after SIGTERM, more than between SIGTERM and SIGKILL
begin "checkpoint" "trap 'sleep 2.5; echo saved; exit 0' TERM; echo ready; test \$RANK = 1 && trap - TERM; while :; do sleep 0.05; done"
sleep 0.2
kill -TERM $launcher
wait $launcher
check "checkpoint: exit code" 143 $?
check "checkpoint: was written" "[0] saved" "$(grep saved "$work/out")"

begin "second INT" "trap '' INT; echo ready; while :; do sleep 0.05; done"
kill -INT $launcher; sleep 0.3
kill -0 $launcher; check "second INT: the first was ignored" 0 $?
kill -INT $launcher
wait $launcher
check "second INT: exit code" 130 $?

# nohup stays nohup
: > "$work/out"
nohup "$TANDEM" run -n 2 bash -c 'echo ready; sleep 0.6; echo end' > "$work/out" 2> /dev/null & launcher=$!
wait_for 5 lines_are "$work/out" 2
kill -HUP $launcher
wait $launcher
check "nohup: exit code" 0 $?
check "nohup: the ranks ended by themselves" 2 "$(grep -c end "$work/out")"

# ranks that have ended before the launcher first waits, beside others so that it is slow at it: each end is seen
short_lives() { for _ in {1..40}; do timeout -s KILL 20 "$TANDEM" run -n 1 true || return 1; done; }
lives=()
for _ in 1 2 3 4; do short_lives & lives+=($!); done
for pid in "${lives[@]}"; do
    wait "$pid"
    check "short lives: the end of each rank is seen" 0 $?
done
finish
