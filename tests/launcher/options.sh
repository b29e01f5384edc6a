#!/bin/bash
# Options of `tandem run`: torchrun's and mpirun's names, one sentence for every wrong one, and the exact engine command (--dry-run).
. "$(dirname "$0")/lib.sh"
for v in $(compgen -e | grep -E '^(SLURM|TANDEM|NCCL|OMP)_' | grep -v TANDEM_RUNTIME_DIR); do unset "$v"; done
unset TANDEM_RUNTIME_DIR
mkdir "$work/bin"
printf '#!/bin/sh\nprintf "MPI plugin types are...\\n\\tnone\\n\\tpmi2\\n\\tpmix\\n"\n' > "$work/bin/srun"
printf '#!/bin/sh\necho mpirun "(Open MPI) 4.1.4"\n' > "$work/bin/mpirun.openmpi"
chmod +x "$work/bin/"*
PATH=$work/bin:$PATH

# wrong SENTENCE ARGS…
wrong()
{
    local sentence=$1 got; shift
    got=$("$TANDEM" run "$@" 2>&1 < /dev/null)
    check "run $*: exit code" 2 $?
    check "run $*: sentence" "tandem run: $sentence (see \`tandem help run\`)" "$got"
}
# shown COMMAND ARGS…: what --dry-run prints
shown()
{
    local command=$1; shift
    check "run $*" "$command" "$("$TANDEM" run --dry-run "$@" 2>&1 < /dev/null | sed "s#$TANDEM#TANDEM#; s#--mca oob_tcp_keepalive_time 2 --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 2#KEEPALIVE#")"
}
local4=$'# 4 on this machine:\ntrue x'

# every spelling of the same
for n in "-n 4" "-n4" "-np 4" "--np=4" "--nproc-per-node 4" "--nproc_per_node=4" "--nproc-per-node=4 --nnodes 1" "--nnodes=1:1 --nproc_per_node 4" \
    "--standalone -n 4" "--engine local -n 4" "--no-python --max-restarts=0 -n 4" "--nnodes 1 --node_rank 0 -n 4" "-n 4 --rdzv-backend c10d" \
    "-n 4 -bind-to none --report-bindings --tag-output" "-n 4 -x HOME -x A=b"; do
    # shellcheck disable=SC2086
    shown "$local4" $n true x
done
cores=$(nproc)
shown "# $cores on this machine:"$'\n'true --nproc-per-node cpu true
CUDA_VISIBLE_DEVICES= shown "# $cores on this machine:"$'\n'true --nproc-per-node auto true

mpi='mpirun.openmpi -n'
ours='--map-by slot --oversubscribe --bind-to none KEEPALIVE -x TANDEM_STORE -x TANDEM_SECRET'
agent='TANDEM agent mpirun -- ./train'
shown "$mpi 8 --host a:4,b:4 $ours $agent --epochs 3" -H a:4,b:4 ./train --epochs 3
shown "$mpi 6 --host a:4,b:4 $ours $agent" -n 6 -H a:4,b:4 ./train
shown "$mpi 5 --host a:3,b:3 $ours $agent" -n 5 --host a,b ./train
shown "$mpi 2 --host a:1,b:1 $ours $agent" -host a,b ./train
shown "$mpi 4 --host a:2,b:2 $ours $agent" --nproc-per-node 2 -H a:4,b:4,c:4 --nnodes 2 ./train
shown "$mpi 3 --host a:3 $ours $agent" -H a:2,a ./train
shown "$mpi 4 $ours $agent" --engine mpirun -n 4 ./train
shown "$mpi 2 --host a:2 $ours -x FOO -x BAR $agent 'a b' '\$x' 'it'\\''s'" -H a:2 -x FOO=1 -x BAR ./train 'a b' '$x' "it's"
printf '# our hosts\na slots=2   # fast\n\nb:2\n  c\tslots=1\n' > "$work/hosts"
shown "$mpi 5 --host a:2,b:2,c:1 $ours $agent" --hostfile "$work/hosts" ./train
(export TANDEM_TIMEOUT=5 NCCL_DEBUG=INFO OMP_NUM_THREADS=2
    check "ours go by themselves" "-x NCCL_DEBUG,-x OMP_NUM_THREADS,-x TANDEM_TIMEOUT" \
        "$("$TANDEM" run --dry-run -H a ./train | grep -o -- '-x [A-Z_]*' | tail -n +3 | sort | paste -sd,)")
check "no secret on the command line" 0 "$(TANDEM_SECRET=hidden "$TANDEM" run --dry-run -H a ./train | grep -c hidden)"

srun='--mpi=pmix --distribution=block --kill-on-bad-exit=1 --wait=0 --cpu-bind=none --input=0 --export=ALL TANDEM agent srun -- ./train'
(export SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES=2 SLURM_NTASKS=4
    shown "srun --ntasks=4 --nodes=2 $srun" ./train
    shown "srun --ntasks=2 --nodes=2 $srun" -n 2 ./train
    shown "srun --ntasks=6 --nodes=2 --ntasks-per-node=3 $srun" --nproc-per-node 3 ./train
    shown "srun --ntasks=2 --nodes=1 --ntasks-per-node=2 --nodelist=a $srun" -H a:2 ./train
    shown "$mpi 4 $ours $agent" --engine mpirun ./train
    SLURM_GPUS_ON_NODE=4 shown "srun --ntasks=8 --nodes=2 --ntasks-per-node=4 $srun" --nproc-per-node gpu ./train
    shown "$local4" --standalone -n 4 true x
    SLURM_STEP_NUM_TASKS=4 shown "$local4" -n 4 true x
    shown '# 4 on this machine, which is node 1 of 2; node 0 is a:'$'\nTANDEM agent hand -- ./train' --nnodes 2 --node-rank 1 --master-addr a --nproc-per-node 4 ./train
    printf '#!/bin/sh\necho none\n' > "$work/bin/srun"
    shown "srun --ntasks=4 --nodes=2 ${srun#--mpi=pmix }" ./train
    wrong 'hosts a and b have different slots, which srun cannot do: name them without slots, or use --engine mpirun' -H a:1,b:2 ./train
    wrong '-n is 9, more than 2 on each of 2 nodes' -n 9 --nproc-per-node 2 ./train)
