#!/usr/bin/env bash
# title: torchrun starts programs that are not Python, on one host, on two by hand and under srun (needs PyTorch; ./check-peers installs one)
# needs: slurm 2
# limit: 600
. "$(dirname "$0")/lib.sh"
program=$BUILD/tests/comm/any_transport
[ -x "$program" ] || fail "tests/comm/any_transport is not built"
torchrun=${TORCHRUN:-$(command -v torchrun || echo "$ROOT/build-peers/venv/bin/torchrun")}
[ -x "$torchrun" ] || skip "there is no torchrun: ./check-peers installs PyTorch into build-peers, or set TORCHRUN"
slurm_up 2
export TANDEM_QUIET=1 TANDEM_TIMEOUT=60 TANDEM_KEY_FILE=$WORK/key GLOO_SOCKET_IFNAME=eth0
on 0 "$TANDEM" env --make-key > /dev/null || fail "tandem env --make-key does not make $TANDEM_KEY_FILE"

on 0 timeout 100 "$torchrun" --standalone --no-python --nproc-per-node 2 "$program" shm > "$WORK/out" 2>&1 || fail "torchrun on one host: $(tail -n 5 "$WORK/out")"
grep -q '^shm: all well on 2 ranks$' "$WORK/out" || fail "torchrun on one host: $(tail -n 5 "$WORK/out")"
echo "ok: torchrun --no-python on one host"

on_start 1 timeout 100 "$torchrun" --no-python --nnodes 2 --node-rank 1 --nproc-per-node 2 --master-addr node0 --master-port 29511 "$program" store > "$WORK/out1" 2>&1
second=$started
on 0 timeout 100 "$torchrun" --no-python --nnodes 2 --node-rank 0 --nproc-per-node 2 --master-addr node0 --master-port 29511 "$program" store > "$WORK/out" 2>&1 ||
    fail "torchrun on two hosts: $(tail -n 5 "$WORK/out" "$WORK/out1")"
wait "$second" || fail "torchrun on two hosts, the second: $(tail -n 5 "$WORK/out1")"
grep -q '^store: all well on 4 ranks$' "$WORK/out" || fail "torchrun on two hosts: $(tail -n 5 "$WORK/out")"
echo "ok: torchrun on two hosts, by hand"

seconds on 0 timeout 100 srun -N2 -n2 "$torchrun" --no-python --nnodes 2 --nproc-per-node 2 --rdzv-id 7 --rdzv-backend c10d --rdzv-endpoint node0:29512 \
    "$program" store > "$WORK/out" 2>&1 || fail "torchrun under srun: $(tail -n 5 "$WORK/out")"
grep -q '^store: all well on 4 ranks$' "$WORK/out" || fail "torchrun under srun: $(tail -n 5 "$WORK/out")"
echo "ok: torchrun under srun"
figure "torchrun under srun, 4 ranks on 2 hosts, over the store" "$took" s
