/* base/meet_find.c: where does a world on several hosts meet? From what its launcher left in the environment. See meet.h.
 *
 * Our launcher says so itself (TANDEM_STORE). torchrun says where rank 0 is (MASTER_ADDR), and so does whoever starts ranks by hand. Of a Slurm
 * step all tasks know the list of nodes: the first task on the first of them serves. Nothing else is guessed.
 */
#include "meet.h"
#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    const char *(*get)(const char *name);
    const td__world *world;
    td__meet_plan *out;
    char *error;
    size_t error_size;
} search;

TD_PRINTF(2, 3) static int complain(search *s, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(s->error, s->error_size, format, args);
    va_end(args);
    return TD_ERR_LAUNCH;
}

static const char *value(search *s, const char *name)
{
    const char *text = s->get(name);
    return text && *text ? text : NULL;
}

static int index_of(search *s, const char *name, int *into)
{
    const char *text = value(s, name);
    char *end = NULL;
    long n = text ? strtol(text, &end, 10) : -1;
    if (!text)
        return complain(s, "%s is not set: the launcher's environment is incomplete", name);
    if (*end || n < 0 || n > INT_MAX)
        return complain(s, "%s is \"%.60s\": expected a whole number, at least 0", name, text);
    *into = (int)n;
    return 0;
}

static bool is_slurm_step(search *s)
{
    const char *tasks = value(s, "SLURM_STEP_NUM_TASKS"), *rank = value(s, "SLURM_PROCID");
    const td__world *w = s->world;
    return (!strcmp(w->launcher, "slurm") || !strcmp(w->launcher, "pmi")) && tasks && rank && atoi(tasks) == w->size && atoi(rank) == w->rank &&
           value(s, "SLURM_STEP_NODELIST");
}

static int by_slurm(search *s)
{
    td__meet_plan *out = s->out;
    const char *list = value(s, "SLURM_STEP_NODELIST"), *count = value(s, "SLURM_STEP_NUM_NODES");
    int node = 0, local = 0;
    int code = td__nodelist(list, &out->nodes, s->error, s->error_size);
    code = code ? code : index_of(s, "SLURM_NODEID", &node);
    code = code ? code : index_of(s, "SLURM_LOCALID", &local);
    if (!code && (size_t)node >= out->nodes.n)
        code = complain(s, "SLURM_NODEID is %d, but SLURM_STEP_NODELIST (%.80s) names %zu host%s", node, list, out->nodes.n,
                        out->nodes.n == 1 ? "" : "s");
    if (!code && count && (size_t)atol(count) != out->nodes.n)
        code = complain(s, "SLURM_STEP_NUM_NODES is %.20s, but SLURM_STEP_NODELIST (%.80s) names %zu", count, list, out->nodes.n);
    if (code)
        return code;
    snprintf(out->from, sizeof out->from, "SLURM_STEP_NODELIST");
    snprintf(out->host, sizeof out->host, "%s", out->nodes.name[0]);
    snprintf(out->node, sizeof out->node, "%s", out->nodes.name[node]);
    out->serve = node == 0 && local == 0;
    return 0;
}

/* "tcp:HOST:PORT"; port 0: by the job's name. */
static int by_address(search *s, const char *address)
{
    td__meet_plan *out = s->out;
    const char *host = address + 4, *colon = strrchr(host, ':');
    size_t length = colon ? (size_t)(colon - host) : 0;
    char *end = NULL;
    long port = colon ? strtol(colon + 1, &end, 10) : -1;
    if (length > 2 && host[0] == '[' && host[length - 1] == ']')
        host++, length -= 2;
    if (strncmp(address, "tcp:", 4) != 0 || length == 0 || length >= sizeof out->host || port < 0 || port > 65535 || end == colon + 1 || *end)
        return complain(s, "TANDEM_STORE is \"%.120s\": expected tcp:HOST:PORT (port 0: one that the job's name gives)", address);
    snprintf(out->from, sizeof out->from, "TANDEM_STORE");
    snprintf(out->host, sizeof out->host, "%.*s", (int)length, host);
    out->port = (int)port;
    out->serve = s->world->rank == 0;
    return 0;
}

static int by_master(search *s)
{
    td__meet_plan *out = s->out;
    const char *host = value(s, "MASTER_ADDR");
    if (strlen(host) >= sizeof out->host)
        return complain(s, "MASTER_ADDR has %zu characters: expected less than %zu", strlen(host), sizeof out->host);
    snprintf(out->from, sizeof out->from, "MASTER_ADDR");
    snprintf(out->host, sizeof out->host, "%s", host);
    out->serve = s->world->rank == 0;
    return 0;
}

/* A Unix socket needs no port; it is abstract, so nothing is left of it. */
static int on_one_host(search *s)
{
    unsigned char hash[16];
    char text[200], hex[2 * sizeof hash + 1];
    int n = snprintf(text, sizeof text, "tandem meeting\n%lu\n%s", (unsigned long)geteuid(), s->world->job);
    crypto_generichash(hash, sizeof hash, (unsigned char *)text, (unsigned long long)n, s->world->has_secret ? s->world->secret : NULL,
                       s->world->has_secret ? sizeof s->world->secret : 0);
    sodium_bin2hex(hex, sizeof hex, hash, sizeof hash);
    snprintf(s->out->address, sizeof s->out->address, "unix:@tandem-meet-%s", hex);
    s->out->one_host = true;
    s->out->serve = s->world->local_rank == 0;
    return 0;
}

int td__meet_find(const char *(*get)(const char *name), const td__world *w, td__meet_plan *out, char *error, size_t error_size)
{
    search s = { get, w, out, error, error_size };
    *out = (td__meet_plan){ 0 };
    const char *store = value(&s, "TANDEM_STORE");
    bool ours = !strcmp(w->launcher, "tandem"), one_host = w->local_size == w->size && w->local_rank >= 0;
    int code;
    if (ours && store) {
        if (!w->has_secret)
            return complain(&s, "TANDEM_STORE is set and TANDEM_SECRET is not: the launcher's environment is incomplete");
        snprintf(out->address, sizeof out->address, "%s", store);
        out->launcher = true;
        return 0;
    }
    if (one_host)
        code = on_one_host(&s);
    else if (store && strncmp(store, "unix:", 5) != 0)         /* one of those is an outer `tandem run`'s */
        code = by_address(&s, store);
    else if (is_slurm_step(&s))
        code = by_slurm(&s);
    else if (value(&s, "MASTER_ADDR"))
        code = by_master(&s);
    else
        code = complain(&s, "nothing says where the %d ranks that %s started meet: set MASTER_ADDR to the host of rank 0", w->size, w->launcher);
    if (code)
        td__nodelist_free(&out->nodes);
    return code;
}
