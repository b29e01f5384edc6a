/* autograd/capture_empty.c: while a step is recorded the list holds on to everything, yet the step needs no more memory than without: what only
 * the list still knows is given back, as it would have been freed, and gets memory again when replays are planned. So what the pool
 * handed out and got back meanwhile is also what the step needs when nobody records: that figure is taken here.
 */
#include "capture.h"

enum { MANY = 4096 };

__thread td__emptying *td__emptying_now;

void td__empty_begin(td__emptying *e, td__recording *r)
{
    *e = (td__emptying){ .recording = r };
    td__list_uses_begin(&e->uses);
    if (td__device_registered(TD_CUDA))        /* its graphs record on this memory                                             */
        return;
    td__emptying_now = e;
    if (td__pool_log_begin(&e->log, 1))
        e->log.failed = true;
}

static bool goes(const td__use *use)
{
    return use->movable && use->filled && use->storage->data;
}

static void take_in(td__emptying *e)
{
    const td__record *under_way = e->recording->depth > 0 ? e->recording->last : NULL;
    for (td__record *next; (next = e->last ? e->last->next : e->recording->first) && next != under_way; e->last = next)
        td__list_uses_add(&e->uses, next);
}

void td__empty(td_call *walked)
{
    td__emptying *e = td__emptying_now;
    if (!e || (e->uses.handles > MANY && ++e->skipped < e->uses.handles / MANY))       /* looking at all of very many takes time     */
        return;
    e->skipped = 0;
    td__pool_log *log = td__pool_now.log;      /* what is needed here is not the step's                                       */
    td__pool_now.log = NULL;
    take_in(e);
    td__list_uses_own(&e->uses);
    for (size_t i = 0; i < e->uses.n && !e->uses.code; i++) {
        td__use *use = &e->uses.use[i];
        if (!goes(use))
            continue;
        td__storage_empty(use->storage);
        if (use->over)
            use->over->over_until = walked;
        if (walked)
            use->over = NULL;
    }
    td__pool_now.log = log;
}

bool td__capture_overwrites(td_call *node)
{
    td__emptying *e = td__emptying_now;
    const td_tensor *x = node->saved[0].tensor;
    if (!e)
        return node->over;
    td__pool_log *log = td__pool_now.log;
    td__pool_now.log = NULL;
    take_in(e);
    td__use *use = td__list_uses_but(&e->uses, x);
    td__pool_now.log = log;
    if (use)
        use->over = node;
    return node->over = use != NULL;
}

/* The most bytes that blocks of the step took together, of those that the step also gave back. */
static int64_t most(const td__pool_log *log)
{
    int64_t *change = log->failed ? NULL : td__calloc(((size_t)log->events + 1) * sizeof *change), now = 0, peak = 0;
    if (!change)
        return 0;
    for (size_t i = 0; i < log->n; i++) {
        const td__pool_noted *b = td__pool_noted_at(log, i);
        if (b->died == TD__POOL_NEVER)
            continue;
        change[b->born] += (int64_t)b->taken;
        change[b->died] -= (int64_t)b->taken;
    }
    for (size_t i = 0; i < log->events; i++) {
        now += change[i];
        peak = now > peak ? now : peak;
    }
    td__free(change);
    return peak;
}

int64_t td__empty_end(td__emptying *e)
{
    if (td__emptying_now != e)
        return 0;
    td__empty(NULL);
    for (size_t i = 0; i < e->uses.n; i++)     /* not known until when: replays give such a gradient memory of its own               */
        if (e->uses.use[i].over)
            e->uses.use[i].over->over = false;
    td__emptying_now = NULL;
    td__pool_log_end(&e->log);
    int64_t peak = most(&e->log);
    td__pool_log_free(&e->log);
    td__list_uses_free(&e->uses);
    return peak;
}
