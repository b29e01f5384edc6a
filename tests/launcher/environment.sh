#!/bin/bash
# What each rank finds: our variables, torchrun's, threads, cores, arguments, standard input.
. "$(dirname "$0")/lib.sh"

"$TANDEM" run -n 3 --no-prefix bash -c 'env > '"$work"'/env.$RANK'
check "exit code" 0 $?
value() { sed -n "s/^$2=//p" "$work/env.$1"; }
for r in 0 1 2; do
    for v in TANDEM_RANK TANDEM_LOCAL_RANK RANK LOCAL_RANK; do check "$v of rank $r" $r "$(value $r $v)"; done
    for v in TANDEM_SIZE TANDEM_LOCAL_SIZE WORLD_SIZE LOCAL_WORLD_SIZE; do check "$v of rank $r" 3 "$(value $r $v)"; done
    check "GROUP_RANK of rank $r" 0 "$(value $r GROUP_RANK)"
    check "MASTER_ADDR of rank $r" 127.0.0.1 "$(value $r MASTER_ADDR)"
    check_like "secret of rank $r" '^[0-9a-f]{64}$' "$(value $r TANDEM_SECRET)"
    check "store of rank $r" "unix:@tandem-$(value 0 TANDEM_JOB)" "$(value $r TANDEM_STORE)"
    for v in TANDEM_JOB TANDEM_SECRET TANDEM_STORE MASTER_PORT TORCHELASTIC_RUN_ID; do
        check "$v of rank $r is the job's" "$(value 0 $v)" "$(value $r $v)"
    done
done
check_like "a port" '^[0-9]+$' "$(value 0 MASTER_PORT)"
[ "$(value 0 MASTER_PORT)" -gt 1023 ]; check "an unprivileged port" 0 $?
"$TANDEM" run -n 1 bash -c 'echo $TANDEM_JOB $TANDEM_SECRET' > "$work/other"
if grep -q "$(value 0 TANDEM_JOB)\|$(value 0 TANDEM_SECRET)" "$work/other"; then check "another job is another" different same; fi

# the user's own words stand; ours replace an outer launcher's
check "OMP_NUM_THREADS stands" 7 "$(OMP_NUM_THREADS=7 "$TANDEM" run -n 1 printenv OMP_NUM_THREADS)"
check "--threads" "5 5" "$(OMP_NUM_THREADS=7 "$TANDEM" run --threads 5 -n1 bash -c 'echo $OMP_NUM_THREADS $TANDEM_THREADS')"
check "outer variables are replaced" "0 1" "$(RANK=5 WORLD_SIZE=9 "$TANDEM" run --nproc-per-node=1 bash -c 'echo $RANK $WORLD_SIZE')"
check "other variables pass" "a b=c" "$(ODD='a b=c' "$TANDEM" run -n 1 printenv ODD)"

# arguments arrive as they are
check "arguments" "<a b><><*><-n><--><\$x>" "$("$TANDEM" run -n 1 -- printf '<%s>' 'a b' '' '*' -n -- '$x')"
check "options after the program are the program's" "5" "$("$TANDEM" run -n 1 /bin/echo -n 5)"
cp /bin/echo "$work/my program"
check "a program with a blank in its name" "hello" "$("$TANDEM" run -n 1 "$work/my program" hello)"

# standard input is rank 0's
check "stdin" "0:question 1:" "$(echo question | "$TANDEM" run -n 2 --no-prefix bash -c 'read -r line; echo $RANK:$line' | sort | xargs)"

# cores: whole ones, no overlap, all of them within what we may use (ranks with GPUs would have those near them)
cores=$(nproc)
first=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status | sed 's/[-,].*//')
if [ "$cores" -ge 2 ] && [ "$(getconf _NPROCESSORS_ONLN)" -ge 2 ]; then
    TANDEM_DEVICE=cpu "$TANDEM" run -n 2 --no-prefix bash -c 'env -u OMP_NUM_THREADS nproc > '"$work"'/n.$RANK; sed -n "s/^Cpus_allowed_list:[[:space:]]*//p" /proc/self/status > '"$work"'/cpus.$RANK'
    if cmp -s "$work/cpus.0" "$work/cpus.1"; then check "two ranks have different cores" different "$(cat "$work/cpus.0")"; fi
    check "together they have all" "$cores" "$(($(cat "$work/n.0") + $(cat "$work/n.1")))"
fi
check "our own affinity is respected" "$first 1" \
    "$(taskset -c "$first" "$TANDEM" run -n 1 bash -c 'echo $(sed -n "s/^Cpus_allowed_list:[[:space:]]*//p" /proc/self/status) $OMP_NUM_THREADS')"
check "more ranks than cores: not bound, one thread each" "8 $first-1" \
    "$(taskset -c "$first" "$TANDEM" run -n 8 --no-prefix bash -c 'echo $(sed -n "s/^Cpus_allowed_list:[[:space:]]*//p" /proc/self/status)-$OMP_NUM_THREADS' | sort | uniq -c | xargs)"
finish
