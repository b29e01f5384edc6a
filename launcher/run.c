/* launcher/run.c: `tandem run`: from options and plan to a job on one machine, or across hosts.
 */
#include "launcher.h"
#include <stdlib.h>

static int run(int argc, char **argv)
{
    td__run_options o = { .kill_after_s = 2, .node_rank = -1 };
    int status = td__options_take(&o, argc, argv);
    if (status == 0)
        status = td__plan(&o);
    if (status == 0 && o.engine != TD_ENGINE_LOCAL) {
        status = o.dry_run ? td__engine_show(&o) : td__head_run(&o);
    } else if (status == 0) {
        status = td__program_find(o.argv[0], &o.path);
        if (status == 0)
            status = o.dry_run ? td__engine_show(&o) : td__job_run(&o);
    }
    free(o.path);
    free(o.hosts.host);
    return status;
}

const td__command td__command_run = {
    .name = "run",
    .usage = "run -n N [options] [--] program [args]",
    .summary = "Start N ranks of a program, here or on several hosts",
    .details =
        "How many, and where:\n"
        "  -n N, -np N                all ranks of the job\n"
        "  --nproc-per-node N         ranks on each node; auto (a GPU each, else a core each), gpu or cpu: as many as there are\n"
        "  -H a:4,b:4, --host         hosts with their slots; mpirun starts the ranks there\n"
        "  --hostfile FILE            the same from a file, a line each: HOST slots=N\n"
        "  --engine E                 auto (default), local, mpirun or srun. auto: srun within a Slurm allocation, mpirun with\n"
        "                             hosts, else this machine\n"
        "  --nnodes N --node-rank R --master-addr A [--master-port P]\n"
        "                             started by hand: the same line on every node, with its own R; they meet on node 0.\n"
        "                             --rdzv-endpoint A:P says the last two at once\n"
        "  --rdzv-id NAME             the job's name among hand-started ones; --standalone: this machine, whatever is around\n"
        "  --dry-run                  only print the command that would start the ranks\n"
        "\n"
        "Each rank:\n"
        "  -x VAR[=VALUE]             pass a variable to the ranks on all hosts (TANDEM_*, NCCL_* and OMP_* go by themselves)\n"
        "  --threads T                OpenMP threads per rank (default: its share of the cores)\n"
        "  --bind-to core|none        bind each rank to its share of the cores (default) or not\n"
        "  --report-bindings          show who is bound to what; across hosts that is always shown\n"
        "\n"
        "Output:\n"
        "  --log-dir DIR              with -t, --tee S: also into DIR/JOB/RANK/stdout.log and stderr.log; with -r, --redirects S:\n"
        "                             only there. S is 1 (standard output), 2 (standard error), 3 (both), or as in 0:3,1:2 by\n"
        "                             local rank\n"
        "  --local-ranks-filter 0,1   show only these local ranks\n"
        "  --no-prefix, --tag-output  never, or even with one rank, begin each line with \"[rank] \"\n"
        "\n"
        "The end:\n"
        "  --timeout-kill S           seconds between SIGTERM and SIGKILL when the job is ended (default 2)\n"
        "\n"
        "Every rank finds TANDEM_RANK, TANDEM_SIZE and torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, ...) in its\n"
        "environment. Cores are divided between the ranks; with more ranks than cores they are left free, with one\n"
        "thread each. Standard input goes to rank 0. SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are passed on to all\n"
        "ranks; a second SIGINT kills them. When a rank fails, the first line says which, how and why, everything that\n"
        "the job started is ended, and the exit code is that rank's (128 + signal when a signal ended it). A host that\n"
        "cannot be reached ends the job within 6 seconds, on both sides.\n",
    .run = run,
};
