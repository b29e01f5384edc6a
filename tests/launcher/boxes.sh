#!/bin/bash
# The verdict from the black boxes: what a rank was doing and where, its error, and which of several failures is the cause.
. "$(dirname "$0")/lib.sh"
: "${BOXED:?the helper program}"
line=$(grep -n 'the line that boxes.sh looks for' "$(dirname "$0")/boxed.c" | head -n 1 | cut -d: -f1)

# run NAME CODE PATTERN BOXES HOW…: ranks end as HOW says; the first line matches; that many boxes are kept, and named
run()
{
    local name=$1 code=$2 pattern=$3 boxes=$4; shift 4
    rm -rf "$work/boxes"
    "$TANDEM" run -n $# "$BOXED" "$@" > /dev/null 2> "$work/err"
    check "$name: exit code" "$code" $?
    check_like "$name: sentence" "$pattern" "$(grep '^tandem run' "$work/err" | head -n 1)"
    check "$name: boxes kept" "$boxes" "$(ls "$work/boxes" | wc -l)"
    check "$name: boxes named" "$(ls -d "$work"/boxes/* 2> /dev/null | xargs)" "$(sed -nE 's/^tandem run: black box(es)? kept: //p' "$work/err")"
    rm -rf "$work/boxes"
}
run "all well" 0 '^$' 0 well well early
run "struck" 137 "^tandem run: rank 1 \(pid [0-9]+\) was killed by signal 9 \(SIGKILL\) while in all_reduce\(f32, 1000\) #17 of world at boxed.c:$line, says its black box$" 1 stay struck
run "error" 134 '^tandem run: rank 0 \(pid [0-9]+\) gave up with signal 6 \(SIGABRT\): td_add: shapes \(64,128\) and \(64,127\) do not broadcast at dimension 1$' 1 error stay
run "a peer's report is no cause" 7 '^tandem run: rank 1 \(pid [0-9]+\) (exited with code 7|failed): td_dataset_idx: "data" cannot be read' 2 peer late-error peer-is-third
run "a rank that left early" 1 '^tandem run: rank 0 \(pid [0-9]+\) exited with code 1: td_all_reduce: rank 1 died' 1 peer early
finish
