/* launcher/options.c: what the user asked `tandem run` for: one table of torchrun's and mpirun's names and our own.
 *
 * Options end at the first word that is none: everything from the program's name on is the program's. Dashes and
 * underscores are the same in long names (torchrun has used both), and one dash before a long name is enough (mpirun's
 * habit). What an option means beside the others is plan.c's business; here each is looked at alone.
 */
#include "launcher.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef enum {
    RANKS, PER_NODE, NODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, ENDPOINT, BACKEND, JOB_ID, STANDALONE, RESTARTS, MODULE, NO_PYTHON,
    LOG_DIR, TEE, REDIRECTS, FILTER, HOSTS, HOSTFILE, EXPORT, BIND_TO, REPORT, TAG, ENGINE, DRY_RUN, THREADS, NO_PREFIX, KILL_AFTER
} option_kind;
static const struct {
    const char *name;                          /* with two dashes: '_' is as good as '-', and one leading dash is enough  */
    option_kind kind;
    bool valued;
} known[] = {
    { "-n", RANKS, true }, { "--np", RANKS, true }, { "--nproc-per-node", PER_NODE, true }, { "--nnodes", NODES, true },
    { "--node-rank", NODE_RANK, true }, { "--master-addr", MASTER_ADDR, true }, { "--master-port", MASTER_PORT, true },
    { "--rdzv-endpoint", ENDPOINT, true }, { "--rdzv-backend", BACKEND, true }, { "--rdzv-id", JOB_ID, true },
    { "--standalone", STANDALONE, false }, { "--max-restarts", RESTARTS, true }, { "-m", MODULE, false }, { "--module", MODULE, false },
    { "--no-python", NO_PYTHON, false }, { "--log-dir", LOG_DIR, true }, { "-t", TEE, true }, { "--tee", TEE, true },
    { "-r", REDIRECTS, true }, { "--redirects", REDIRECTS, true }, { "--local-ranks-filter", FILTER, true },
    { "-H", HOSTS, true }, { "--host", HOSTS, true }, { "--hostfile", HOSTFILE, true }, { "--machinefile", HOSTFILE, true },
    { "-x", EXPORT, true }, { "--bind-to", BIND_TO, true }, { "--report-bindings", REPORT, false }, { "--tag-output", TAG, false },
    { "--engine", ENGINE, true }, { "--dry-run", DRY_RUN, false },
    { "--threads", THREADS, true }, { "--no-prefix", NO_PREFIX, false }, { "--timeout-kill", KILL_AFTER, true },
};

/* ---- values -------------------------------------------------------------------------------------------------------------------- */

static bool whole_number(const char *text, int low, int high, int *into)
{
    char *end;
    errno = 0;
    long n = strtol(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || errno || n < low || n > high)
        return false;
    *into = (int)n;
    return true;
}

/* One of `count` words; -1: none of them. */
static int word_of(const char *const *words, int count, const char *text)
{
    for (int i = 0; i < count; i++)
        if (strcmp(words[i], text) == 0)
            return i;
    return -1;
}

static int set_per_node(td__run_options *o, const char *name, const char *value)
{
    static const char *const words[] = { "auto", "gpu", "cpu" };
    static const td__per_node_kind kinds[] = { TD_PER_NODE_AUTO, TD_PER_NODE_GPU, TD_PER_NODE_CPU };
    int word = word_of(words, TD_COUNT(words), value);
    o->per_node_kind = word < 0 ? TD_PER_NODE_NUMBER : kinds[word];
    if (word >= 0 || whole_number(value, 1, TD_RANKS_MAX, &o->per_node))
        return 0;
    return td__usage("run", "%s is \"%s\": expected a number of ranks from 1 to %d, auto, gpu or cpu", name, value, TD_RANKS_MAX);
}

/* torchrun takes "2" and "1:4"; the second means a job that grows and shrinks. */
static int set_nodes(td__run_options *o, const char *name, const char *value)
{
    int low, high;
    char *colon = strchr(value, ':'), first[16] = "";
    if (colon && colon - value < (long)sizeof first)
        memcpy(first, value, (size_t)(colon - value));
    if (colon && whole_number(first, 1, TD_RANKS_MAX, &low) && whole_number(colon + 1, 1, TD_RANKS_MAX, &high)) {
        if (low != high)
            return td__usage("run", "%s is \"%s\": the number of nodes stays the same for the whole job; say one number", name, value);
        o->nodes = low;
        return 0;
    }
    return whole_number(value, 1, TD_RANKS_MAX, &o->nodes) ? 0 :
        td__usage("run", "%s is \"%s\": expected a number of nodes from 1 to %d", name, value, TD_RANKS_MAX);
}

