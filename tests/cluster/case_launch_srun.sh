#!/usr/bin/env bash
# title: tandem run in a Slurm allocation: the map, MPI in ranks by PMIx, a cut link, kill -9 of launcher and rank
# needs: slurm 3
# limit: 300
. "$(dirname "$0")/lib.sh"
. "$(dirname "$0")/launch.sh"
slurm_up 3
launch_ready
run="salloc -Q -N3 -n6 --ntasks-per-node=2 $TANDEM run"

expected=$(for r in 0 1 2 3 4 5; do echo "[$r] $r of 6 on node$((r / 2)), $((r % 2)) of 2, host $((r / 2)) of 3, $(host_address 0)"; done)
# shellcheck disable=SC2016
seconds on 0 timeout 60 $run bash -c 'echo "$RANK of $WORLD_SIZE on $(hostname), $LOCAL_RANK of $LOCAL_WORLD_SIZE, host $TANDEM_NODE_RANK of $TANDEM_HOSTS, $MASTER_ADDR"' > "$WORK/out" 2> "$WORK/err" ||
    fail "6 ranks on 3 nodes: $(cat "$WORK/err")"
[ "$(sort "$WORK/out")" = "$expected" ] || fail "ranks are not where they belong: $(cat "$WORK/out" "$WORK/err")"
figure "tandem run, 6 ranks on 3 nodes by srun, start to end" "$took" s
for r in 0 1 2 3 4 5; do
    grep -q "host $((r / 2)), node$((r / 2)) ($(host_address $((r / 2)))): rank $r, " "$WORK/err" || fail "the map lacks rank $r: $(cat "$WORK/err")"
done
nothing_left "a good end"

start 0 $run "$WORK/steps" 100
wait "$launcher" || fail "MPI in ranks: $(cat "$WORK/out" "$WORK/err")"
[ "$(grep -c 'sum 6' "$WORK/out")" = 6 ] || fail "MPI in ranks: $(cat "$WORK/out" "$WORK/err")"
nothing_left "MPI in ranks"

# within a batch script, on its first node; mpirun on Slurm's allocation instead of srun
cat > "$WORK/batch" << BATCH
#!/bin/bash
$TANDEM run bash -c 'echo rank \$RANK on \$(hostname)'
$TANDEM run --engine mpirun bash -c 'echo rank \$RANK on \$(hostname) by mpirun'
BATCH
job=$(cd "$WORK" && slurm_submit -N3 -n3 -o "$WORK/batch.out" "$WORK/batch")
slurm_wait "$job" 60 COMPLETED || fail "the batch script: $(slurm_state "$job"): $(cat "$WORK/batch.out")"
[ "$(grep -cE '^\[([0-2])\] rank \1 on node\1$' "$WORK/batch.out")" = 3 ] || fail "the batch script: $(cat "$WORK/batch.out")"
[ "$(grep -cE '^\[([0-2])\] rank \1 on node\1 by mpirun$' "$WORK/batch.out")" = 3 ] || fail "mpirun in the batch script: $(cat "$WORK/batch.out")"

start 0 $run "$WORK/silent"
kill -9 "$(pid_of_rank 3)"
ended 137 "a rank killed" '^tandem run: rank 3 on node1 \(pid [0-9]+\) was killed by signal 9 \(SIGKILL\)'

# the launcher is killed: its ranks end everywhere; salloc gives the nodes back
start 0 $run "$WORK/silent"
kill -9 "$(the_launcher)"
wait "$launcher" 2> /dev/null
wait_until 8 is_nothing_left || fail "launcher killed: left: $(what_is_left)"

# scancel: the job's end from outside
start 0 $run "$WORK/silent"
on 0 scancel "$(on 0 squeue -h -o %i | head -n 1)"
wait "$launcher" && fail "scancel: the job ended well"
wait_until 15 is_nothing_left || fail "scancel: left: $(what_is_left)"

start 0 $run "$WORK/steps" 100000
cut_and_time 2 "tandem run by srun, a link is cut"
