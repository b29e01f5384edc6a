/* base/world.c: who am I among whom, from what the launcher left in the environment.
 *
 * Launchers are asked innermost first, and the first that speaks decides: our own (TANDEM_*), torchrun, Open MPI, PMIx or
 * PMI, a Slurm step. What an outer one left behind (Slurm's variables under mpirun, Open MPI's under `tandem run`) is no
 * conflict. One level that contradicts itself is an error: a rank outside its world, half of the variables, a number that
 * is none. SLURM_NTASKS alone, as in a batch script, means nothing.
 */
#include "base.h"
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const char *(*get)(const char *name);
    td__world *out;
    char *error;
    size_t error_size;
} search;

/* One level's variables. NULL: this launcher has none for it. A level speaks when `rank` is set. */
typedef struct {
    const char *launcher, *rank, *size, *local_rank, *local_size;
} names;

static const names TANDEM = { "tandem", "TANDEM_RANK", "TANDEM_SIZE", "TANDEM_LOCAL_RANK", "TANDEM_LOCAL_SIZE" };
static const names TORCHRUN = { "torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE" };
static const names OPENMPI = { "openmpi", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
                               "OMPI_COMM_WORLD_LOCAL_SIZE" };
static const names PMI = { "pmi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS" };
static const names SLURM = { "slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", NULL };

TD_PRINTF(2, 3) static int complain(search *s, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (s->error_size)
        vsnprintf(s->error, s->error_size, format, args);
    va_end(args);
    return TD_ERR_LAUNCH;
}

static const char *value(search *s, const char *name)
{
    const char *text = name ? s->get(name) : NULL;
    return text && *text ? text : NULL;
}

/* ---- one level's numbers -------------------------------------------------------------------------------------------------- */

static int number(search *s, const char *name, int low, int *into)
{
    const char *text = value(s, name);
    char *end = NULL;
    errno = 0;
    long n = strtol(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || errno != 0 || n < low || n > INT_MAX)
        return complain(s, "%s is \"%.60s\": expected a whole number, at least %d", name, text, low);
    *into = (int)n;
    return 0;
}

static int both(search *s, const char *there, const char *missing)
{
    return complain(s, "%s is set and %s is not: the launcher's environment is incomplete", there, missing);
}

static int numbers(search *s, const names *n)
{
    td__world *w = s->out;
    if (!value(s, n->rank))
        return both(s, n->size, n->rank);
    if (!value(s, n->size))
        return both(s, n->rank, n->size);
    int code = number(s, n->size, 1, &w->size);
    if (code == 0)
        code = number(s, n->rank, 0, &w->rank);
    if (code == 0 && w->rank >= w->size)
        code = complain(s, "%s is %d in a world of %d (%s): ranks go from 0 to %d", n->rank, w->rank, w->size, n->size, w->size - 1);
    if (code == 0 && value(s, n->local_size)) {
        code = number(s, n->local_size, 1, &w->local_size);
        if (code == 0 && w->local_size > w->size)
            code = complain(s, "%s is %d, more than the whole world of %d (%s)", n->local_size, w->local_size, w->size, n->size);
    }
    if (code == 0 && value(s, n->local_rank)) {
        code = number(s, n->local_rank, 0, &w->local_rank);
        if (code == 0 && w->local_size > 0 && w->local_rank >= w->local_size)
            code = complain(s, "%s is %d with %d ranks on this host (%s)", n->local_rank, w->local_rank, w->local_size, n->local_size);
        if (code == 0 && w->local_rank > w->rank)
            code = complain(s, "%s is %d and %s is %d: fewer ranks precede it in the world than on its host", n->local_rank,
                            w->local_rank, n->rank, w->rank);
    }
    if (code == 0 && w->size == 1 && w->local_rank < 0) {
        w->local_rank = 0;
        w->local_size = 1;
    }
    snprintf(w->launcher, sizeof w->launcher, "%s", n->launcher);
    return code;
}

/* ---- the job's name ---------------------------------------------------------------------------------------------------------- */

TD_PRINTF(2, 3) static void name_job(td__world *w, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(w->job, sizeof w->job, format, args);
    va_end(args);
    for (char *c = w->job; *c; c++) {
        bool plain = (*c >= '0' && *c <= '9') || (*c >= 'A' && *c <= 'Z') || (*c >= 'a' && *c <= 'z') || *c == '_' || *c == '-';
        if (!plain && !(*c == '.' && c > w->job))              /* a leading dot would hide the file */
            *c = '_';
    }
}

static const char *or_else(const char *text, const char *standard)
{
    return text ? text : standard;
}

/* ---- the levels -------------------------------------------------------------------------------------------------------------- */

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static int find_secret(search *s)
{
    const char *text = value(s, "TANDEM_SECRET");
    if (!text)
        return 0;
    size_t length = strlen(text);
    bool good = length == 2 * sizeof s->out->secret;
    for (size_t i = 0; good && i < sizeof s->out->secret; i++) {
        int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
        good = high >= 0 && low >= 0;
        s->out->secret[i] = (unsigned char)(high * 16 + low);
    }
    if (!good)                                 /* the value itself is a secret: never in a message */
        return complain(s, "TANDEM_SECRET has %zu characters or others than 0-9 a-f: expected 64 hexadecimal digits", length);
    s->out->has_secret = true;
    return 0;
}

