#!/usr/bin/env bash
# title: examples/02_fashion on 2 hosts learns what it learns on one, under mpirun and srun --mpi=pmix
# needs: slurm 2
# limit: 600
. "$(dirname "$0")/lib.sh"
[ -x "$BUILD/examples/fashion" ] || fail "examples/fashion is not built"

slurm_up 2
hostfile 2 > "$WORK/hostfile"
arguments=(--steps 300 --batch 32 --seed 3)
accuracy() { grep -o 'test accuracy [0-9.]*' "$1" | grep -o '[0-9.]*$'; }

on 0 "$TANDEM" run -n 4 --no-prefix "$BUILD/examples/fashion" "${arguments[@]}" > "$WORK/one" 2>&1 || fail "4 ranks on one host: $(tail -n 3 "$WORK/one")"
seconds on 0 timeout 200 $MPIRUN -q --hostfile "$WORK/hostfile" -np 4 -x TANDEM_PLUGIN_DIR -x OMP_NUM_THREADS "$BUILD/examples/fashion" "${arguments[@]}" > "$WORK/mpirun" 2>&1 ||
    fail "4 ranks on 2 hosts under mpirun: $(tail -n 3 "$WORK/mpirun")"
mpirun_took=$took
seconds on 0 timeout 200 srun --mpi=pmix -N 2 --ntasks-per-node=2 "$BUILD/examples/fashion" "${arguments[@]}" > "$WORK/srun" 2>&1 ||
    fail "4 ranks on 2 hosts under srun: $(tail -n 3 "$WORK/srun")"
for run in one mpirun srun; do
    a=$(accuracy "$WORK/$run")
    awk -v a="${a:-0}" 'BEGIN { exit !(a > 0.78) }' || fail "$run: a test accuracy of ${a:-nothing} after 300 steps"
done
awk -v a="$(accuracy "$WORK/one")" -v b="$(accuracy "$WORK/mpirun")" -v c="$(accuracy "$WORK/srun")" 'BEGIN { exit !(a - b < 0.02 && b - a < 0.02 && b - c < 0.005 && c - b < 0.005) }' ||
    fail "test accuracy $(accuracy "$WORK/one") on one host, $(accuracy "$WORK/mpirun") under mpirun, $(accuracy "$WORK/srun") under srun on two"
figure "02_fashion, 300 steps, 4 ranks: accuracy on one host / on two under mpirun / srun" "$(accuracy "$WORK/one") / $(accuracy "$WORK/mpirun") / $(accuracy "$WORK/srun")" ""
figure "02_fashion, 300 steps, 4 ranks on 2 hosts: start to end under mpirun / srun" "$mpirun_took / $took" s
