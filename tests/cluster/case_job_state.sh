#!/usr/bin/env bash
# title: a signal to one rank of 4 on 2 hosts, to mpirun, to tandem run: all save after the same step, exit with 75, and go on bit for bit
# needs: hosts 2
# limit: 300
. "$(dirname "$0")/lib.sh"
[ -x "$BUILD/tests/job/state_loop" ] || fail "tests/job/state_loop is not built"

hosts_up 2
hostfile 2 > "$WORK/hostfile"
job=($MPIRUN -q --hostfile "$WORK/hostfile" -np 4 -x TANDEM_PLUGIN_DIR -x OMP_NUM_THREADS "$BUILD/tests/job/state_loop" "$WORK/state")
on 0 timeout 100 $MPIRUN -q --hostfile "$WORK/hostfile" -np 4 -x TANDEM_PLUGIN_DIR -x OMP_NUM_THREADS "$BUILD/tests/job/state_loop" "$WORK/none" "$WORK/whole" 0 \
    > "$WORK/out" 2>&1 || fail "undisturbed: $(tail -n 3 "$WORK/out")"
last=0

training() { [ "$(grep -cE '(began|resumed) [0-9]+ rank' "$WORK/out")" -ge 4 ]; }
# interrupt NAME FUNCTION: begins the job, lets FUNCTION send a signal, looks at how it ends
interrupt()
{
    : > "$WORK/out"
    on_start 0 timeout 100 "${job[@]}" "$WORK/result" 40 > "$WORK/out" 2>&1
    wait_until 60 training || fail "$1: the ranks do not begin: $(tail -n 3 "$WORK/out")"
    sleep 0.3
    $2
    wait "$started"
    local status=$?
    steps=$(sed -n 's/.*stopped \([0-9]*\) .*/\1/p' "$WORK/out" | sort -u)
    [ "$status" = 75 ] || fail "$1: the exit status is $status, expected 75: $(tail -n 5 "$WORK/out")"
    [ "$(grep -c stopped "$WORK/out")" = 4 ] && [ "$(wc -w <<< "$steps")" = 1 ] || fail "$1: the ranks stopped after steps $(echo $steps), expected 4 ranks after one"
    [ "$last" = 0 ] || [ "$(grep -c "resumed $last " "$WORK/out")" = 4 ] || fail "$1: not all ranks went on from step $last"
    [ "$steps" -gt "$last" ] || fail "$1: stopped after step $steps, expected more than $last"
    last=$steps
}
one_rank() { kill -USR1 "$(sed -n 's/.*rank 3 pid //p' "$WORK/out" | head -n 1)"; }
two_ranks() { for r in 2 0; do kill -TERM "$(sed -n "s/.*rank $r pid //p" "$WORK/out" | head -n 1)"; done; }
to_launcher() { kill "-$1" "$(pgrep -P "$started" | head -n 1)"; }
usr1_to_launcher() { to_launcher USR1; }
term_to_launcher() { to_launcher TERM; }
interrupt "SIGUSR1 to rank 3 under mpirun" one_rank
interrupt "SIGTERM to ranks 2 and 0 under mpirun" two_ranks
interrupt "SIGUSR1 to mpirun" usr1_to_launcher
job=("$TANDEM" run --hostfile "$WORK/hostfile" "$BUILD/tests/job/state_loop" "$WORK/state")
interrupt "SIGUSR1 to rank 3 under tandem run" one_rank
grep -q 'exited with code 75, which asks for another start' "$WORK/out" || fail "tandem run does not say what 75 means: $(cat "$WORK/out")"
interrupt "SIGUSR1 to tandem run" usr1_to_launcher
interrupt "SIGTERM to tandem run" term_to_launcher
on 0 timeout 100 "${job[@]}" "$WORK/result" 0 > "$WORK/out" 2>&1 || fail "the rest: $(tail -n 3 "$WORK/out")"
cmp "$WORK/whole" "$WORK/result" || fail "the weights differ from the undisturbed run's"
figure "job state, 4 ranks on 2 hosts: interruptions, weights equal the undisturbed run's" "6, in every bit" ""
