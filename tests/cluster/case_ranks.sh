#!/usr/bin/env bash
# title: every launcher's ranks find themselves and each other, with MPI and without, or say in one sentence what is missing
# needs: slurm 2
# limit: 900
. "$(dirname "$0")/lib.sh"
program=$BUILD/tests/comm/any_transport
[ -x "$program" ] || fail "tests/comm/any_transport is not built"
slurm_up 2
export TANDEM_QUIET=1 TANDEM_TIMEOUT=60 TANDEM_KEY_FILE=$WORK/key

# says NAME LINE COMMAND…: the command ends well on host 0 and prints the line so often: "TIMES PATTERN"
says()
{
    local name=$1 times=${2%% *} pattern=${2#* } status=0; shift 2
    on 0 timeout 150 "$@" > "$WORK/out" 2>&1 || status=$?
    [ "$status" = 0 ] || fail "$name: ended with $status: $(tail -n 5 "$WORK/out")"
    [ "$(grep -cE -- "$pattern" "$WORK/out")" = "$times" ] || fail "$name: not $times times \"$pattern\" in: $(tail -n 5 "$WORK/out")"
    echo "ok: $name"
}
# refuses NAME PATTERN COMMAND…: it does not end well, and the sentence is there
refuses()
{
    local name=$1 pattern=$2; shift 2
    on 0 timeout 150 "$@" > "$WORK/out" 2>&1 && fail "$name: ended well: $(tail -n 5 "$WORK/out")"
    grep -qE -- "$pattern" "$WORK/out" || fail "$name: no \"$pattern\" in: $(tail -n 5 "$WORK/out")"
    echo "ok: $name"
}

# ---- a world of one, whatever the batch system has left in the environment ----
printf '#!/bin/sh\nexec %s self\n' "$program" > "$WORK/alone.sh"
on 0 sbatch -W -N2 -n4 -o "$WORK/alone.out" "$WORK/alone.sh" > /dev/null || fail "sbatch: $(cat "$WORK/alone.out")"
grep -q '^self: all well on 1 ranks$' "$WORK/alone.out" || fail "a program in a batch script is not alone: $(cat "$WORK/alone.out")"
says "salloc" "1 ^self: all well on 1 ranks$" salloc -Q -N2 -n4 "$program" self
says "srun of one task" "1 ^self: all well on 1 ranks$" srun -n1 "$program" self

# ---- MPI where the launcher offers it ----
says "srun with PMIx" "1 ^[a-z]+: all well on 4 ranks$" srun --mpi=pmix -N2 -n4 "$program" mpi/hier
says "srun with PMIx, uneven" "1 ^[a-z]+: all well on 4 ranks$" srun --mpi=pmix -N2 -n4 -m plane=3 "$program" mpi/hier
says "mpirun in salloc" "1 ^[a-z]+: all well on 4 ranks$" salloc -Q -N2 -n4 "$MPIRUN" "$program" mpi/hier
says "srun with PMIx, one host: nobody needs MPI" "1 ^shm: all well on 2 ranks$" srun --mpi=pmix -N1 -n2 "$program" shm
says "mpirun in salloc, one host" "1 ^shm: all well on 2 ranks$" salloc -Q -N1 -n2 "$MPIRUN" "$program" shm

# ---- a step without PMI ----
says "srun on one host needs no key" "1 ^shm: all well on 3 ranks$" srun -N1 -n3 "$program" shm
refuses "no key" "rank [0-3] of 4 \(slurm\) has no way to meet the others without MPI: the key file $TANDEM_KEY_FILE is missing: .tandem env --make-key. makes it" \
    srun -N2 -n4 "$program" store
on 0 "$TANDEM" env --make-key > /dev/null || fail "tandem env --make-key does not make $TANDEM_KEY_FILE"
seconds says "srun" "1 ^store: all well on 4 ranks$" srun -N2 -n4 "$program" store
figure "srun without PMI, 4 ranks on 2 hosts" "$took" s
says "srun, uneven" "1 ^store: all well on 4 ranks$" srun -N2 -n4 -m plane=3 "$program" store
says "srun, tasks dealt out in turn" "1 ^store: all well on 4 ranks$" srun -N2 -n4 -m cyclic "$program" store
says "two programs after each other in one step" "2 ^store: all well on 4 ranks$" srun -N2 -n4 sh -c "$program store && $program store"
says "srun in a batch system's salloc" "1 ^store: all well on 4 ranks$" salloc -Q -N2 -n4 srun "$program" store
if on 0 srun --mpi=list 2>&1 | grep -q pmi2; then
    says "srun with PMI2, which Open MPI does not speak" "1 ^store: all well on 4 ranks$" srun --mpi=pmi2 -N2 -n4 "$program" store
fi
refuses "MPI is asked for where it is not offered" "TANDEM_COMM=mpi, but this Slurm step offers MPI no way to find its 4 ranks: use srun --mpi=pmix" \
    env TANDEM_COMM=mpi srun -N2 -n4 "$program" mpi

# ---- keys and ports ----
on 0 cp "$TANDEM_KEY_FILE" "$LOCAL/key"; on 1 cp "$TANDEM_KEY_FILE" "$LOCAL/key"
on 1 sh -c "head -c 64 /dev/zero | tr '\\0' 7 > $LOCAL/key"
refuses "another key on the second host" "host node0 \(10.77.0.10\) did not answer on ports [0-9]+ to [0-9]+ within 3 s \(TANDEM_TIMEOUT\); on port [0-9]+ another secret is known: is the key" \
    env TANDEM_TIMEOUT=3 TANDEM_KEY_FILE="$LOCAL/key" srun -N2 -n4 "$program" store
chmod 644 "$TANDEM_KEY_FILE"
refuses "a key that others may read" "the key file $TANDEM_KEY_FILE has the permissions 0644, expected 0600" srun -N2 -n4 "$program" store
chmod 600 "$TANDEM_KEY_FILE"
on_start 0 perl -MIO::Socket::INET -e '$s = IO::Socket::INET->new(LocalPort => 4711, Listen => 5, ReuseAddr => 1) or die; while (1) { $c = $s->accept; print $c "220 hello\r\n" }'
foreign=$started
wait_until 5 on 0 bash -c ': < /dev/tcp/node0/4711' 2> /dev/null || fail "the foreign program does not listen"
refuses "a port that is taken" "port 4711 of node0 is taken by another program \(TANDEM_STORE names the host\)" \
    env TANDEM_TIMEOUT=3 TANDEM_STORE=tcp:node0:4711 srun -N2 -n4 "$program" store
kill "$foreign"
says "a port that is free" "1 ^store: all well on 4 ranks$" env TANDEM_STORE=tcp:node0:4712 srun -N2 -n4 "$program" store

# ---- who does not come, who goes ----
cat > "$WORK/one_sleeps.sh" << EOF
#!/bin/sh
[ "\$SLURMD_NODENAME" = node1 ] && exec sleep 4
exec $program store
EOF
chmod +x "$WORK/one_sleeps.sh"
refuses "a host that does not come" "no rank of host node1 has come to the meeting at tcp:\[10.77.0.10\]:[0-9]+ within 2 s \(TANDEM_TIMEOUT\); missing of 4: ranks? [0-9, ]+" \
    env TANDEM_TIMEOUT=2 srun -N2 -n4 --ntasks-per-node=2 "$WORK/one_sleeps.sh"
call='all_reduce\(f32, 1000\) #6 at any_transport.c:[0-9]+'
fault() { on 0 timeout 60 srun -N2 -n2 "$program" store "$1" > "$WORK/out" 2>&1; }
fault kill
grep -qE "^code -[0-9]+ after [0-9.]+ s: rank 1 \(pid [0-9]+ on node1\) ended without td_finish, was killed, or .* while rank 0 waited in $call" "$WORK/out" ||
    fail "rank 1 was killed: $(cat "$WORK/out")"
fault finish
grep -qE "^code -[0-9]+ after [0-9.]+ s: rank 1 \(pid [0-9]+ on node1\) had called td_finish while rank 0 waited in $call" "$WORK/out" ||
    fail "rank 1 had finished: $(cat "$WORK/out")"

# ---- by hand: the names that torchrun uses, on hosts without a batch system ----
by_hand()
{
    local r pids=() status=0
    for r in 0 1 2 3; do
        on_start $((r / 2)) env RANK="$r" WORLD_SIZE=4 MASTER_ADDR=node0 MASTER_PORT=29500 "$@" > "$WORK/hand$r" 2>&1
        pids+=("$started")
    done
    for r in 0 1 2 3; do
        wait "${pids[$r]}" || status=$?
    done
    cat "$WORK"/hand[0-3] > "$WORK/out"
    return $status
}
by_hand "$program" store || fail "ranks started by hand: $(tail -n 5 "$WORK/out")"
grep -q '^store: all well on 4 ranks$' "$WORK/out" || fail "ranks started by hand: $(tail -n 5 "$WORK/out")"
echo "ok: by hand: who shares a host is found out"

# ---- a link is cut while ranks wait ----
on_start 0 env RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=node0 "$program" store sleep-long > "$WORK/cut0" 2>&1
zero=$started
on_start 1 env RANK=1 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=1 MASTER_ADDR=node0 "$program" store sleep-long > "$WORK/cut1" 2>&1
one=$started
sleep 2
link_cut 1
seconds wait "$zero"
kill "$one" 2> /dev/null
grep -qE "^code -[0-9]+ after .* s: rank 1 \(pid [0-9]+ on node1\) ended without td_finish, was killed, or its host cannot be reached any more" "$WORK/cut0" ||
    fail "the link was cut: $(cat "$WORK/cut0")"
figure "a cut link, without MPI and without tandem run: until the other host's rank tells" "$took" s
link_join 1