static int set_endpoint(td__run_options *o, const char *name, const char *value)
{
    const char *colon = strrchr(value, ':');
    size_t n = colon ? (size_t)(colon - value) : strlen(value);
    if (n == 0 || n >= sizeof o->endpoint_host || (colon && !whole_number(colon + 1, 1, 65535, &o->master_port)))
        return td__usage("run", "%s is \"%s\": expected HOST:PORT", name, value);
    memcpy(o->endpoint_host, value, n);
    o->endpoint_host[n] = '\0';
    o->master_addr = o->endpoint_host;
    return 0;
}

/* "3" for all ranks, or "0:3,1:2" by local rank; 0 nothing, 1 standard output, 2 standard error, 3 both. */
static int set_streams(const char **into, const char *name, const char *value)
{
    if (!td__streams_valid(value))
        return td__usage("run", "%s is \"%s\": expected 0 (nothing), 1 (standard output), 2 (standard error) or 3 (both), or such a number "
                         "for some local ranks, as in 0:3,1:2", name, value);
    *into = value;
    return 0;
}

static int set_filter(td__run_options *o, const char *name, const char *value)
{
    if (!td__filter_valid(value))
        return td__usage("run", "%s is \"%s\": expected local ranks, as in 0,2", name, value);
    o->streams.filter = value;
    return 0;
}

/* VAR or VAR=VALUE. The value becomes ours, so that every engine forwards it alike. */
static int add_export(td__run_options *o, const char *name, const char *value)
{
    const char *equals = strchr(value, '=');
    size_t n = equals ? (size_t)(equals - value) : strlen(value);
    bool fits = n > 0 && n < sizeof o->export[0] && (value[0] < '0' || value[0] > '9');
    for (size_t i = 0; fits && i < n; i++)
        fits = (value[i] >= 'a' && value[i] <= 'z') || (value[i] >= 'A' && value[i] <= 'Z') || (value[i] >= '0' && value[i] <= '9') ||
               value[i] == '_';
    if (!fits)
        return td__usage("run", "%s is \"%s\": expected VARIABLE or VARIABLE=VALUE", name, value);
    if (o->exports == TD_EXPORTS_MAX)
        return td__usage("run", "%s \"%s\" is one too many: at most %d variables", name, value, TD_EXPORTS_MAX);
    memcpy(o->export[o->exports], value, n);
    o->export[o->exports][n] = '\0';
    if (equals)
        setenv(o->export[o->exports], equals + 1, 1);
    o->exports++;
    return 0;
}

static int set_word(int *into, const char *name, const char *value, const char *const *words, int count, const char *expected)
{
    int word = word_of(words, count, value);
    if (word < 0)
        return td__usage("run", "%s is \"%s\": expected %s", name, value, expected);
    *into = word;
    return 0;
}

/* ---- one option ------------------------------------------------------------------------------------------------------------------ */

