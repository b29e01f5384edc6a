#!/usr/bin/env bash
# title: a rank on another host dies, stops, leaves, calls something else: named within 2 s, all ended within 5
# needs: hosts 3
# limit: 600
. "$(dirname "$0")/lib.sh"
[ -x "$BUILD/tests/faults/victim" ] || fail "tests/faults/victim is not built"

hosts_up 3
# What tests/faults/faults.py takes for `tandem` and for mpirun, over a hostfile: each rank a host of its own, or a host with two.
for shape in "1 1 1" "1 2"; do
    read -r -a slots <<< "$shape"
    hosts=${#slots[@]}
    for i in "${!slots[@]}"; do
        hostfile "${slots[$i]}" "$i"
    done > "$WORK/hostfile.$hosts"
    printf '#!/bin/sh\nshift\nexec %s run --hostfile %s "$@"\n' "$TANDEM" "$WORK/hostfile.$hosts" > "$WORK/tandem.$hosts"
    printf '#!/bin/sh\nunset TANDEM_COMM\nexec %s --hostfile %s -x TANDEM_FAULT_TAG -x TANDEM_RUNTIME_DIR -x TANDEM_TIMEOUT -x TANDEM_PLUGIN_DIR -x OMP_NUM_THREADS "$@"\n' \
        "$MPIRUN" "$WORK/hostfile.$hosts" > "$WORK/mpirun.$hosts"
    chmod +x "$WORK/tandem.$hosts" "$WORK/mpirun.$hosts"
done
mkdir "$WORK/tmp"

# faults LAUNCHER TITLE KINDS TIMES: over 3 and 2 hosts; the slowest of them as figures
faults()
{
    local launcher=$1 title=$2 hosts option=() count
    for hosts in 3 2; do
        [ "$launcher" = tandem ] || option=(--mpirun "$WORK/mpirun.$hosts")
        # the files of faults.py must be seen by all hosts
        TMPDIR=$WORK/tmp on 0 python3 "$ROOT/tests/faults/faults.py" --tandem "$WORK/tandem.$hosts" --victim "$BUILD/tests/faults/victim" "${option[@]}" \
            --kinds "$3" --times "$4" --seed "$((20260000 + hosts))" --grace 1 > "$WORK/out.$launcher.$hosts" 2>&1 ||
            { grep -v '^ok' "$WORK/out.$launcher.$hosts"; fail "$title over $hosts hosts: $(grep -c '^not ok' "$WORK/out.$launcher.$hosts") faults are not handled"; }
    done
    grep -h '^ok' "$WORK/out.$launcher".[23] | sed 's/.*named after \([0-9.]*\) s, ended after \([0-9.]*\) s/\1 \2/' > "$WORK/times"
    count=$(wc -l < "$WORK/times")
    figure "$title, 2 and 3 hosts, $count faults: named after at most" "$(cut -d ' ' -f 1 "$WORK/times" | sort -g | tail -n 1)" "s (limit 2)"
    figure "$title, 2 and 3 hosts: all ended after at most" "$(cut -d ' ' -f 2 "$WORK/times" | sort -g | tail -n 1)" "s (limit 5)"
}
faults mpirun "mpirun, other calls" kind,dtype,count,order 1
faults tandem "tandem run, death, stop, leaving, other calls" kill,stop,return,finish,exit3,kind,dtype,count,order 1
