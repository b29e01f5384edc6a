/* base/pool_plan.c: the pool's requests of a thread that repeats itself: noted, then served from places laid out beforehand (pool_plan.h).
 *
 * A planned block has the pool's header, so td__free knows it from any thread. Its place is taken only if all blocks that ended before it when the
 * log was written are over by now: blocks are numbered in the order of their ends, and `over` counts how far that row is complete. Only the
 * thread whose turn it is takes places; others may give some back.
 */
#include "pool_plan.h"
#include <string.h>

enum { PENDING, LIVES, OVER };                 /* a place in this turn */
enum { LOOK_AHEAD = 8 };                       /* a request that was not made this time is passed over */

__thread td__pool_turn td__pool_now;
__thread uint32_t td__pool_moment_now;

/* ---- noting ----------------------------------------------------------------------------------------------------------------- */

int td__pool_log_begin(td__pool_log *log, uint32_t moments)
{
    *log = (td__pool_log){ .moments = moments, .owner = &td__pool_now };
    log->began = td__alloc((moments + 1) * sizeof *log->began);
    if (!log->began)
        return TD_ERR_MEMORY;
    for (uint32_t m = 0; m <= moments; m++)
        log->began[m] = TD__POOL_NEVER;
    td__pool_now.log = log;
    return 0;
}

void td__pool_log_end(td__pool_log *log)
{
    if (td__pool_now.log == log)
        td__pool_now.log = NULL;
    td__pool_forget(log);
}

void td__pool_log_free(td__pool_log *log)
{
    for (size_t i = 0; i < TD__POOL_PART; i++)
        td__free(log->part[i]);
    td__free(log->began);
    log->began = NULL;
    log->n = 0;
}

int td__pool_log_room(void)
{
    td__pool_log *log = td__pool_now.log;
    size_t part = log->n / TD__POOL_PART;
    if (log->failed || (log->n % TD__POOL_PART && log->part[part]))
        return log->failed;
    td__pool_now.log = NULL;                   /* its own memory is not in it */
    if (part < TD__POOL_PART && !log->part[part])
        log->part[part] = td__alloc(TD__POOL_PART * sizeof **log->part);
    td__pool_now.log = log;
    log->failed = part == TD__POOL_PART || !log->part[part];
    return log->failed;
}

void td__pool_note(td__block *b, size_t taken)
{
    td__pool_log *log = td__pool_now.log;
    b->log = log;
    b->index = (uint32_t)log->n++;
    *td__pool_noted_at(log, b->index) = (td__pool_noted){ b->bytes, taken, log->moment, log->events++, TD__POOL_NEVER, false, b };
}

void td__pool_note_freed(td__block *b)
{
    td__pool_noted *n = td__pool_noted_at(b->log, b->index);
    n->block = NULL;
    n->elsewhere = b->log->owner != &td__pool_now;
    n->died = b->log->events++;
    b->log = NULL;
}

/* ---- plans -------------------------------------------------------------------------------------------------------------------- */

static void plan_free(td__pool_plan *p)
{
    td__free(p->place);
    td__free((void *)p->state);
    td__free(p->by_order);
    td__free(p->first);
    td__free(p->stretch);
    td__free(p->memory);
    td__free(p);
}

td__pool_plan *td__pool_plan_new(uint32_t places, uint32_t orders, uint32_t moments, uint32_t stretches, size_t bytes)
{
    td__pool_plan *p = td__calloc(sizeof *p);
    if (!p)
        return NULL;
    atomic_init(&p->refs, 1);
    p->places = places;
    p->orders = orders;
    p->moments = moments;
    p->stretches = stretches;
    p->bytes = bytes;
    p->place = td__calloc(places * sizeof *p->place);
    p->state = td__calloc(places);
    p->by_order = td__calloc(orders * sizeof *p->by_order);
    p->first = td__calloc((moments + 1) * sizeof *p->first);
    p->stretch = td__calloc(stretches * sizeof *p->stretch);
    p->memory = td__alloc_as(bytes, TD_MEMORY_ACTIVATIONS);
    if (!p->place || !p->state || !p->by_order || !p->first || !p->stretch || !p->memory) {
        plan_free(p);
        return NULL;
    }
    TD__POISON(p->memory, bytes);
    return p;
}

void td__pool_plan_drop(td__pool_plan *p)
{
    if (p && atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) == 1)
        plan_free(p);
}

bool td__pool_plan_busy(td__pool_plan *p)
{
    return atomic_load_explicit(&p->refs, memory_order_acquire) - 1 != atomic_load_explicit(&p->residents, memory_order_acquire);
}

