/* autograd/capture_uses.c: which memory a list touches, when, and which of it nobody but the list knows.
 *
 * Time is counted in moments: one for each entry, and within a backward one more for each node, in the order of its plan. An entry shows
 * its references and what it does with their memory (td__record_kind.uses). If the references shown are all that a storage's handles have, and
 * those handles all that the storage has, then nobody else can look at it: not the program (a handle that was kept, the result), not a module, not
 * a node that will be walked after the step.
 */
#include "capture.h"

/* ---- maps of addresses ---------------------------------------------------------------------------------------------------------------- */

typedef td__address_slot slot;
typedef td__address_map map;

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

/* `list` of n elements with room for one more; its new room in *room, or 0 after td__fail. */
static void *roomy(void *list, size_t n, size_t *room, size_t size)
{
    if (n < *room)
        return list;
    size_t more = *room ? 2 * *room : 128;
    void *grown = td__grow(list, *room * size, more * size);
    *room = grown ? more : *room;
    return grown;
}

/* ---- moments ---------------------------------------------------------------------------------------------------------------------------- */

uint32_t td__record_moments(const td__record *r)
{
    const td__backward_state *b = (const void *)r->state;
    return 1 + (r->kind == &td__backward_kind ? (uint32_t)b->plan.nodes : 0);
}

/* When each node is walked for the last time: what it saved lives that long. */
static void find_nodes(td__list_uses *u, const td__record *first)
{
    uint32_t now = 0;
    for (const td__record *r = first; r && !u->code; now += td__record_moments(r), r = r->next) {
        const td__backward_state *b = (const void *)r->state;
        for (size_t i = 0; r->kind == &td__backward_kind && i < b->plan.nodes && !u->code; i++) {
            slot *at = map_put(&u->nodes, b->plan.node[i], 0);
            if (at)
                at->value = now + 1 + i;
            else
                u->code = TD_ERR_MEMORY;
        }
    }
}

/* ---- what entries show ------------------------------------------------------------------------------------------------------------------- */

/* The number of the storage's use; SIZE_MAX after td__fail. */
static size_t use_of(td__list_uses *u, td_storage *storage)
{
    slot *at = map_put(&u->storages, storage, u->n);
    td__use *use = at ? roomy(u->use, u->n, &u->room, sizeof *use) : NULL;
    if (!use) {
        u->code = TD_ERR_MEMORY;
        return SIZE_MAX;
    }
    u->use = use;
    if (at->value == u->n)
        use[u->n++] = (td__use){ .storage = storage, .first = UINT32_MAX };
    return at->value;
}

static void count_reference(td__list_uses *u, td_tensor *x, size_t use, bool made)
{
    slot *at = map_put(&u->shown, x, u->handles);
    td__handle_shown *list = at ? roomy(u->handle, u->handles, &u->handle_room, sizeof *list) : NULL;
    if (!list) {
        u->code = TD_ERR_MEMORY;
        return;
    }
    u->handle = list;
    if (at->value == u->handles)
        list[u->handles++] = (td__handle_shown){ x, 0, false, use };
    list[at->value].shown++;
    list[at->value].made |= made;
}

static void touch(td__use *use, uint32_t from, uint32_t to)
{
    use->first = use->first < from ? use->first : from;
    use->last = use->last > to ? use->last : to;
}

static void show_tensor(td__uses *uses, td_tensor *x, unsigned how)
{
    td__list_uses *u = (td__list_uses *)(void *)uses;
    size_t i = u->code || !x || x->poisoned ? SIZE_MAX : use_of(u, x->storage);
    if (i == SIZE_MAX)
        return;
    count_reference(u, x, i, how & TD__FILLS);
    if (!how)
        return;
    td__use *use = &u->use[i];
    bool all = how & TD__FILLS && (size_t)td__shape_numel(x->shape) * td_dtype_size(x->dtype) == x->storage->bytes;
    if (use->first == UINT32_MAX)
        use->filled = all;
    else if (use->first == u->now && !all)
        use->filled = false;                           /* read by the entry that fills it: it brings something along               */
    touch(use, u->now, u->now);
}

static void show_saved(td__uses *uses, td_tensor *x, const void *node)
{
    td__list_uses *u = (td__list_uses *)(void *)uses;
    const slot *walked = u->nodes.room ? map_at(&u->nodes, node) : NULL;
    size_t i = u->code || !x || x->poisoned ? SIZE_MAX : use_of(u, x->storage);
    if (i != SIZE_MAX && walked && walked->key)
        touch(&u->use[i], u->now, walked->value > u->now ? (uint32_t)walked->value : u->now);
}

void td__list_uses_begin(td__list_uses *u)
{
    *u = (td__list_uses){ .uses = { show_tensor, show_saved } };
}

void td__list_uses_add(td__list_uses *u, const td__record *r)
{
    if (r->kind->uses && !u->code)
        r->kind->uses((void *)(uintptr_t)r->state, &u->uses);
    u->now += td__record_moments(r);
}

/* ---- whose it is --------------------------------------------------------------------------------------------------------------------------- */

static bool shown(const td__handle_shown *h, int more)
{
    return h->x->refs == h->shown + more && !h->x->kept && !h->x->scoped.stack;
}

static bool may_move(const td_storage *s)
{
    return s->device.kind == TD_CPU && !s->base && !s->late && !s->release;
}

td__use *td__list_uses_but(const td__list_uses *u, const td_tensor *x)
{
    const slot *at = u->storages.room && !u->code ? map_at(&u->storages, x->storage) : NULL;
    td__use *use = at && at->key ? &u->use[at->value] : NULL;
    int32_t handles = 0;
    for (size_t i = 0; i < u->handles && use; i++)
        if (u->handle[i].use == at->value)
            handles += shown(&u->handle[i], u->handle[i].x == x);
    return use && use->filled && handles == x->storage->refs && may_move(x->storage) ? use : NULL;
}

void td__list_uses_own(td__list_uses *u)
{
    for (size_t i = 0; i < u->n; i++)
        u->use[i].handles = 0;
    for (size_t i = 0; i < u->handles; i++) {
        u->use[u->handle[i].use].handles += shown(&u->handle[i], 0);
    }
    for (size_t i = 0; i < u->n; i++) {
        td__use *use = &u->use[i];
        const td_storage *s = use->storage;
        use->own = use->handles == s->refs;
        use->movable = use->own && may_move(s);
    }
}

int td__list_uses_find(const td__record *first, td__list_uses *u)
{
    td__list_uses_begin(u);
    find_nodes(u, first);
    for (const td__record *r = first; r && !u->code; r = r->next)
        td__list_uses_add(u, r);
    td__list_uses_own(u);
    return u->code;
}

void td__list_uses_free(td__list_uses *u)
{
    td__free(u->use);
    td__free(u->handle);
    td__free(u->storages.slot);
    td__free(u->shown.slot);
    td__free(u->nodes.slot);
    *u = (td__list_uses){ 0 };
}
