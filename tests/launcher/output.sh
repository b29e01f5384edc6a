#!/bin/bash
# Output: prefixes, whole lines, nothing lost, both streams, unfinished lines, a reader that goes away, a terminal.
. "$(dirname "$0")/lib.sh"

check "prefixes" "[0] hello from 0,[1] hello from 1" "$("$TANDEM" run -n 2 bash -c 'echo hello from $RANK' | sort | paste -sd,)"
check "one rank has none" "hello" "$("$TANDEM" run -n 1 echo hello)"
check "--no-prefix" "hello,hello" "$("$TANDEM" run -n 2 --no-prefix echo hello | paste -sd,)"
"$TANDEM" run -n 2 bash -c 'echo out; echo err >&2' > "$work/out" 2> "$work/err"
check "standard output" "[0] out,[1] out" "$(sort "$work/out" | paste -sd,)"
check "standard error" "[0] err,[1] err" "$(sort "$work/err" | paste -sd,)"
check "an unfinished last line is finished" "[0] end,[1] end" "$("$TANDEM" run -n 2 printf end | sort | paste -sd,)"
check "empty lines stay" 4 "$("$TANDEM" run -n 2 printf '\n\n' | grep -c '^\[[01]\] $')"

# 2 x 50,000 lines with numbers: none lost, none mixed, each rank's in order
"$TANDEM" run -n 2 bash -c 'seq -f "line %.0f of many, long enough to be cut in the middle of a pipe" 50000' > "$work/many"
check "100,000 lines" 100000 "$(wc -l < "$work/many")"
for r in 0 1; do
    check "rank $r's lines, in order" "$(seq -f "[$r] line %.0f of many, long enough to be cut in the middle of a pipe" 50000 | cksum)" \
        "$(grep "^\[$r\]" "$work/many" | cksum)"
done

# a line of a megabyte stays one
check "a long line" "2 1000004" "$("$TANDEM" run -n 2 bash -c 'head -c 1000000 /dev/zero | tr "\0" x; echo' | awk '{ print length($0) }' | uniq -c | xargs)"

# a reader that goes away: the ranks learn it, nothing hangs
timeout 20 bash -c '"$0" run -n 2 yes 2> /dev/null | head -n 3 > /dev/null' "$TANDEM"
check "a closed pipe ends the job" 0 $?

# a terminal, made by script(1): unfinished lines are shown at once, and others' lines stand above them
if script -qec true /dev/null < /dev/null > /dev/null 2>&1; then   # a bare container may have no terminals to give
    script -qec "'$TANDEM' run -n 2 bash -c 'if [ \$RANK = 0 ]; then printf \"bar 1\r\"; sleep 0.5; printf \"bar 2\r\"; sleep 0.5; echo done; else sleep 0.25; echo between; fi'" /dev/null < /dev/null > "$work/screen"
    check_like "a progress line on a terminal" 'bar 1.*between.*bar 1.*bar 2.*done' "$(tr -d '\n' < "$work/screen" | tr '\r\033' '..')"
    check "columns are told, without the prefix" "[0] 73" "$(script -qec "stty cols 77; '$TANDEM' run -n 2 bash -c 'test \$RANK = 1 || echo \$TANDEM_TERMINAL'" /dev/null < /dev/null | tr -d '\r')"
fi
# per-rank files: torchrun's --tee and --redirects
logs() { cat "$work"/logs/*/"$1"/"$2".log 2> /dev/null; rm -rf "$work/logs/"*/"$1"/"$2".log; }
both() { "$TANDEM" run -n 2 --log-dir "$work/logs" "$@" bash -c 'echo out $RANK; echo err $RANK >&2' 2> "$work/err" | sort | paste -sd,; }
check "--tee 1: shown" "[0] out 0,[1] out 1" "$(both -t 1)"
check "--tee 1: kept" "out 0,out 1,," "$(logs 0 stdout),$(logs 1 stdout),$(logs 0 stderr),$(logs 1 stderr)"
check "--redirects 3: nothing is shown" "" "$(both --redirects 3)$(cat "$work/err")"
check "--redirects 3: kept" "out 0,out 1,err 0,err 1" "$(logs 0 stdout),$(logs 1 stdout),$(logs 0 stderr),$(logs 1 stderr)"
check "--redirects 1:1 and --tee 0:2" "[0] out 0 [0] err 0,[1] err 1" "$(both -r 1:1 --tee=0:2) $(sort "$work/err" | paste -sd,)"
check "--redirects 1:1 and --tee 0:2: kept" "out 1,err 0" "$(logs 1 stdout),$(logs 0 stderr)"
check "--local-ranks-filter" "[1] out 1" "$(both --local-ranks-filter 1)"
check "--tag-output with one rank" "[0] x" "$("$TANDEM" run -n 1 --tag-output echo x)"
check_like "a folder that cannot be made" '^tandem run: /proc/nothing/.* cannot be written' "$("$TANDEM" run -n 1 --log-dir /proc/nothing -t 3 true 2>&1)"
check "no terminal" 0 "$("$TANDEM" run -n 1 printenv TANDEM_TERMINAL)"
check "a script says it is one" 96 "$(TANDEM_TERMINAL=100 "$TANDEM" run -n 2 --no-prefix bash -c 'echo $((TANDEM_TERMINAL - 4))' | sort -u)"
finish