/* ---- turns ---------------------------------------------------------------------------------------------------------------------- */

void td__pool_turn_begin(td__pool_plan *p)
{
    for (uint32_t o = 0; o < p->orders; o++)
        atomic_store_explicit(&p->state[p->by_order[o]], PENDING, memory_order_relaxed);
    p->next = p->end = p->over = p->begun = 0;
    p->fell = p->left = 0;
    td__pool_moment_now = 0;
    td__pool_now.plan = p;
}

void td__pool_turn_end(void)
{
    td__pool_now.plan = NULL;
}

static bool over_up_to(td__pool_plan *p, uint32_t before)
{
    while (p->over < before && atomic_load_explicit(&p->state[p->by_order[p->over]], memory_order_acquire) == OVER)
        p->over++;
    return p->over >= before;
}

/* A place that nobody asked for this time is over. */
static void pass_over(td__pool_plan *p, uint32_t k)
{
    if (p->place[k].order != TD__POOL_NEVER)
        atomic_store_explicit(&p->state[k], OVER, memory_order_relaxed);
}

/* Under AddressSanitizer only what lives may be touched. */
static void stretches_end(const td__pool_plan *p, uint32_t moment)
{
#ifdef __SANITIZE_ADDRESS__
    for (uint32_t i = 0; i < p->begun; i++)
        if (p->stretch[i].last < moment && p->stretch[i].last >= td__pool_moment_now)
            TD__POISON(p->memory + p->stretch[i].at, p->stretch[i].bytes);
#else
    (void)p, (void)moment;
#endif
}

bool td__pool_moment(uint32_t moment)
{
    td__pool_log *log = td__pool_now.log;
    td__pool_plan *p = td__pool_now.plan;
    bool free = true;
    if (log && moment < log->moments) {
        log->moment = moment;
        log->began[moment] = log->events++;
    }
    if (p && moment < p->moments) {
        stretches_end(p, moment);
        for (; p->next < p->first[moment]; p->next++)
            pass_over(p, p->next);
        p->end = p->first[moment + 1];
        for (; p->begun < p->stretches && p->stretch[p->begun].first <= moment; p->begun++) {
            const td__pool_stretch *s = &p->stretch[p->begun];
            free &= over_up_to(p, s->before);
            TD__UNPOISON(p->memory + s->at, s->bytes);
        }
    }
    td__pool_moment_now = moment;
    return free;
}

void *td__pool_planned(size_t bytes)
{
    td__pool_plan *p = td__pool_now.plan;
    uint32_t k = p->next, end = p->end > k + LOOK_AHEAD ? k + LOOK_AHEAD : p->end;
    while (k < end && p->place[k].bytes != bytes)
        k++;
    if (k >= end) {
        p->fell++;
        return NULL;
    }
    for (; p->next < k; p->next++)
        pass_over(p, p->next);
    p->next++;
    const td__pool_place *at = &p->place[k];
    if (at->at == SIZE_MAX) {
        p->left++;
        return NULL;
    }
    bool taken = at->order == TD__POOL_NEVER && atomic_load_explicit(&p->state[k], memory_order_acquire) == LIVES;
    if (taken || !over_up_to(p, at->before)) {
        pass_over(p, k);
        p->fell++;
        return NULL;
    }
    td__block *b = (td__block *)(p->memory + at->at);
    TD__UNPOISON(b, sizeof *b);
    *b = (td__block){ .magic = TD__BLOCK_PLANNED, .bytes = bytes, .plan = p, .index = k };
    TD__POISON(b, TD__POOL_HEADER);
    atomic_store_explicit(&p->state[k], LIVES, memory_order_relaxed);
    atomic_fetch_add_explicit(&p->refs, 1, memory_order_relaxed);
    if (at->order == TD__POOL_NEVER)
        atomic_fetch_add_explicit(&p->residents, 1, memory_order_relaxed);
    void *payload = (char *)b + TD__POOL_HEADER;
    TD__UNPOISON(payload, bytes);
    return payload;
}

void td__pool_planned_free(td__block *b)
{
    td__pool_plan *p = b->plan;
    const uint32_t k = b->index;
    const bool resident = p->place[k].order == TD__POOL_NEVER;
    b->magic = 0;
    const size_t bytes = b->bytes;
    TD__POISON(b, TD__POOL_HEADER + bytes);
    atomic_store_explicit(&p->state[k], OVER, memory_order_release);
    if (resident)
        atomic_fetch_sub_explicit(&p->residents, 1, memory_order_relaxed);
    td__pool_plan_drop(p);
}
