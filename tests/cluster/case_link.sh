#!/usr/bin/env bash
# title: sums between hosts use the link: 8 MiB at 200 Mbit/s within a tenth of the ideal
# needs: hosts 3
# limit: 400
. "$(dirname "$0")/lib.sh"
[ -x "$BUILD/bench/hosts" ] || fail "bench/hosts is not built"

hosts_up 3
BYTES=8388608
ROUNDS=5
# runs N ranks, so many on each host, options of mpirun, then the program's arguments
hosts()
{
    local slots=$1 ranks=$2 out; shift 2
    hostfile "$slots" > "$WORK/hostfile"
    out=$(on 0 timeout 100 $MPIRUN -q --hostfile "$WORK/hostfile" -np "$ranks" -x TANDEM_PLUGIN_DIR -x OMP_NUM_THREADS -x TANDEM_ALGORITHM "$@" 2> "$WORK/errors") ||
        fail "$ranks ranks, $*: $(tail -n 3 "$WORK/errors")"
    grep -h measured "$WORK/errors" >> "$WORK/choices"
    echo "$out"
}
field() { awk -v name="$1" '{ for (i = 1; i < NF; i++) if ($i == name) print $(i + 1) }'; }
middle() { sort -g | awk '{ x[NR] = $1 } END { print x[int((NR + 1) / 2)] }'; }
ideal() { awk -v h="$1" -v b="$2" -v r="$3" 'BEGIN { printf "%.4f", 2 * (h - 1) / h * b * 8 / r }'; }

export TANDEM_ALGORITHM=auto
hosts_rate 200mbit
# in turns: ours beside Open MPI's own choice, then beside its ring
for i in 1 2; do
    hosts 1 3 "$BUILD/bench/hosts" sum $BYTES $ROUNDS >> "$WORK/own"
    hosts 1 3 --mca coll_tuned_use_dynamic_rules 1 --mca coll_tuned_allreduce_algorithm 4 "$BUILD/bench/hosts" sum $BYTES $ROUNDS >> "$WORK/ring"
done
grep -q 'backend hier' "$WORK/own" || fail "the world is not carried by hier: $(head -n 1 "$WORK/own")"
best=$(ideal 3 $BYTES 200e6)
ours=$(cat "$WORK/own" "$WORK/ring" | field ours | middle)
figure "8 MiB summed over 3 hosts at 200 Mbit/s (ideal $best s): hier" "$ours" s
figure "8 MiB summed over 3 hosts at 200 Mbit/s: MPI_Allreduce, Open MPI's choice" "$(field mpi < "$WORK/own" | middle)" s
figure "8 MiB summed over 3 hosts at 200 Mbit/s: MPI_Allreduce, its ring" "$(field mpi < "$WORK/ring" | middle)" s
awk -v a="$ours" -v b="$best" 'BEGIN { exit !(a <= 1.1 * b) }' || fail "8 MiB over 3 hosts took $ours s, the ideal is $best"

# several ranks of a host drive its link together
for shape in "2 4" "3 6"; do
    read -r n ranks <<< "$shape"
    hosts 2 "$ranks" "$BUILD/bench/hosts" sum $BYTES $ROUNDS > "$WORK/two"
    took=$(field ours < "$WORK/two")
    best=$(ideal "$n" $BYTES 200e6)
    figure "8 MiB summed by $ranks ranks on $n hosts at 200 Mbit/s (ideal $best s): hier" "$took" s
    figure "8 MiB summed by $ranks ranks on $n hosts at 200 Mbit/s: MPI_Allreduce" "$(field mpi < "$WORK/two")" s
    awk -v a="$took" -v b="$best" 'BEGIN { exit !(a <= 1.15 * b) }' || fail "8 MiB by $ranks ranks on $n hosts took $took s, the ideal is $best"
done

sort "$WORK/choices" | uniq -c | sort -rn | head -n 3
