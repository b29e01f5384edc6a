/* autograd/capture_verify.c: .verify: a replay, then the step itself from the same state, and every bit of what they leave compared.
 *
 * The state is what entries of the list show (td__record_kind.visit): parameters, moments, running statistics, counters; and the counters of
 * random numbers. It is copied, the list is run, the outcome copied, the state put back, the step called. The step's outcome stays: if the
 * two are equal nothing tells that there were two.
 */
#include "capture.h"
#include <stdio.h>
#include <string.h>

typedef struct {
    td_storage *storage;                               /* one reference; NULL: a number of the host at …                         */
    void  *at;
    size_t bytes;
    char  *before, *after;                             /* host copies                                                          */
    char   name[160];
} piece;
typedef struct { td__visitor visitor; td__list_uses uses; piece *piece; size_t n, room; int code; } state;

/* ---- what there is ---------------------------------------------------------------------------------------------------------------------- */

static piece *add(td__visitor *visitor, const void *place, const char *name)
{
    state *s = (state *)(void *)visitor;
    for (size_t i = 0; i < s->n; i++)
        if (place == (s->piece[i].storage ? (void *)s->piece[i].storage : s->piece[i].at))
            return NULL;
    if (s->n == s->room) {
        size_t room = s->room ? 2 * s->room : 64;
        piece *more = td__grow(s->piece, s->room * sizeof *more, room * sizeof *more);
        if (!more) {
            s->code = TD_ERR_MEMORY;
            return NULL;
        }
        s->piece = more;
        s->room = room;
    }
    piece *p = &s->piece[s->n++];
    *p = (piece){ 0 };
    snprintf(p->name, sizeof p->name, "%s", name && *name ? name : "a tensor");
    return p;
}

static void add_storage(td__visitor *visitor, td_storage *storage, const char *name)
{
    state *s = (state *)(void *)visitor;
    for (size_t i = 0; i < s->uses.n; i++)             /* what only the list knows is no state: the step makes its own                */
        if (s->uses.use[i].storage == storage && s->uses.use[i].own)
            return;
    piece *p = storage ? add(visitor, storage, name) : NULL;
    if (!p)
        return;
    td__storage_ref(storage);
    p->storage = storage;
    p->bytes = storage->bytes;
}

static void add_number(td__visitor *visitor, void *at, size_t bytes, const char *name)
{
    piece *p = add(visitor, at, name);
    if (!p)
        return;
    p->at = at;
    p->bytes = bytes;
}

static void state_free(state *s)
{
    for (size_t i = 0; i < s->n; i++) {
        td__storage_unref(s->piece[i].storage);
        td__free(s->piece[i].before);
        td__free(s->piece[i].after);
    }
    td__free(s->piece);
    td__list_uses_free(&s->uses);
}

/* ---- copies ------------------------------------------------------------------------------------------------------------------------------- */

static int copy(const piece *p, char *host, bool out)
{
    if (!p->storage) {
        memcpy(out ? (void *)host : p->at, out ? p->at : (void *)host, p->bytes);
        return 0;
    }
    const td_storage *s = p->storage;
    int index = s->device.index, code;
    if (!p->bytes)
        return 0;
    td__settle(s);
    code = out ? s->ops->copy(index, host, true, s->data, false, p->bytes) : s->ops->copy(index, s->data, false, host, true, p->bytes);
    return code ? code : s->ops->synchronize(index);
}

static int keep(state *s, bool after)
{
    int code = s->code;
    for (size_t i = 0; i < s->n && !code; i++) {
        piece *p = &s->piece[i];
        char *host = td__alloc(p->bytes + 1);
        *(after ? &p->after : &p->before) = host;
        code = host ? copy(p, host, true) : TD_ERR_MEMORY;
    }
    return code;
}

static int put_back(state *s)
{
    int code = 0;
    for (size_t i = 0; i < s->n && !code; i++)
        code = copy(&s->piece[i], s->piece[i].before, false);
    return code;
}

/* ---- comparing ---------------------------------------------------------------------------------------------------------------------------- */

static int differs(const td_graph *g, const char *name, size_t at)
{
    char site[256];
    return td__fail(TD_ERR_STATE, "td_replay: %s is not the same after replay %lld of the step captured at %s as after a call of the step from the same "
                    "state (byte %zu is the first that differs): the step reads something that is no input", name, (long long)g->replays,
                    td__site_text(g->site, site, sizeof site), at);
}

static size_t first_difference(const char *a, const char *b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (a[i] != b[i])
            return i;
    return n;
}

static int compare_state(const td_graph *g, state *s)
{
    int code = 0;
    for (size_t i = 0; i < s->n && !code; i++) {
        piece *p = &s->piece[i];
        code = copy(p, p->before, true);               /* its place is free now                                                */
        size_t at = code ? p->bytes : first_difference(p->before, p->after, p->bytes);
        if (!code && at < p->bytes)
            code = differs(g, p->name, at);
    }
    return code;
}

static int result_bytes(td_tensor *x, char **bytes, size_t *n)
{
    *bytes = NULL;
    *n = 0;
    if (!x)
        return 0;
    *n = (size_t)td__shape_numel(x->shape) * td_dtype_size(x->dtype);
    *bytes = td__alloc(*n + 1);
    return *bytes ? td_copy_out(x, *bytes, *n) : TD_ERR_MEMORY;
}

static int step_and_compare(td_graph *g, state *s)
{
    char *replayed, *called = NULL;
    size_t n, m = 0;
    int code = result_bytes(g->result, &replayed, &n);
    code = code ? code : keep(s, true);
    code = code ? code : put_back(s);
    if (!code) {
        td_tensor *result = td__capture_step(g);
        code = td__pending();
        code = code ? code : result_bytes(result, &called, &m);
        td__tensor_unref(result);
    }
    if (!code && (n != m || (n && memcmp(replayed, called, n))))
        code = differs(g, "the result", n == m ? first_difference(replayed, called, n) : 0);
    td__free(replayed);
    td__free(called);
    return code ? code : compare_state(g, s);
}

int td__capture_verified(td_graph *g)
{
    state s = { .visitor = { add_storage, add_number } };
    s.code = td__list_uses_find(g->first, &s.uses);
    for (td__record *r = g->first; r; r = r->next)
        if (r->kind->visit)
            r->kind->visit(r->state, &s.visitor);
    int64_t step = td_step_get(), calls = td__random_calls();
    int code = keep(&s, false);
    code = code ? code : td__graph_once(g);
    if (!code) {
        td_step_set(step);
        td__random_calls_set(calls);
        code = step_and_compare(g, &s);
    }
    state_free(&s);
    return code;
}
