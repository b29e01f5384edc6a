/* launcher/environ.c: what a rank finds in its environment: the user's variables, with ours and torchrun's in their places.
 *
 * torchrun's names stand beside our own so that programs written for it run unchanged. MASTER_PORT was free when the job
 * began and is never a fixed number.
 */
#include "launcher.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OURS = 24 };
typedef struct {
    char *variable[OURS];
    size_t n;
    bool failed;
} additions;

TD_PRINTF(3, 4) static void add(additions *a, const char *name, const char *format, ...)
{
    char value[512];
    va_list args;
    va_start(args, format);
    vsnprintf(value, sizeof value, format, args);
    va_end(args);
    char *variable = NULL;
    if (a->n == OURS || asprintf(&variable, "%s=%s", name, value) < 0)
        a->failed = true;
    else
        a->variable[a->n++] = variable;
}

static void add_identity(additions *a, const td__identity *who)
{
    add(a, "TANDEM_RANK", "%d", who->rank);
    add(a, "TANDEM_SIZE", "%d", who->size);
    add(a, "TANDEM_LOCAL_RANK", "%d", who->local_rank);
    add(a, "TANDEM_LOCAL_SIZE", "%d", who->local_size);
    add(a, "TANDEM_NODE_RANK", "%d", who->node_rank);
    add(a, "TANDEM_HOSTS", "%d", who->hosts);
    add(a, "TANDEM_JOB", "%s", who->job);
    add(a, "TANDEM_SECRET", "%s", who->secret);
    add(a, "TANDEM_STORE", "%s", who->store);
    add(a, "TANDEM_TERMINAL", "%d", who->columns);
    add(a, "RANK", "%d", who->rank);
    add(a, "WORLD_SIZE", "%d", who->size);
    add(a, "LOCAL_RANK", "%d", who->local_rank);
    add(a, "LOCAL_WORLD_SIZE", "%d", who->local_size);
    add(a, "GROUP_RANK", "%d", who->node_rank);
    add(a, "GROUP_WORLD_SIZE", "%d", who->hosts);
    add(a, "MASTER_ADDR", "%s", who->master_addr);
    add(a, "MASTER_PORT", "%d", who->master_port);
    add(a, "TORCHELASTIC_RUN_ID", "%s", who->job);
}

/* What the user has said about threads stands, unless --threads says it again. */
static void add_threads(additions *a, const td__identity *who)
{
    if (who->threads > 0) {
        add(a, "OMP_NUM_THREADS", "%d", who->threads);
        add(a, "TANDEM_THREADS", "%d", who->threads);
    } else {
        const char *users = td__getenv("OMP_NUM_THREADS");
        if (!users || !*users)
            add(a, "OMP_NUM_THREADS", "%d", who->share);
    }
}

static bool same_name(const char *a, const char *b)
{
    size_t n = strcspn(a, "=");
    return n == strcspn(b, "=") && memcmp(a, b, n) == 0;
}

char **td__environ_make(const td__identity *who)
{
    additions ours = { 0 };
    add_identity(&ours, who);
    add_threads(&ours, who);
    size_t users = 0, n = 0;
    while (environ[users])
        users++;
    char **variables = calloc(users + OURS + 1, sizeof *variables);
    for (size_t i = 0; variables && i < users; i++) {
        bool replaced = false;
        for (size_t k = 0; k < ours.n; k++)
            replaced |= same_name(environ[i], ours.variable[k]);
        if (!replaced && !(variables[n++] = strdup(environ[i])))
            ours.failed = true;
    }
    for (size_t k = 0; k < ours.n; k++)
        if (variables)
            variables[n++] = ours.variable[k];
        else
            free(ours.variable[k]);
    if (variables && ours.failed) {
        for (size_t i = 0; i < n; i++)
            free(variables[i]);
        free(variables);
        variables = NULL;
    }
    return variables;
}

void td__environ_free(char **variables)
{
    for (char **v = variables; v && *v; v++)
        free(*v);
    free(variables);
}
