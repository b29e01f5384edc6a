#!/usr/bin/env bash
# title: a training step between 2 hosts at 1 Gbit/s hides its communication behind backward
# needs: hosts 2
# limit: 300
. "$(dirname "$0")/lib.sh"
[ -x "$BUILD/bench/hosts" ] || fail "bench/hosts is not built"

# 38 MB of gradients take 0.3 s of wire; backward of 1536 rows twice that. One rank a host, as many as most small machines have cores.
hosts_up 2
hosts_rate 1gbit
hostfile 1 > "$WORK/hostfile"
value() { awk -v name="$1" '{ for (i = 1; i < NF; i++) if ($i == name) print $(i + 1) }' <<< "$out"; }
# three runs, the middle one: other work on the machine shows as waiting
for i in 1 2 3; do
    out=$(on 0 timeout 90 $MPIRUN -q --hostfile "$WORK/hostfile" -np 2 -x TANDEM_PLUGIN_DIR -x OMP_NUM_THREADS "$BUILD/bench/hosts" train 8 1536 2> "$WORK/err") ||
        fail "$(tail -n 3 "$WORK/err")"
    bytes=$(value bytes) comm=$(value comm_ms) exposed=$(value exposed_ms)
    wire=$(awk "BEGIN { print $bytes * 8 / 1e9 * 1000 }")
    hidden=$(awk "BEGIN { printf \"%.1f\", 100 * (1 - $exposed / $comm) }")
    echo "$hidden backward $(value backward_ms) ms, sums $comm ms (wire $wire ms), waited for $exposed ms" >> "$WORK/runs"
    # the sums cannot be faster than the wire: a link without its limit would make the rest mean nothing
    awk "BEGIN { exit !($comm > 0.95 * $wire) }" || fail "$bytes bytes crossed in $comm ms, faster than 1 Gbit/s"
done
cat "$WORK/runs"
read -r hidden text <<< "$(sort -g "$WORK/runs" | sed -n 2p)"
figure "step over 1 Gbit/s, 2 hosts: $text: hidden" "$hidden" %
awk "BEGIN { exit !($hidden >= 85) }" || fail "$hidden % hidden, at least 85 expected (needs a quiet machine with 2 cores)"