static bool is(search *s, const char *name, int expected)
{
    char text[16];
    snprintf(text, sizeof text, "%d", expected);
    return value(s, name) && strcmp(value(s, name), text) == 0;
}

/* `tandem run` has mpirun or srun start an agent per rank, whose child this process is: then it can be that rank of theirs, too. What is
 * left of another job's launcher does not fit. */
static bool agent_of_mpi(search *s)
{
    const td__world *w = s->out;
    if (is(s, OPENMPI.size, w->size))
        return is(s, OPENMPI.rank, w->rank);
    return value(s, "PMIX_NAMESPACE") && is(s, "PMIX_RANK", w->rank) && is(s, SLURM.size, w->size);
}

/* A job that is started anew under the same name is another job: nobody of the one before may come to its meeting. */
static const char *again(search *s, const char *name, char into[24])
{
    const char *count = value(s, name);
    into[0] = '\0';
    if (count && strcmp(count, "0") != 0)
        snprintf(into, 24, "-again%.12s", count);
    return into;
}

static int from_tandem(search *s)
{
    int code = numbers(s, &TANDEM);
    if (code)
        return code;
    s->out->offers_mpi = agent_of_mpi(s);
    const char *job = value(s, "TANDEM_JOB");
    if (!job && s->out->size > 1)
        return both(s, "TANDEM_RANK", "TANDEM_JOB");
    name_job(s->out, "%.100s", or_else(job, ""));
    return find_secret(s);
}

static int from_torchrun(search *s)
{
    int code = numbers(s, &TORCHRUN);
    if (code)
        return code;
    /* Run ids may be chosen by hand ("none" is torchrun's default), the port is free on the host while the job lives. */
    char restarts[24];
    name_job(s->out, "torchrun-%lu-%.40s-%.30s-%.8s%s", (unsigned long)geteuid(), or_else(value(s, "TORCHELASTIC_RUN_ID"), "none"),
             or_else(value(s, "MASTER_ADDR"), "local"), or_else(value(s, "MASTER_PORT"), "0"), again(s, "TORCHELASTIC_RESTART_COUNT", restarts));
    return 0;
}

static int from_openmpi(search *s)
{
    int code = numbers(s, &OPENMPI);
    if (code)
        return code;
    const char *job = value(s, "PMIX_NAMESPACE");
    if (!job)
        job = value(s, "OMPI_MCA_ess_base_jobid");
    if (!job)
        job = value(s, "OMPI_MCA_orte_ess_jobid");
    if (!job && s->out->size > 1)
        return complain(s, "OMPI_COMM_WORLD_SIZE is %d but the job has no name (PMIX_NAMESPACE and OMPI_MCA_ess_base_jobid are "
                        "not set): start the ranks with mpirun or tandem run", s->out->size);
    name_job(s->out, "openmpi-%lu-%.80s", (unsigned long)geteuid(), or_else(job, "0"));
    s->out->offers_mpi = true;
    return 0;
}

/* How many tasks of the step run on this node: entry SLURM_NODEID of a list such as "3,1" or "2(x2),1". 0: not known. *all: on all nodes,
 * 0 where the list cannot be read. */
static int slurm_tasks_here(search *s, long *all)
{
    const char *list = value(s, "SLURM_STEP_TASKS_PER_NODE"), *node = value(s, "SLURM_NODEID");
    *all = 0;
    if (!list || !node)
        return 0;
    char *end;
    long index = strtol(node, &end, 10), here = 0, sum = 0;
    if (*end != '\0' || index < 0)
        return 0;
    for (bool more = true; more; list = end + 1) {
        long tasks = strtol(list, &end, 10), repeat = 1;
        if (end == list || tasks < 1 || tasks > INT_MAX)
            return 0;
        if (strncmp(end, "(x", 2) == 0) {
            repeat = strtol(end + 2, &end, 10);
            if (*end++ != ')' || repeat < 1 || repeat > INT_MAX)
                return 0;
        }
        if (index >= 0 && index < repeat)
            here = tasks;
        index -= repeat;
        sum = tasks <= (INT_MAX - sum) / repeat ? sum + tasks * repeat : INT_MAX;
        more = *end == ',';
        if (!more && *end)
            return 0;
    }
    *all = sum;
    return (int)here;
}

