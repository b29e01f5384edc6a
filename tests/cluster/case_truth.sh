#!/usr/bin/env bash
# title: N ranks on 2 and 3 hosts train like one process (tests/truth), under mpirun
# needs: hosts 3
# limit: 900
. "$(dirname "$0")/lib.sh"
[ -x "$BUILD/tests/truth/truth" ] || fail "tests/truth/truth is not built"

hosts_up 3
# hosts ranks
for shape in "2 2" "2 4" "3 3"; do
    read -r hosts ranks <<< "$shape"
    # shellcheck disable=SC2046
    hostfile $((ranks / hosts)) $(seq 0 $((hosts - 1))) > "$WORK/hostfile"
    seconds on 0 timeout 280 $MPIRUN -q --hostfile "$WORK/hostfile" -np "$ranks" -x TANDEM_PLUGIN_DIR -x OMP_NUM_THREADS "$BUILD/tests/truth/truth" > "$WORK/truth" 2>&1
    status=$?
    grep '^not ok' "$WORK/truth"
    [ "$status" = 0 ] || fail "$ranks ranks on $hosts hosts: status $status: $(grep -v '^ok' "$WORK/truth" | head -n 5)"
    count=$(grep -c '^ok' "$WORK/truth")
    grep -q "^1\.\.$count$" "$WORK/truth" || fail "$ranks ranks on $hosts hosts: $count of $(grep '^1\.\.' "$WORK/truth") checks"
    worst=$(grep -v 'left out' "$WORK/truth" | grep -o 'f64 on .*worst [^,]*' | sed 's/.*worst //' | sort -g | tail -n 1)
    figure "truth, $ranks ranks on $hosts hosts: $count checks; largest difference of f64 weights" "$worst" "relative; $took s"
done
