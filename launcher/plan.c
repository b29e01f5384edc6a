/* launcher/plan.c: which engine starts how many ranks, and where; every contradiction between options is found here.
 *
 * auto: hand-started nodes (--nnodes with --node-rank), else srun within a Slurm allocation of several tasks or nodes, else
 * mpirun when hosts are named, else this machine. -n counts the ranks of the whole job, as mpirun does, and
 * --nproc-per-node those of each node, as torchrun does; on one machine the two are the same.
 */
#include "across.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int number_of(const char *variable)
{
    const char *text = td__getenv(variable);
    return text && *text >= '0' && *text <= '9' ? atoi(text) : 0;
}

bool td__in_slurm(void)
{
    const char *job = td__getenv("SLURM_JOB_ID");
    if (!job || !*job || number_of("SLURM_STEP_NUM_TASKS") > 1)
        return false;
    return (number_of("SLURM_NTASKS") > 1 || number_of("SLURM_JOB_NUM_NODES") > 1) && td__in_path("srun");
}

/* ---- ranks per node ------------------------------------------------------------------------------------------------------------ */

/* auto, gpu and cpu become numbers: of this machine, or as Slurm has granted them on each node. */
static int count_per_node(td__run_options *o)
{
    static const char *const words[] = { [TD_PER_NODE_AUTO] = "auto", [TD_PER_NODE_GPU] = "gpu", [TD_PER_NODE_CPU] = "cpu" };
    if (o->per_node_kind == TD_PER_NODE_NUMBER)
        return 0;
    const char *word = words[o->per_node_kind];
    if (o->engine == TD_ENGINE_MPIRUN && o->hosts.count > 0)
        return td__usage("run", "--nproc-per-node is %s, which looks at this machine: with hosts say a number, or slots for each host", word);
    if (o->engine == TD_ENGINE_SRUN) {
        int gpus = number_of("SLURM_GPUS_ON_NODE"), cores = number_of("SLURM_CPUS_ON_NODE");
        if (o->per_node_kind == TD_PER_NODE_GPU && gpus == 0)
            return td__usage("run", "--nproc-per-node is gpu and this allocation has none (SLURM_GPUS_ON_NODE is not set)");
        o->per_node = o->per_node_kind != TD_PER_NODE_CPU && gpus > 0 ? gpus : cores;
        return o->per_node > 0 ? 0 : td__usage("run", "--nproc-per-node is %s and SLURM_CPUS_ON_NODE is not set: say a number", word);
    }
    char error[300];
    o->per_node = td__place_ranks(word, error, sizeof error);
    return o->per_node > 0 ? 0 : td__usage("run", "--nproc-per-node is %s: %s", word, error);
}

/* ---- each engine --------------------------------------------------------------------------------------------------------------- */

static int plan_local(td__run_options *o)
{
    if (o->hosts.count > 0)
        return td__usage("run", "hosts are named and %s starts ranks on this machine alone: leave one of the two out",
                         o->standalone ? "--standalone" : "--engine local");
    if (o->nodes > 1 || o->node_rank > 0)
        return td__usage("run", "%s is for one node: leave out --nnodes and --node-rank", o->standalone ? "--standalone" : "--engine local");
    if (o->total && o->per_node && o->total != o->per_node)
        return td__usage("run", "-n is %d and --nproc-per-node is %d: on one machine they are the same", o->total, o->per_node);
    o->ranks = o->total ? o->total : o->per_node;
    return o->ranks ? 0 : td__usage("run", "say how many ranks: -n N");
}

static int plan_hand(td__run_options *o)
{
    if (o->hosts.count > 0)
        return td__usage("run", "hosts are named, and --node-rank means that each node is started by hand: leave one of the two out");
    if (o->total)
        return td__usage("run", "-n counts the ranks of all nodes, which each node cannot know: say --nproc-per-node");
    if (o->nodes == 0)
        return td__usage("run", "--node-rank is %d: say of how many nodes, with --nnodes", o->node_rank);
    if (o->node_rank < 0)
        return td__usage("run", "--nnodes is %d: say which of them this is, with --node-rank", o->nodes);
    if (o->node_rank >= o->nodes)
        return td__usage("run", "--node-rank is %d with %d nodes: expected 0 to %d", o->node_rank, o->nodes, o->nodes - 1);
    if (!o->master_addr)
        return td__usage("run", "--nnodes is %d: say the address of node 0, with --master-addr", o->nodes);
    if (!o->per_node)
        return td__usage("run", "say how many ranks on this node: --nproc-per-node N");
    o->ranks = o->per_node;
    return 0;
}

