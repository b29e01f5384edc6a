#!/bin/bash
# A rank that fails: who is named, how, the exit code, and that everything the job started ends, and nothing else.
. "$(dirname "$0")/lib.sh"

# run NAME EXPECTED_CODE ARGS…: stderr in $said, first line in $first, seconds in $took
run()
{
    local name=$1 code=$2 begun=$SECONDS; shift 2
    "$TANDEM" run "$@" > "$work/out" 2> "$work/err"
    check "$name: exit code" "$code" $?
    took=$((SECONDS - begun))
    said=$(cat "$work/err")
    first=$(head -n 1 "$work/err")
}

run "all well" 0 -n 4 true
check "all well: silence" "" "$said"

bash -c "$(sleeper)" & stranger=$!             # not of the job: it must survive everything below
wait_for 5 sleepers_are 1
run "exit 3" 3 -n 3 bash -c "test \$RANK = 1 && exit 3; $(sleeper)"
check_like "exit 3: sentence" '^tandem run: rank 1 \(pid [0-9]+\) exited with code 3$' "$first"
check "exit 3: only the stranger is left" 1 "$(sleepers)"
[ $took -le 4 ]; check "exit 3: within 4 s" 0 $?

run "kill -9" 137 -n 3 bash -c "test \$RANK = 2 && kill -9 \$\$; $(sleeper)"
check_like "kill -9: sentence" '^tandem run: rank 2 \(pid [0-9]+\) was killed by signal 9 \(SIGKILL\)$' "$first"
run "SIGSEGV" 139 -n 2 bash -c "test \$RANK = 0 && kill -SEGV \$\$; $(sleeper)"
check_like "SIGSEGV: sentence" 'rank 0 \(pid [0-9]+\) was killed by signal 11 \(SIGSEGV\)' "$first"
run "one rank" 9 -n 1 bash -c 'exit 9'

# children, grandchildren and daemons of ranks end too
run "children" 3 -n 2 bash -c "($(sleeper)) & (setsid bash -c '$(sleeper)' &) ; sleep 0.3; test \$RANK = 1 && exit 3; wait"
check "children: only the stranger is left" 1 "$(sleepers)"
run "left behind by a good end" 0 -n 2 bash -c "(setsid bash -c '$(sleeper)' > /dev/null 2>&1 &); sleep 0.2; exit 0"
check "left behind: only the stranger is left" 1 "$(sleepers)"
run "left behind, holding the pipes" 0 -n 2 bash -c "(setsid bash -c '$(sleeper)' &); sleep 0.2; exit 0"

# SIGTERM is ignored: SIGKILL comes
run "deaf" 5 -n 2 --timeout-kill 0.5 bash -c "test \$RANK = 1 && exit 5; trap '' TERM; while :; do sleep 0.1; done"
[ $took -le 4 ]; check "deaf: killed in time" 0 $?
# the others have time for a sentence of their own, and a clean end at SIGTERM
run "last words" 6 -n 2 bash -c "trap 'echo ended by TERM; exit 0' TERM; test \$RANK = 1 && exit 6; sleep 0.4; echo my word; while :; do sleep 0.1; done"
check "last words" "[0] my word,[0] ended by TERM" "$(paste -sd, "$work/out")"
# several fail: the first is the cause
run "two fail" 4 -n 3 bash -c "test \$RANK = 2 && exit 4; sleep 0.4; test \$RANK = 1 && exit 5; $(sleeper)"
check_like "two fail: sentence" 'rank 2 \(pid [0-9]+\) exited with code 4 \(1 other rank failed too\)$' "$first"

# the launcher is killed: the ranks end
"$TANDEM" run -n 2 bash -c "$(sleeper)" > /dev/null 2>&1 & launcher=$!
wait_for 5 sleepers_are 3
check "ranks run" 3 "$(sleepers)"
kill -9 $launcher
wait $launcher 2> /dev/null
wait_for 5 sleepers_are 1
check "launcher killed: only the stranger is left" 1 "$(sleepers)"

kill $stranger
wait $stranger 2> /dev/null
finish
