#!/usr/bin/env bash
# title: the batch scripts of cluster/slurm train on 2 hosts
# needs: slurm 2
# limit: 300
. "$(dirname "$0")/lib.sh"
[ -x "$BUILD/examples/linear" ] || fail "examples/linear is not built"
slurm_up 2 4

# batch NAME WANTED [sbatch options] -- program…: the script runs to its end and its output holds WANTED
batch()
{
    local name=$1 wanted=$2 options=() job; shift 2
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    job=$(slurm_submit -o "$WORK/$name.out" "${options[@]}" "$ROOT/cluster/slurm/$name.sbatch" "$@")
    seconds slurm_wait "$job" 60 COMPLETED FAILED NODE_FAIL TIMEOUT CANCELLED || fail "$name.sbatch does not end: $(slurm_state "$job"): $(tail -n 5 "$WORK/$name.out")"
    [ "$(slurm_state "$job")" = COMPLETED ] || fail "$name.sbatch: $(slurm_state "$job"), $(slurm_field "$job" ExitCode): $(tail -n 5 "$WORK/$name.out")"
    [ "$(grep -c -- "$wanted" "$WORK/$name.out")" = 1 ] || fail "$name.sbatch does not print \"$wanted\" once: $(tail -n 5 "$WORK/$name.out")"
}
linear=("$BUILD/examples/linear" 150)
four="after 150 steps on 4 ranks: loss"

batch pmix "$four" -- "${linear[@]}"
figure "pmix.sbatch, 01_linear on 4 ranks, queued to completed" "$took" s
MPIRUN=$MPIRUN batch mpirun "$four" -- "${linear[@]}"
figure "mpirun.sbatch, likewise" "$took" s
