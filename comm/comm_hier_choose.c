/* comm/comm_hier_choose.c: which algorithm an all_reduce between hosts takes: measured once, when the world opens.
 *
 * Rank 0 lets all ranks sum some sizes with each algorithm that could win, from the smallest on, until half a second is spent; a slow network
 * ends it after the first size. It decides, and tells the others. TANDEM_ALGORITHM saves the measurement. The other collectives have no choice:
 * the ring over hosts, or the flat ring where memory cannot be shared.
 */
#include <stdio.h>
#include "comm_hier.h"

#define BUDGET 0.5                             /* seconds in all                                                                 */
#define CLEARLY 0.85                           /* the first candidate stays unless another is so much faster: one run says little */
enum { MANY_HOSTS = 256, MANY_RANKS = 64, REPEATS = 3 };
static const size_t sizes[TD_HIER_SIZES] = { 64 << 10, 256 << 10, 1 << 20, 4 << 20 };

int td__hier_algorithm(const td__hier *h, const td_coll *coll, bool shared)
{
    size_t bytes = td__hier_in_bytes(h, coll);
    int i = 0, wanted = h->forced;
    while (i < TD_HIER_SIZES - 1 && bytes >= 2 * sizes[i])
        i++;
    if (wanted < 0)
        wanted = h->best[i];
    if (wanted == TD_ALGORITHM_MPI)
        return wanted;
    if (!shared)
        return TD_ALGORITHM_RING;
    return wanted == TD_ALGORITHM_HALVING && coll->kind != TD_COLL_ALL_REDUCE ? TD_ALGORITHM_HIER : wanted;
}

/* ---- the measurement -------------------------------------------------------------------------------------------------------------------- */

typedef struct {
    td__hier *h;
    float   *buffer;
    int      candidate[TD_ALGORITHMS], candidates;
    uint64_t turn;
    double   begun;
} trial;

/* Like any collective, but for those that wait for it it is td_init. */
static int call(trial *t, td_coll *coll)
{
    td__hier *h = t->h;
    coll->turn = ++t->turn;
    coll->label = "td_init";
    coll->arrived = td__now();
    coll->pre = coll->post = 1;
    td__control_enter(&h->view, coll);
    int code = td__hier_run(h, coll);
    td__control_leave(&h->view);
    return code;
}

static int tell(trial *t, void *data, size_t n)
{
    td_coll coll = { .kind = TD_COLL_BROADCAST, .dtype = TD_U8, .in = data, .out = data, .count = (int64_t)n };
    return call(t, &coll);
}

static int sum(trial *t, int algorithm, size_t bytes, double *seconds)
{
    td_coll coll = { .kind = TD_COLL_ALL_REDUCE, .dtype = TD_F32, .in = t->buffer, .out = t->buffer, .count = (int64_t)(bytes / sizeof(float)) };
    t->h->forced = algorithm;
    int code = call(t, &coll);
    t->h->forced = -1;
    *seconds = td__now() - coll.begun;
    return code;
}

static int one_size(trial *t, int i, double *slowest)
{
    double best = 1e9, least[TD_ALGORITHMS];
    int code = 0, repeats = *slowest > 0 ? (int)(0.1 / (*slowest * t->candidates)) : 1;
    repeats = repeats < 1 ? 1 : repeats > REPEATS ? REPEATS : repeats;
    if (td__now() - t->begun + *slowest * t->candidates > BUDGET)
        repeats = 0;
    code = tell(t, &repeats, sizeof repeats);
    if (code || !repeats)
        return code ? code : 1;
    for (int k = 0; k < t->candidates; k++)
        least[k] = 1e9;
    for (int n = 0; n < repeats; n++)
        for (int k = 0; k < t->candidates && !code; k++) {
            double took;
            code = sum(t, t->candidate[k], sizes[i], &took);
            least[k] = took < least[k] ? took : least[k];
        }
    *slowest = 0;
    for (int k = 0; k < t->candidates; k++) {
        if (least[k] < best * (k ? CLEARLY : 1))
            best = least[k], t->h->best[i] = t->candidate[k];
        *slowest = least[k] > *slowest ? least[k] : *slowest;
    }
    *slowest *= 4;                             /* the next size is four times this one                                           */
    return code;
}

