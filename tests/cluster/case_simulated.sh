#!/usr/bin/env bash
# title: steps simulated by SimGrid (bench/scaling) beside the same steps on 2 to 4 hosts with slow links
# needs: hosts 4
# limit: 600
. "$(dirname "$0")/lib.sh"
command -v smpirun > /dev/null || skip "SimGrid's smpirun is not there (libsimgrid-dev)"
for program in emulate trace; do [ -x "$BUILD/bench/scaling/$program" ] || fail "bench/scaling/$program is not built"; done

# ResNet-50's buckets at 4 % of their bytes: 4 MB. A step that computes for 150 ms, so that at these rates some of the communication hides and some does not.
awk '/^bucket/ { printf "bucket %d %s\n", $2 * 0.04 / 64 * 64, $3 }' "$ROOT/docs/scaling/resnet50.plan" > "$WORK/plan"
forward=50 backward=90 optimizer=10

hosts_up 4
worst=0
for shape in "2 200" "3 200" "4 500"; do
    read -r hosts mbits <<< "$shape"
    hosts_rate "${mbits}mbit"
    # shellcheck disable=SC2046
    hostfile 1 $(seq 0 $((hosts - 1))) > "$WORK/hostfile"
    for algorithm in ring halving; do
        real=$(on 0 timeout 100 $MPIRUN -q --hostfile "$WORK/hostfile" -np "$hosts" -x TANDEM_PLUGIN_DIR -x OMP_NUM_THREADS -x TANDEM_ALGORITHM=$algorithm \
            "$BUILD/bench/scaling/emulate" "$WORK/plan" --forward $forward --backward $backward --optimizer $optimizer --steps 9) ||
            fail "$hosts hosts, $algorithm: $real"
        grep -q 'backend hier' <<< "$real" || fail "the ranks do not use the library's own schedules: $real"
        measured=$(awk '{ for (i = 1; i < NF; i++) if ($i == "step") print $(i + 1) }' <<< "$real")
        simulated=$(python3 "$ROOT/bench/scaling/run.py" "$BUILD" one "$WORK/plan" "$algorithm" "$hosts" 1 "$(awk "BEGIN { print $mbits / 1000 }")" \
            $forward $backward $optimizer 50) || fail "the simulation of $hosts hosts, $algorithm: $simulated"
        off=$(awk "BEGIN { print ($simulated / $measured - 1) * 100 }")
        figure "step of $hosts hosts at $mbits Mbit/s, $algorithm: measured; simulated $simulated ms" "$measured" "ms, $off %"
        worst=$(awk "BEGIN { o = $off < 0 ? -($off) : $off; print (o > $worst) ? o : $worst }")
    done
done
awk "BEGIN { exit !($worst < 10) }" || fail "a simulated step is $worst % from the measured one; at most 10 expected"
