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

"$TANDEM" env | grep -q TANDEM_KEY_FILE || fail "tandem env does not name the key file"
batch plain "$four" -- "${linear[@]}"
figure "plain.sbatch (no PMI, a secret of the job), likewise" "$took" s
grep -qi 'secret.*[0-9a-f]\{32\}' "$WORK/plain.out" && fail "plain.sbatch prints its secret"
export TANDEM_KEY_FILE=$WORK/key
"$TANDEM" env --make-key > "$WORK/made" 2>&1 || fail "tandem env --make-key: $(cat "$WORK/made")"
batch plain "$four" -- "${linear[@]}"
unset TANDEM_KEY_FILE
# what cannot work without MPI is one sentence that says what is missing, and the batch job fails
job=$(slurm_submit -o "$WORK/large.out" "$ROOT/cluster/slurm/plain.sbatch" "$BUILD/examples/fashion" --steps 2 --batch 8)
slurm_wait "$job" 60 FAILED COMPLETED CANCELLED TIMEOUT || fail "large sums without MPI: $(slurm_state "$job")"
[ "$(slurm_state "$job")" = FAILED ] || fail "large sums without MPI: $(slurm_state "$job")"
grep -q 'without MPI' "$WORK/large.out" || fail "large sums without MPI are not explained: $(tail -n 5 "$WORK/large.out")"

batch tandem "$four" -- "${linear[@]}"
figure "tandem.sbatch, likewise" "$took" s
# the map says where everybody is
for r in 0 1 2 3; do
    grep -q "node$((r / 2)) .*rank $r, " "$WORK/tandem.out" || fail "tandem.sbatch: no map of rank $r: $(head -n 8 "$WORK/tandem.out")"
done

# a rank per GPU: each sees all of its node and has the number of its local rank
printf '#!/bin/sh\necho "GPU $LOCAL_RANK of $CUDA_VISIBLE_DEVICES on $(hostname) for $RANK of $WORLD_SIZE"\n' > "$WORK/gpus"
chmod +x "$WORK/gpus"
batch gpu "for 7 of 8" -- "$WORK/gpus"
for r in 0 1 2 3 4 5 6 7; do
    grep -q "GPU $((r % 4)) of 0,1,2,3 on node$((r / 4)) for $r of 8" "$WORK/gpu.out" || fail "gpu.sbatch: rank $r: $(cat "$WORK/gpu.out")"
done
figure "gpu.sbatch, 8 ranks for 4 made-up GPUs on each of 2 hosts" "$took" s
