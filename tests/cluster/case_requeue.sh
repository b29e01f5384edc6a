#!/usr/bin/env bash
# title: requeue.sbatch: warned before its time limit, a job saves, queues again, goes on; the weights are those of an undisturbed run
# needs: slurm 2
# limit: 500
. "$(dirname "$0")/lib.sh"
[ -x "$BUILD/examples/requeue" ] || fail "examples/requeue is not built"
slurm_up 2
script=$ROOT/cluster/slurm/requeue.sbatch program=$BUILD/examples/requeue
steps=450
# bits: the sums must be formed alike in every start, so the algorithm is named, not measured
export TANDEM_ALGORITHM=ring MPIRUN

on 0 timeout 120 srun --mpi=pmix -N2 --ntasks-per-node=2 "$program" --steps $steps --state "$WORK/whole.state" --weights "$WORK/whole" > "$WORK/whole.out" 2>&1 ||
    fail "undisturbed: $(tail -n 5 "$WORK/whole.out")"

# check NAME JOB: it has ended well, after starting more than once, with the same weights
check()
{
    slurm_wait "$2" 150 COMPLETED FAILED NODE_FAIL TIMEOUT CANCELLED || fail "$1: the job does not end: $(slurm_state "$2"): $(tail -n 5 "$WORK/$1.out")"
    [ "$(slurm_state "$2")" = COMPLETED ] || fail "$1: $(slurm_state "$2"), $(slurm_field "$2" ExitCode): $(tail -n 5 "$WORK/$1.out")"
    [ "$(slurm_field "$2" Restarts)" -ge 1 ] || fail "$1: the job was never interrupted: $(tail -n 5 "$WORK/$1.out")"
    grep -q "step $steps: done" "$WORK/$1.out" || fail "$1: the program has not come to its end: $(tail -n 5 "$WORK/$1.out")"
    cmp "$WORK/whole" "$WORK/$1.weights" || fail "$1: after $(slurm_field "$2" Restarts) restarts the weights are not those of the undisturbed run"
}

# 450 steps of more than 100 ms; a limit of a minute and a warning 50 seconds before it, which comes after 10 to 40
timed()
{
    job=$(slurm_submit -t 1 --signal=B:USR1@50 -o "$WORK/limit.out" "$script" "$program" --steps $steps --state "$WORK/limit.state" --weights "$WORK/limit.weights" --pause 100)
    check limit "$job"
}
seconds timed
figure "requeue.sbatch, warned before its time limit: $(slurm_field "$job" Restarts) restart(s), 450 steps of 0.1 s on 4 ranks, start to end" "$took" s

# the same warning at a moment of ours, under the other launchers
_trains() { grep -q "steps 0 to $steps on 4 ranks" "$WORK/$1.out" 2> /dev/null; }
warned()
{
    local name=$1 launch=$2
    job=$(LAUNCH=$launch slurm_submit -o "$WORK/$name.out" "$script" "$program" --steps $steps --state "$WORK/$name.state" --weights "$WORK/$name.weights" --pause 20)
    wait_until 60 _trains "$name" || fail "$name: the program does not start: $(tail -n 5 "$WORK/$name.out")"
    sleep 1
    on 0 scancel --batch --signal=USR1 "$job"
    check "$name" "$job"
}
seconds warned mpirun "$MPIRUN"
figure "requeue.sbatch under mpirun, warned once, start to end" "$took" s
seconds warned tandem "$TANDEM run"
figure "requeue.sbatch under tandem run, warned once, start to end" "$took" s
