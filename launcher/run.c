/* launcher/run.c: `tandem run`: what the user asked for.
 *
 * Options end at the first word that is none: everything from the program's name on is the program's.
 */
#include "launcher.h"
#include <stdlib.h>
#include <string.h>

enum { RANKS_MAX = 4096 };
typedef enum { RANKS, THREADS, NO_PREFIX, KILL_AFTER } option_kind;
static const struct {
    const char *name;
    option_kind kind;
    bool valued;
} known[] = {
    { "-n", RANKS, true }, { "-np", RANKS, true }, { "--nproc-per-node", RANKS, true }, { "--nproc_per_node", RANKS, true },
    { "--threads", THREADS, true }, { "--no-prefix", NO_PREFIX, false }, { "--timeout-kill", KILL_AFTER, true },
};

static bool whole_number(const char *text, int low, int high, int *into)
{
    char *end;
    long n = strtol(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || n < low || n > high)
        return false;
    *into = (int)n;
    return true;
}

static int apply(td__run_options *o, option_kind kind, const char *name, const char *value)
{
    char *end;
    switch (kind) {
    case RANKS:
        return whole_number(value, 1, RANKS_MAX, &o->ranks) ? 0 :
            td__usage("run", "%s is \"%s\": expected a number of ranks from 1 to %d", name, value, RANKS_MAX);
    case THREADS:
        return whole_number(value, 1, 4096, &o->threads) ? 0 :
            td__usage("run", "%s is \"%s\": expected a number of threads per rank", name, value);
    case NO_PREFIX:
        o->no_prefix = true;
        return 0;
    case KILL_AFTER:
        o->kill_after_s = strtod(value, &end);
        return *value >= '0' && *value <= '9' && !*end && o->kill_after_s <= 86400 ? 0 :
            td__usage("run", "%s is \"%s\": expected seconds between SIGTERM and SIGKILL", name, value);
    }
    return 0;
}

/* One option at argv[*i], with its value in the same word ("--threads=2", "-n2") or in the next. */
static int take_option(td__run_options *o, int argc, char **argv, int *i)
{
    const char *word = argv[*i];
    for (size_t k = 0; k < TD_COUNT(known); k++) {
        const char *name = known[k].name;
        size_t n = strlen(name);
        bool is_long = name[1] == '-';
        if (strcmp(word, name) == 0) {
            if (!known[k].valued)
                return apply(o, known[k].kind, name, "");
            if (*i + 1 >= argc)
                return td__usage("run", "%s needs a value", name);
            return apply(o, known[k].kind, name, argv[++*i]);
        }
        if (known[k].valued && is_long && strncmp(word, name, n) == 0 && word[n] == '=')
            return apply(o, known[k].kind, name, word + n + 1);
        if (known[k].kind == RANKS && n == 2 && strncmp(word, name, 2) == 0 && word[2] >= '0' && word[2] <= '9')
            return apply(o, known[k].kind, name, word + 2);
    }
    return td__usage("run", "there is no option \"%s\"", word);
}

static int run(int argc, char **argv)
{
    td__run_options o = { .kill_after_s = 2 };
    int i = 1;
    for (; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
        if (strcmp(argv[i], "--") == 0) {
            i++;
            break;
        }
        int status = take_option(&o, argc, argv, &i);
        if (status)
            return status;
    }
    if (o.ranks == 0)
        return td__usage("run", "say how many ranks: -n N");
    if (i >= argc)
        return td__usage("run", "say which program to run, after the options");
    o.argv = argv + i;
    int status = td__program_find(argv[i], &o.path);
    if (status == 0)
        status = td__job_run(&o);
    free(o.path);
    return status;
}

const td__command td__command_run = {
    .name = "run",
    .usage = "run -n N [options] [--] program [args]",
    .summary = "Start N ranks of a program on this machine",
    .details =
        "  -n N, --nproc-per-node N   how many ranks\n"
        "  --threads T                OpenMP threads per rank (default: its share of the cores)\n"
        "  --no-prefix                do not begin each line of output with \"[rank] \"\n"
        "  --timeout-kill S           seconds between SIGTERM and SIGKILL when the job is ended (default 2)\n"
        "\n"
        "Every rank finds TANDEM_RANK, TANDEM_SIZE and torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, ...) in its\n"
        "environment. Cores are divided between the ranks; with more ranks than cores they are left free, with one\n"
        "thread each. Standard input goes to rank 0. SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 are passed on to all\n"
        "ranks; a second SIGINT kills them. When a rank fails, the first line says which, how and why, everything that\n"
        "the job started is ended, and the exit code is that rank's (128 + signal when a signal ended it).\n",
    .run = run,
};