/* Which slots a host has: its own, else --nproc-per-node, else an even share of -n, else one. */
static int plan_mpirun(td__run_options *o)
{
    td__hosts *hosts = &o->hosts;
    int slots = 0, nodes = hosts->count;
    if (hosts->count == 0) {
        if (o->nodes > 1 && !td__in_slurm())
            return td__usage("run", "--nnodes is %d: name the hosts, with -H or --hostfile", o->nodes);
        nodes = o->nodes ? o->nodes : number_of("SLURM_JOB_NUM_NODES") ? number_of("SLURM_JOB_NUM_NODES") : 1;
        o->ranks = o->total ? o->total : o->per_node ? o->per_node * nodes : number_of("SLURM_NTASKS");
        return o->ranks ? 0 : td__usage("run", "say how many ranks: -n N");
    }
    if (o->nodes > hosts->count)
        return td__usage("run", "--nnodes is %d and only %d host%s named", o->nodes, hosts->count, hosts->count == 1 ? " is" : "s are");
    if (o->nodes)
        hosts->count = nodes = o->nodes;
    for (int i = 0; i < nodes; i++) {
        td__named_host *h = &hosts->host[i];
        if (o->per_node && h->slots && o->per_node > h->slots)
            return td__usage("run", "--nproc-per-node is %d and host %s has %d slot%s", o->per_node, h->name, h->slots,
                             h->slots == 1 ? "" : "s");
        if (o->per_node)
            h->slots = o->per_node;
        else if (h->slots == 0)
            h->slots = o->total ? (o->total + nodes - 1) / nodes : 1;
        slots += h->slots;
    }
    o->ranks = o->total ? o->total : slots;
    if (o->ranks > slots)
        return td__usage("run", "-n is %d and the hosts have %d slots together", o->ranks, slots);
    return 0;
}

static int plan_srun(td__run_options *o)
{
    const char *job = td__getenv("SLURM_JOB_ID");
    int nodes = o->nodes ? o->nodes : o->hosts.count ? o->hosts.count : number_of("SLURM_JOB_NUM_NODES");
    if (!job || !*job)
        return td__usage("run", "--engine srun needs a Slurm allocation (SLURM_JOB_ID is not set): use it within sbatch or salloc");
    if (o->hosts.count && nodes != o->hosts.count)
        return td__usage("run", "--nnodes is %d and %d hosts are named", o->nodes, o->hosts.count);
    for (int i = 1; i < o->hosts.count; i++)
        if (o->hosts.host[i].slots != o->hosts.host[0].slots)
            return td__usage("run", "hosts %s and %s have different slots, which srun cannot do: name them without slots, or use --engine "
                             "mpirun", o->hosts.host[0].name, o->hosts.host[i].name);
    if (o->hosts.count && o->hosts.host[0].slots && !o->per_node)
        o->per_node = o->hosts.host[0].slots;
    if (o->total && o->per_node && nodes && o->total > o->per_node * nodes)
        return td__usage("run", "-n is %d, more than %d on each of %d nodes", o->total, o->per_node, nodes);
    o->nodes = nodes;
    o->ranks = o->total ? o->total : o->per_node && nodes ? o->per_node * nodes : number_of("SLURM_NTASKS");
    return o->ranks ? 0 : td__usage("run", "say how many ranks: -n N (SLURM_NTASKS is not set)");
}

/* ---- the choice ------------------------------------------------------------------------------------------------------------------ */

static int choose(td__run_options *o)
{
    bool by_hand = o->nodes > 1 && (o->node_rank >= 0 || o->master_addr);
    if (o->engine != TD_ENGINE_AUTO)
        return 0;
    if (o->standalone || (o->nodes == 1 && o->hosts.count == 0 && o->node_rank <= 0))
        o->engine = TD_ENGINE_LOCAL;
    else if (by_hand || o->node_rank >= 0)
        o->engine = TD_ENGINE_HAND;
    else if (td__in_slurm())
        o->engine = TD_ENGINE_SRUN;
    else if (o->hosts.count > 0)
        o->engine = TD_ENGINE_MPIRUN;
    else if (o->nodes > 1)
        return td__usage("run", "--nnodes is %d: name the hosts (-H, --hostfile), start it within a Slurm allocation, or start it on every node "
                         "with --node-rank and --master-addr", o->nodes);
    else
        o->engine = TD_ENGINE_LOCAL;
    return 0;
}

int td__plan(td__run_options *o)
{
    int status = choose(o);
    if (status == 0)
        status = count_per_node(o);
    if (status)
        return status;
    switch (o->engine) {
    case TD_ENGINE_HAND:
        status = plan_hand(o);
        break;
    case TD_ENGINE_MPIRUN:
        status = plan_mpirun(o);
        break;
    case TD_ENGINE_SRUN:
        status = plan_srun(o);
        break;
    default:
        status = plan_local(o);
    }
    if (status == 0 && o->ranks > TD_RANKS_MAX)
        return td__usage("run", "%d ranks are too many: expected at most %d", o->ranks, TD_RANKS_MAX);
    return status;
}
