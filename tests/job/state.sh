#!/bin/bash
# td_job_state seen from outside: a signal to one rank, to the launcher, twice; exit code 75; the same weights in the end.
. "$(dirname "$0")/../launcher/lib.sh"
unset TANDEM_QUIET

# begin NAME COMMAND…: in the background, with default signals; waits until $ranks ranks have said that they train
begin()
{
    name=$1; shift
    : > "$work/out"
    perl -e '$SIG{$_} = "DEFAULT" for qw(TERM USR1); exec @ARGV' "$@" > "$work/out" 2> "$work/err" & job=$!
    wait_for 20 lines_are "$work/out" $ranks || check "$name: all ranks train" $ranks "$(wc -l < "$work/out")"
    sleep 0.2
}
lines_are() { [ "$(wc -l < "$1")" -ge "$2" ]; }
pid_of() { sed -n "s/.*rank $1 pid //p" "$work/out" | head -n 1; }

# ended NAME: exit code 75, all ranks after the same step, which is later than the last time
ended()
{
    wait $job
    check "$1: exit code" 75 $?
    check "$1: all ranks stopped" $ranks "$(grep -c stopped "$work/out")"
    local steps; steps=$(sed -n 's/.*stopped \([0-9]*\) .*/\1/p' "$work/out" | sort -u)
    check "$1: after one step ($steps)" 1 "$(wc -w <<< "$steps")"
    check "$1: and later than before" yes "$([ "${steps%% *}" -gt "$last" ] && echo yes)"
    last=${steps%% *}
}

for ranks in 2 3; do
    state=$work/state-$ranks whole=$work/whole-$ranks result=$work/result-$ranks last=0
    run=("$TANDEM" run -n $ranks "$STATE_LOOP" "$state" "$result")
    "$TANDEM" run -n $ranks "$STATE_LOOP" "$work/none" "$whole" 0 > /dev/null
    check "$ranks ranks, undisturbed: exit code" 0 $?
    check "$ranks ranks, undisturbed: no state" no "$([ -e "$work/none" ] && echo yes || echo no)"

    begin "USR1 to rank 1" "${run[@]}" 30
    check "USR1 to rank 1: from the beginning" $ranks "$(grep -c 'began 0' "$work/out")"
    kill -USR1 "$(pid_of 1)"
    ended "USR1 to rank 1"
    check_like "USR1 to rank 1: said" "SIGUSR1 reached rank 1: the state after step $last is in .*state-$ranks; exit status 75 asks for another start" "$(cat "$work/err")"
    check_like "USR1 to rank 1: the launcher" 'exited with code 75, which asks for another start$' "$(cat "$work/err")"

    begin "TERM to the launcher" "${run[@]}" 30
    check "TERM to the launcher: went on from there" $ranks "$(grep -c "resumed $last " "$work/out")"
    kill -TERM $job
    ended "TERM to the launcher"

    begin "USR1, then TERM" "${run[@]}" 30
    kill -USR1 $job; kill -TERM $job; sleep 0.01; kill -TERM "$(pid_of 0)" 2> /dev/null
    ended "USR1, then TERM"

    "${run[@]}" 0 > "$work/out" 2> "$work/err"
    check "$ranks ranks, the rest: exit code" 0 $?
    check "$ranks ranks, the rest: went on" $ranks "$(grep -c "resumed $last " "$work/out")"
    check "$ranks ranks: the weights" same "$(cmp -s "$whole" "$result" && echo same)"
done

# without a launcher
ranks=1 last=0
"$STATE_LOOP" "$work/none" "$work/whole" 0 > /dev/null
begin "alone" "$STATE_LOOP" "$work/state" "$work/result" 30
kill -TERM $job
ended "alone"
"$STATE_LOOP" "$work/state" "$work/result" 0 > /dev/null 2>&1
check "alone: the weights" same "$(cmp -s "$work/whole" "$work/result" && echo same)"
finish
