#!/usr/bin/env bash
# title: a rank on another host calls something else: both calls named within 2 s, all ended within 5
# needs: hosts 3
# limit: 600
. "$(dirname "$0")/lib.sh"
[ -x "$BUILD/tests/faults/victim" ] || fail "tests/faults/victim is not built"

hosts_up 3
# What tests/faults/faults.py takes for mpirun. Each rank a host of its own, or a host with two.
for shape in "1 1 1" "1 2"; do
    read -r -a slots <<< "$shape"
    for i in "${!slots[@]}"; do
        hostfile "${slots[$i]}" "$i"
    done > "$WORK/hostfile.${#slots[@]}"
    cat > "$WORK/mpirun.${#slots[@]}" << SH
#!/bin/sh
unset TANDEM_COMM
exec $MPIRUN --hostfile $WORK/hostfile.${#slots[@]} -x TANDEM_FAULT_TAG -x TANDEM_RUNTIME_DIR -x TANDEM_TIMEOUT -x TANDEM_PLUGIN_DIR -x OMP_NUM_THREADS "\$@"
SH
    chmod +x "$WORK/mpirun.${#slots[@]}"
done
mkdir "$WORK/tmp"
for hosts in 3 2; do
    # the files of faults.py must be seen by all hosts
    TMPDIR=$WORK/tmp on 0 python3 "$ROOT/tests/faults/faults.py" --tandem "$TANDEM" --victim "$BUILD/tests/faults/victim" --mpirun "$WORK/mpirun.$hosts" --times 2 --kinds kind,dtype,count,order \
        --seed "$((20260000 + hosts))" > "$WORK/faults.$hosts" 2>&1 || { grep -v '^ok' "$WORK/faults.$hosts"; fail "over $hosts hosts: $(grep -c '^not ok' "$WORK/faults.$hosts") faults are not handled"; }
done
grep -h '^ok' "$WORK"/faults.* | sed 's/.*named after \([0-9.]*\) s, ended after \([0-9.]*\) s/\1 \2/' > "$WORK/times"
count=$(wc -l < "$WORK/times")
figure "other calls over 2 and 3 hosts, mpirun ($count faults): named after at most" "$(cut -d ' ' -f 1 "$WORK/times" | sort -g | tail -n 1)" "s (limit 2)"
figure "other calls over 2 and 3 hosts, mpirun: the job is ended after at most" "$(cut -d ' ' -f 2 "$WORK/times" | sort -g | tail -n 1)" "s (limit 5)"