/* PMIx and PMI under srun say nothing about this host, Slurm itself does: taken when it speaks of the same step. */
static int add_slurm_locals(search *s)
{
    td__world *w = s->out;
    int tasks = 0;
    if (!value(s, SLURM.size) || number(s, SLURM.size, 1, &tasks) != 0 || tasks != w->size)
        return 0;
    long all = 0;
    int code = 0, here = slurm_tasks_here(s, &all);
    if (all && all != tasks)
        return complain(s, "SLURM_STEP_NUM_TASKS is %d, but SLURM_STEP_TASKS_PER_NODE (%.60s) adds up to %ld", tasks,
                        value(s, "SLURM_STEP_TASKS_PER_NODE"), all);
    if (w->local_rank < 0 && value(s, SLURM.local_rank))
        code = number(s, SLURM.local_rank, 0, &w->local_rank);
    if (w->local_size == 0)
        w->local_size = here;
    if (code == 0 && w->local_size > 0 && (w->local_rank >= w->local_size || w->local_size > w->size))
        code = complain(s, "%s is %d but SLURM_STEP_TASKS_PER_NODE gives this node %d of %d ranks", SLURM.local_rank, w->local_rank,
                        w->local_size, w->size);
    return code;
}

/* PMIx tells rank and namespace; the size is known only to its library, or to the Slurm step that started it. */
static int from_pmix(search *s)
{
    const char *space = value(s, "PMIX_NAMESPACE");
    names n = { "pmi", "PMIX_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", NULL };
    if (!space)
        return both(s, "PMIX_RANK", "PMIX_NAMESPACE");
    if (!value(s, n.size))
        return complain(s, "PMIX_RANK is set but the number of ranks is known to MPI alone: call td_init_mpi, or start the ranks "
                        "with mpirun, srun or tandem run");
    int code = numbers(s, &n);
    if (code)
        return code;
    name_job(s->out, "pmix-%lu-%.80s", (unsigned long)geteuid(), space);
    s->out->offers_mpi = true;
    return add_slurm_locals(s);
}

static int from_pmi(search *s)
{
    int code = numbers(s, &PMI);
    if (code)
        return code;
    const char *job = value(s, "SLURM_JOB_ID"), *step = value(s, "SLURM_STEP_ID");
    char restarts[24];
    if (!job)
        job = value(s, "PMI_JOBID");
    if (!job)
        job = value(s, "PMI_PORT");            /* MPICH's launcher: host and port it listens on, unlike for any other job */
    if (!job && !value(s, "PMI_FD") && s->out->size > 1)
        return complain(s, "PMI_SIZE is %d but the job has no name (PMI_JOBID, PMI_PORT and SLURM_JOB_ID are not set)", s->out->size);
    /* With PMI_FD alone the ranks of a host share only their launcher. */
    if (!job)
        name_job(s->out, "pmi-%lu-parent%ld", (unsigned long)geteuid(), (long)getppid());
    else
        name_job(s->out, "pmi-%lu-%.60s.%.20s%s", (unsigned long)geteuid(), job, or_else(step, "0"), again(s, "SLURM_RESTART_COUNT", restarts));
    return add_slurm_locals(s);
}

static int from_slurm(search *s)
{
    int code = numbers(s, &SLURM);
    if (code)
        return code;
    const char *job = value(s, "SLURM_JOB_ID"), *step = value(s, "SLURM_STEP_ID");
    if (!job)
        return both(s, "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID");
    if (!step)
        return both(s, "SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID");
    char restarts[24];
    name_job(s->out, "slurm-%lu-%.40s.%.20s%s", (unsigned long)geteuid(), job, step, again(s, "SLURM_RESTART_COUNT", restarts));
    return add_slurm_locals(s);
}

static bool several_slurm_tasks(search *s)
{
    const char *tasks = value(s, "SLURM_STEP_NUM_TASKS");
    return tasks && strcmp(tasks, "1") != 0;
}

static bool speaks(search *s, const names *n)
{
    return value(s, n->rank) || value(s, n->size);
}

int td__world_find(const char *(*get)(const char *name), td__world *out, char *error, size_t error_size)
{
    search s = { get, out, error, error_size };
    *out = (td__world){ .rank = 0, .size = 1, .local_rank = -1, .local_size = 0, .launcher = "none" };
    if (error_size)
        error[0] = '\0';
    int code = 0;
    if (speaks(&s, &TANDEM))
        code = from_tandem(&s);
    else if (value(&s, "TORCHELASTIC_RUN_ID") || (value(&s, "RANK") && value(&s, "WORLD_SIZE")))
        code = from_torchrun(&s);
    else if (speaks(&s, &OPENMPI))
        code = from_openmpi(&s);
    else if (value(&s, "PMIX_RANK"))
        code = from_pmix(&s);
    else if (speaks(&s, &PMI))
        code = from_pmi(&s);
    else if (several_slurm_tasks(&s))
        code = from_slurm(&s);
    if (out->size == 1 && code == 0) {
        out->local_rank = 0;
        out->local_size = 1;
        if (!out->job[0])
            name_job(out, "alone-%ld", (long)getpid());
    }
    return code;
}

/* ---- the process's world -------------------------------------------------------------------------------------------------------- */

static td__world now = { .rank = 0, .size = 1, .local_rank = 0, .local_size = 1, .launcher = "none" };

const td__world *td__world_now(void)
{
    return &now;
}

void td__world_set(const td__world *world)
{
    now = *world;
}
