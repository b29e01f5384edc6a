/* autograd/capture_uses.c: which memory a list touches, when, and which of it nobody but the list knows.
 *
 * Time is counted in moments: one for each entry, and within a backward one more for each node, in the order of its plan. An entry shows
 * its references and what it does with their memory (td__record_kind.uses). If the references shown are all that a storage's handles have, and
 * those handles all that the storage has, then nobody else can look at it: not the program (a handle that was kept, the result), not a module, not
 * a node that will be walked after the step.
 */
#include "capture.h"

typedef struct { const void *key; size_t value; } slot;
typedef struct { slot *slot; size_t room, n; } map;    /* room is a power of two, at most half full                              */
typedef struct { td_tensor *x; int32_t shown; } handle;
typedef struct {
    td__uses uses;
    td__list_uses *found;
    size_t room;                                       /* of found->use                                                        */
    handle *handle; size_t handles, handle_room;
    map storages, shown, nodes;                        /* storage -> use, tensor -> handle, node -> its last moment                */
    uint32_t now;
    int code;
} state;

/* ---- maps of addresses ---------------------------------------------------------------------------------------------------------------- */

static slot *map_at(const map *m, const void *key)
{
    size_t i = ((uintptr_t)key >> 6) * 0x9e3779b97f4a7c15u >> 20;
    while (m->slot[i & (m->room - 1)].key && m->slot[i & (m->room - 1)].key != key)
        i++;
    return &m->slot[i & (m->room - 1)];
}

/* The slot of key, made with `value` where there is none; NULL after td__fail. */
static slot *map_put(map *m, const void *key, size_t value)
{
    if (2 * (m->n + 1) > m->room) {
        map more = { .room = m->room ? 2 * m->room : 256, .n = m->n };
        more.slot = td__calloc(more.room * sizeof *more.slot);
        if (!more.slot)
            return NULL;
        for (size_t i = 0; i < m->room; i++)
            if (m->slot[i].key)
                *map_at(&more, m->slot[i].key) = m->slot[i];
        td__free(m->slot);
        *m = more;
    }
    slot *s = map_at(m, key);
    if (!s->key) {
        *s = (slot){ key, value };
        m->n++;
    }
    return s;
}

static const slot *map_find(const map *m, const void *key)
{
    const slot *s = m->room ? map_at(m, key) : NULL;
    return s && s->key ? s : NULL;
}

/* ---- moments ---------------------------------------------------------------------------------------------------------------------------- */

uint32_t td__record_moments(const td__record *r)
{
    const td__backward_state *b = (const void *)r->state;
    return 1 + (r->kind == &td__backward_kind ? (uint32_t)b->plan.nodes : 0);
}

/* When each node is walked for the last time: what it saved lives that long. */
static void find_nodes(state *s, const td__record *first)
{
    uint32_t now = 0;
    for (const td__record *r = first; r && !s->code; now += td__record_moments(r), r = r->next) {
        const td__backward_state *b = (const void *)r->state;
        for (size_t i = 0; r->kind == &td__backward_kind && i < b->plan.nodes && !s->code; i++) {
            slot *at = map_put(&s->nodes, b->plan.node[i], 0);
            if (at)
                at->value = now + 1 + i;
            else
                s->code = TD_ERR_MEMORY;
        }
    }
}

/* ---- what entries show ------------------------------------------------------------------------------------------------------------------- */

static td__use *use_of(state *s, td_storage *storage)
{
    td__list_uses *f = s->found;
    slot *at = map_put(&s->storages, storage, f->n);
    if (at && at->value < f->n)
        return &f->use[at->value];
    if (at && f->n == s->room) {
        size_t room = s->room ? 2 * s->room : 128;
        td__use *more = td__grow(f->use, s->room * sizeof *more, room * sizeof *more);
        if (more) {
            f->use = more;
            s->room = room;
        }
    }
    if (!at || f->n == s->room) {
        s->code = TD_ERR_MEMORY;
        return NULL;
    }
    td__use *u = &f->use[f->n++];
    *u = (td__use){ .storage = storage, .first = UINT32_MAX };
    return u;
}

static void touch(td__use *u, uint32_t from, uint32_t to)
{
    u->first = u->first < from ? u->first : from;
    u->last = u->last > to ? u->last : to;
}

static void count_reference(state *s, td_tensor *x)
{
    slot *at = map_put(&s->shown, x, s->handles);
    if (at && at->value == s->handles && s->handles == s->handle_room) {
        size_t room = s->handle_room ? 2 * s->handle_room : 256;
        handle *more = td__grow(s->handle, s->handle_room * sizeof *more, room * sizeof *more);
        if (more) {
            s->handle = more;
            s->handle_room = room;
        }
    }
    if (!at || (at->value == s->handles && s->handles == s->handle_room)) {
        s->code = TD_ERR_MEMORY;
        return;
    }
    if (at->value == s->handles)
        s->handle[s->handles++] = (handle){ x, 0 };
    s->handle[at->value].shown++;
}

static void show_tensor(td__uses *uses, td_tensor *x, unsigned how)
{
    state *s = (state *)(void *)uses;
    td__use *u = s->code || !x || x->poisoned ? NULL : use_of(s, x->storage);
    if (!u)
        return;
    count_reference(s, x);
    if (!how)
        return;
    bool all = how & TD__FILLS && (size_t)td__shape_numel(x->shape) * td_dtype_size(x->dtype) == x->storage->bytes;
    if (u->first == UINT32_MAX)
        u->filled = all;
    else if (u->first == s->now && !all)
        u->filled = false;                             /* read by the entry that fills it: it brings something along               */
    touch(u, s->now, s->now);
}

static void show_saved(td__uses *uses, td_tensor *x, const void *node)
{
    state *s = (state *)(void *)uses;
    const slot *walked = map_find(&s->nodes, node);
    td__use *u = s->code || !x || x->poisoned ? NULL : use_of(s, x->storage);
    if (u && walked)
        touch(u, s->now, (uint32_t)walked->value > s->now ? (uint32_t)walked->value : s->now);
}

/* ---- whose it is --------------------------------------------------------------------------------------------------------------------------- */

static void find_owned(state *s)
{
    td__list_uses *f = s->found;
    for (size_t i = 0; i < s->handles; i++) {
        const td_tensor *x = s->handle[i].x;
        td__use *u = &f->use[map_find(&s->storages, x->storage)->value];
        u->handles += x->refs == s->handle[i].shown && !x->kept && !x->scoped.stack;
    }
    for (size_t i = 0; i < f->n; i++) {
        td__use *u = &f->use[i];
        const td_storage *at = u->storage;
        u->own = u->handles == at->refs && !at->base && !at->late && (!at->release || at->release == td__storage_borrowed);
    }
}

int td__list_uses_find(const td__record *first, td__list_uses *found)
{
    *found = (td__list_uses){ 0 };
    state s = { .uses = { show_tensor, show_saved }, .found = found };
    find_nodes(&s, first);
    for (const td__record *r = first; r && !s.code; s.now += td__record_moments(r), r = r->next)
        if (r->kind->uses)
            r->kind->uses((void *)(uintptr_t)r->state, &s.uses);
    found->moments = s.now;
    if (!s.code)
        find_owned(&s);
    td__free(s.handle);
    td__free(s.storages.slot);
    td__free(s.shown.slot);
    td__free(s.nodes.slot);
    if (s.code)
        td__list_uses_free(found);
    return s.code;
}

void td__list_uses_free(td__list_uses *found)
{
    td__free(found->use);
    *found = (td__list_uses){ 0 };
}