(export SLURM_JOB_ID=7 SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1; shown "$local4" -n 4 true x)
shown '# 2 on this machine, which is node 0 of 3; node 0 is h:'$'\nTANDEM agent hand -- ./train' --nnodes 3 --node-rank 0 --rdzv-endpoint h:29400 --rdzv-id x --nproc-per-node 2 ./train

wrong '--nproc-per-node is "few": expected a number of ranks from 1 to 4096, auto, gpu or cpu' --nproc-per-node few true
wrong '--nnodes is "0": expected a number of nodes from 1 to 4096' --nnodes 0 -n 1 true
wrong '--nnodes is "1:4": the number of nodes stays the same for the whole job; say one number' --nnodes 1:4 -n 1 true
wrong '--node_rank is "-1": expected this node'"'"'s number, from 0' --node_rank -1 -n 1 true
wrong '--master-port is "0": expected a port from 1 to 65535' --master-port 0 -n 1 true
wrong '--rdzv-endpoint is "h:": expected HOST:PORT' --rdzv-endpoint h: -n 1 true
wrong '--rdzv-backend is "etcd": expected static or c10d (the nodes meet at the endpoint, by a store of Tandem'"'"'s own)' --rdzv-backend etcd -n 1 true
wrong '--max-restarts is "3": a failed job is not started again here: expected 0 (let the batch system requeue it, and resume from the saved state)' --max-restarts 3 -n 1 true
wrong '-m is for Python modules and programs are started as they are: name the interpreter, as in tandem run -n 2 python3 -m MODULE' -m torch
wrong '--tee writes files: say in which folder, with --log-dir' -n 1 --tee 3 true
wrong '-t is "4": expected 0 (nothing), 1 (standard output), 2 (standard error) or 3 (both), or such a number for some local ranks, as in 0:3,1:2' -t 4 -n 1 true
wrong '--local-ranks-filter is "a": expected local ranks, as in 0,2' --local-ranks-filter a -n 1 true
wrong '-H is "a:b": expected hosts with their slots, as in a:4,b:4' -H a:b true
wrong '--host is "a,,b": expected hosts with their slots, as in a:4,b:4' --host a,,b true
wrong '-H is "-oProxyCommand=x": expected hosts with their slots, as in a:4,b:4' -H -oProxyCommand=x true
wrong "--hostfile is \"$work/none\": No such file or directory" --hostfile "$work/none" true
printf 'a slots=2\nb slots=two\n' > "$work/bad"
wrong "$work/bad: line 2 is \"b slots=two\": expected HOST slots=N" --hostfile "$work/bad" true
: > "$work/empty"
wrong "$work/empty: there is no host in it" --hostfile "$work/empty" true
wrong '-x is "A-B": expected VARIABLE or VARIABLE=VALUE' -x A-B -n 1 true
wrong '--bind-to is "socket": expected core (each rank its share of the cores) or none' --bind-to socket -n 1 true
wrong '--engine is "pdsh": expected auto, local, mpirun or srun' --engine pdsh -n 1 true
wrong '--dry-run takes no value' --dry-run=yes -n 1 true
wrong '-n is 9 and the hosts have 8 slots together' -n 9 -H a:4,b:4 true
wrong '--nproc-per-node is 5 and host a has 4 slots' --nproc-per-node 5 -H a:4,b:8 true
wrong '--nnodes is 3 and only 2 hosts are named' --nnodes 3 -H a,b true
wrong '--nproc-per-node is cpu, which looks at this machine: with hosts say a number, or slots for each host' --nproc-per-node cpu -H a,b true
wrong 'hosts are named and --engine local starts ranks on this machine alone: leave one of the two out' --engine local -H a:2 true
wrong '-n is 2 and --nproc-per-node is 3: on one machine they are the same' -n 2 --nproc-per-node 3 true
wrong '--engine srun needs a Slurm allocation (SLURM_JOB_ID is not set): use it within sbatch or salloc' --engine srun -n 2 true
wrong '--nnodes is 2: name the hosts (-H, --hostfile), start it within a Slurm allocation, or start it on every node with --node-rank and --master-addr' --nnodes 2 --nproc-per-node 2 true
wrong '--nnodes is 2: say which of them this is, with --node-rank' --nnodes 2 --master-addr a --nproc-per-node 2 true
wrong '--nnodes is 2: say the address of node 0, with --master-addr' --nnodes 2 --node-rank 1 --nproc-per-node 2 true
wrong '--node-rank is 2 with 2 nodes: expected 0 to 1' --nnodes 2 --node-rank 2 --master-addr a --nproc-per-node 2 true
wrong '-n counts the ranks of all nodes, which each node cannot know: say --nproc-per-node' --nnodes 2 --node-rank 1 --master-addr a -n 2 true
wrong 'hosts are named, and --node-rank means that each node is started by hand: leave one of the two out' --nnodes 2 --node-rank 1 --master-addr a --nproc-per-node 2 -H a,b true
rm "$work/bin/mpirun.openmpi"
PATH=$work/bin wrong 'the engine mpirun is not there: there is neither mpirun.openmpi nor mpirun in PATH' --dry-run -H a true
finish