static void report(const trial *t)
{
    const td__hier *h = t->h;
    char text[200];
    size_t used = (size_t)snprintf(text, sizeof text, "%s", td__algorithm_names[h->best[0]]);
    for (int i = 1; i < TD_HIER_SIZES; i++)
        if (h->best[i] != h->best[i - 1])
            used += (size_t)snprintf(text + used, sizeof text - used, ", from %zu KiB on %s", 2 * sizes[i - 1] >> 10, td__algorithm_names[h->best[i]]);
    td__info("all_reduce of %d ranks on %d hosts: %s (measured in %.2f s; TANDEM_ALGORITHM overrides)", h->comm->size, h->layout.hosts, text,
             td__now() - t->begun);
}

static int measure(trial *t)
{
    td__hier *h = t->h;
    double slowest, took;
    int code = 0, i = 0;
    for (int k = 0; k < t->candidates && !code; k++)   /* the first messages open the connections                                */
        code = sum(t, t->candidate[k], sizes[0] / 4, &took);
    code = code ? code : sum(t, TD_ALGORITHM_HIER, sizes[0], &slowest);
    while (!code && i < TD_HIER_SIZES)
        code = one_size(t, i++, &slowest);
    if (code < 0)
        return code;
    for (int k = code ? i - 1 : i; k > 0 && k < TD_HIER_SIZES; k++)
        h->best[k] = h->best[k - 1];
    code = tell(t, h->best, sizeof h->best);
    if (!code && h->comm->rank == 0)
        report(t);
    return code;
}

static int from_environment(td__hier *h)
{
    const char *wanted = td__env(TD_ENV_ALGORITHM);
    if (!wanted || !strcmp(wanted, "auto"))
        return 0;
    for (int k = 0; k < TD_ALGORITHMS; k++)
        if (!strcmp(wanted, td__algorithm_names[k]))
            h->forced = k;
    if (!strcmp(wanted, "mpi"))
        h->forced = TD_ALGORITHM_MPI;
    return h->forced >= 0 ? 0 : td__fail(TD_ERR_ARGUMENT, "td_init: TANDEM_ALGORITHM is \"%.60s\"; expected auto, ring, hier, halving or mpi", wanted);
}

int td__hier_choose(td__hier *h)
{
    char error[300];
    const td__layout *y = &h->layout;
    trial t = { .h = h, .begun = td__now() };
    const bool power = (y->hosts & (y->hosts - 1)) == 0;   /* else halving sends large ones twice (docs/scaling.md)                 */
    for (int i = 0; i < TD_HIER_SIZES; i++)
        h->best[i] = y->hosts > MANY_HOSTS && (power || i < TD_HIER_SIZES - 1) ? TD_ALGORITHM_HALVING : TD_ALGORITHM_HIER;
    int code = from_environment(h);
    if (code || h->forced >= 0 || y->hosts == 1 || y->hosts > MANY_HOSTS)
        return code;
    t.candidate[t.candidates++] = TD_ALGORITHM_HIER;
    if (y->hosts > 2)                          /* of two hosts the ring is halving and doubling                                   */
        t.candidate[t.candidates++] = TD_ALGORITHM_HALVING;
    if (y->ranks > y->hosts && y->ranks <= MANY_RANKS)
        t.candidate[t.candidates++] = TD_ALGORITHM_RING;
    if (t.candidates == 1)
        return 0;
    t.buffer = td__arena_alloc(h->arena, sizes[TD_HIER_SIZES - 1], error, sizeof error);
    if (!t.buffer)
        return td__pending() ? td__pending() : td__fail(TD_ERR_MEMORY, "td_init: %s", error);
    code = measure(&t);
    if (!code && t.turn % 2) {                 /* the first turn of users is odd                                                  */
        int nothing = 0;
        code = tell(&t, &nothing, sizeof nothing);
    }
    td__arena_free(h->arena, t.buffer);
    atomic_store(&h->view.mine->calls, 0);
    return code ? td__comm_report(h->comm, code) : 0;
}