static int apply(td__run_options *o, option_kind kind, const char *name, const char *value)
{
    static const char *const engines[] = { "auto", "local", "mpirun", "srun" }, *const binds[] = { "core", "none" },
                      *const backends[] = { "static", "c10d" };
    int ignored, number;
    char *end;
    switch (kind) {
    case RANKS:
        return whole_number(value, 1, TD_RANKS_MAX, &o->total) ? 0 :
            td__usage("run", "%s is \"%s\": expected a number of ranks from 1 to %d", name, value, TD_RANKS_MAX);
    case PER_NODE:
        return set_per_node(o, name, value);
    case NODES:
        return set_nodes(o, name, value);
    case NODE_RANK:
        return whole_number(value, 0, TD_RANKS_MAX - 1, &o->node_rank) ? 0 :
            td__usage("run", "%s is \"%s\": expected this node's number, from 0", name, value);
    case MASTER_ADDR:
        o->master_addr = value;
        return *value ? 0 : td__usage("run", "%s is empty: expected the name or address of node 0", name);
    case MASTER_PORT:
        return whole_number(value, 1, 65535, &o->master_port) ? 0 :
            td__usage("run", "%s is \"%s\": expected a port from 1 to 65535", name, value);
    case ENDPOINT:
        return set_endpoint(o, name, value);
    case BACKEND:                              /* both mean: the nodes meet at the endpoint, which is what they do here */
        return set_word(&ignored, name, value, backends, TD_COUNT(backends), "static or c10d (the nodes meet at the endpoint, by a store of "
                        "Tandem's own)");
    case JOB_ID:
        o->job_id = value;
        return *value ? 0 : td__usage("run", "%s is empty: expected a name for the job", name);
    case STANDALONE:
        o->standalone = true;
        return 0;
    case RESTARTS:
        if (whole_number(value, 0, 1 << 30, &number) && number == 0)
            return 0;
        return td__usage("run", "%s is \"%s\": a failed job is not started again here: expected 0 (let the batch system requeue it, and "
                         "resume from the saved state)", name, value);
    case MODULE:
        return td__usage("run", "%s is for Python modules and programs are started as they are: name the interpreter, as in tandem run "
                         "-n 2 python3 -m MODULE", name);
    case NO_PYTHON:                            /* never is one wanted */
        return 0;
    case LOG_DIR:
        o->streams.log_dir = value;
        return *value && strlen(value) < TD_LOG_DIR_MAX ? 0 : td__usage("run", "%s is \"%.60s\": expected a folder's name of 1 to %d bytes",
                                                                         name, value, TD_LOG_DIR_MAX - 1);
    case TEE:
        return set_streams(&o->streams.tee, name, value);
    case REDIRECTS:
        return set_streams(&o->streams.redirects, name, value);
    case FILTER:
        return set_filter(o, name, value);
    case HOSTS:
        return td__hosts_parse(&o->hosts, name, value);
    case HOSTFILE:
        return td__hosts_read(&o->hosts, name, value);
    case EXPORT:
        return add_export(o, name, value);
    case BIND_TO:
        number = 0;
        if (set_word(&number, name, value, binds, TD_COUNT(binds), "core (each rank its share of the cores) or none"))
            return TD_EXIT_USAGE;
        o->no_binding = number == 1;
        return 0;
    case REPORT:
        o->report_bindings = true;
        return 0;
    case TAG:
        o->tag_output = true;
        return 0;
    case ENGINE:
        number = 0;
        if (set_word(&number, name, value, engines, TD_COUNT(engines), "auto, local, mpirun or srun"))
            return TD_EXIT_USAGE;
        o->engine = (td__engine_kind)number;
        return 0;
    case DRY_RUN:
        o->dry_run = true;
        return 0;
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

/* How many bytes of `word` are this long option's name, in any of its spellings; 0: another option. */
static size_t match_long(const char *word, const char *name)
{
    const char *w = word + (word[1] == '-' ? 2 : 1), *n = name + 2;
    for (; *n; n++, w++)
        if (*w != *n && !(*n == '-' && *w == '_'))
            return 0;
    return *w == '\0' || *w == '=' ? (size_t)(w - word) : 0;
}

/* One option at argv[*i], with its value in the same word ("--threads=2", "-n2") or in the next. */
static int take_option(td__run_options *o, int argc, char **argv, int *i)
{
    const char *word = argv[*i];
    for (size_t k = 0; k < TD_COUNT(known); k++) {
        const char *name = known[k].name;
        bool is_long = name[1] == '-';
        size_t n = is_long ? match_long(word, name) : strncmp(word, name, 2) == 0 ? 2 : 0;
        if (n == 0 || (!is_long && word[2] && !(known[k].kind == RANKS && word[2] >= '0' && word[2] <= '9')))
            continue;
        char said[64];
        snprintf(said, sizeof said, "%.*s", (int)n, word);
        if (!known[k].valued)
            return word[n] ? td__usage("run", "%s takes no value", said) : apply(o, known[k].kind, said, "");
        if (word[n])
            return apply(o, known[k].kind, said, word + n + is_long);
        if (*i + 1 >= argc)
            return td__usage("run", "%s needs a value", said);
        return apply(o, known[k].kind, said, argv[++*i]);
    }
    return td__usage("run", "there is no option \"%s\"", word);
}

int td__options_take(td__run_options *o, int argc, char **argv)
{
    int i = 1;
    for (; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
        if (strcmp(argv[i], "--") == 0) {
            i++;
            break;
        }
        int status = take_option(o, argc, argv, &i);
        if (status)
            return status;
    }
    if ((o->streams.tee || o->streams.redirects) && !o->streams.log_dir)
        return td__usage("run", "%s writes files: say in which folder, with --log-dir", o->streams.tee ? "--tee" : "--redirects");
    if (o->total == 0 && o->per_node == 0 && o->per_node_kind == TD_PER_NODE_NUMBER && o->hosts.count == 0 && !td__in_slurm())
        return td__usage("run", "say how many ranks: -n N");
    if (i >= argc)
        return td__usage("run", "say which program to run, after the options");
    o->argv = argv + i;
    return 0;
}
