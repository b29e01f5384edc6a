#!/bin/bash
# meet.sh PROGRAM: ranks started by hand meet over TCP on this machine, without MPI and without our launcher, as torchrun's on several hosts would.
# PROGRAM is any_transport. Each rank is told that it is alone on its host, but for the first part.
set -u
program=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for name in $(compgen -e | grep -E '^(SLURM|OMPI|PMIX|PMI|TANDEM|TORCHELASTIC)_|^(RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE)$' | grep -v TANDEM_PLUGIN_DIR); do unset "$name"; done
export TANDEM_RUNTIME_DIR=$work/boxes TANDEM_QUIET=1 OMP_NUM_THREADS=1 WORLD_SIZE=3 MASTER_ADDR=127.0.0.1 MASTER_PORT=$((RANDOM + 1000))$$
export TANDEM_KEY_FILE=$work/key TANDEM_TIMEOUT=60
failed=0

# ranks ARGUMENTS…: three of them; what they say is in $work/said, sorted, how they end in $codes
ranks()
{
    local pids=() r
    for r in 0 1 2; do
        RANK=$r "$program" "$@" > "$work/$r" 2>&1 &
        pids+=($!)
    done
    codes=
    for r in 0 1 2; do
        wait "${pids[$r]}"
        codes+="$? "
    done 2> /dev/null
    cat "$work"/[012] > "$work/said"
}

# expect NAME PATTERN TIMES
expect()
{
    local n
    n=$(grep -cE -- "$2" "$work/said")
    if [ "$n" = "$3" ]; then
        echo "ok: $1"
    else
        echo "FAILED: $1: $n lines and not $3 match $2 in:"; cat "$work/said"; failed=$((failed + 1))
    fi
}

ranks store
expect "without a key: one sentence" 'has no way to meet the others without MPI: the key file .*/key is missing: `tandem env --make-key` makes it' 3
(umask 077; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$TANDEM_KEY_FILE")

ranks shm
expect "who is on one host is found out: shared memory" '^shm: all well on 3 ranks$' 1
TANDEM_COMM=store ranks store
expect "on one host, over the store" '^store: all well on 3 ranks$' 1

export LOCAL_RANK=0 LOCAL_WORLD_SIZE=1
ranks store
expect "a loopback address is of no use to other hosts" '127.0.0.1 is 127.0.0.1 on this host, which other hosts cannot reach: set TANDEM_STORE' 3
export TANDEM_STORE=tcp:127.0.0.1:0
ranks store
expect "three hosts of a rank each" '^store: all well on 3 ranks$' 1

who='rank 1 \(pid [0-9]+ on [^ )]+\)'
call='all_reduce\(f32, 1000\) #6 at any_transport.c:[0-9]+'
ranks store kill
expect "a rank is killed" "^code -[0-9]+ after [0-4]\.[0-9] s: $who ended without td_finish, was killed, or its host cannot be reached any more, while rank [02] waited in $call$" 2
ranks store return
expect "a rank ends" "^code -[0-9]+ after [0-4]\.[0-9] s: $who ended without td_finish, was killed, .* while rank [02] waited in $call$" 2
ranks store finish
expect "a rank has finished" "^code -[0-9]+ after [0-4]\.[0-9] s: $who had called td_finish while rank [02] waited in $call$" 2
ranks store mismatch
expect "a rank calls something else" '^code -[0-9]+ after [0-4]\.[0-9] s: rank 1 called all_reduce\(f32, 1001\) #6 at any_transport.c:[0-9]+ while ranks 0, 2 called all_reduce\(f32, 1000\) #6' 3
TANDEM_TIMEOUT=2 ranks store sleep
expect "a rank does not come" "^code -[0-9]+ after [12]\.[0-9] s: $who did not come to $call within 2 s \(TANDEM_TIMEOUT\), where rank [02] waits$" 2
ranks store abort
expect "a rank's error is told to all" "^code -[0-9]+ after [0-4]\.[0-9] s: rank 1 \(pid [0-9]+\) failed: .*td_reshape" 2
ranks store big
expect "more than goes without MPI" '^code -[0-9]+ after [0-4]\.[0-9] s: all_reduce\(f32, 20000\) #6 at .* has 80000 bytes of one rank, and without MPI no more than 65536 go through .* need MPI' 3
exit $((failed > 0))
