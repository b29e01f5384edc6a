/* base/scope.c: the handle stack of a thread.
 *
 * All handles that a thread's scopes own lie in one array; a level is a place in it, so entering a scope is a push of one
 * number and leaving it drops everything above that number, last in first out. A handle knows its slot: taking it out
 * leaves a hole, which is popped when it reaches the top and squeezed out when the array would have to grow. Escaping
 * swaps the handle with the first one of its level and moves the level's start past it.
 *
 * The stack lies in thread-local memory, and its address is the owner's name in td__scoped.stack: a handle of another
 * thread's stack is never touched. Level 0 is the thread's root scope.
 */
#include "base.h"
#include <pthread.h>
#include <string.h>

typedef struct {
    uint32_t start;                            /* first slot of the level */
    uint32_t serial;                           /* tells this level from an earlier one of the same depth */
    const char *label;                         /* own or inherited module path */
} level;

typedef struct {
    td__scoped **entries;
    uint32_t count, room, holes;
    level *levels;                             /* levels[d - 1] for depth d: the root needs none */
    uint32_t depth, level_room;
    uint32_t serial;
    bool registered;                           /* this thread's end will close the root */
} stack;

enum { ROOT_HINT = 10000 };

static __thread stack mine;
static pthread_key_t thread_end;
static pthread_once_t thread_end_once = PTHREAD_ONCE_INIT;

/* ---- closing ------------------------------------------------------------------------------------------------------------- */

/* Dropping may run code that takes out entries, opens scopes or makes the array move: everything is read anew each time. */
static void drop_innermost(stack *s)
{
    while (s->count > (s->depth > 0 ? s->levels[s->depth - 1].start : 0)) {
        td__scoped *object = s->entries[--s->count];
        if (!object) {
            s->holes--;
            continue;
        }
        object->stack = NULL;
        object->drop(object);
    }
}

static void close_top(stack *s)
{
    drop_innermost(s);
    s->depth--;
}

static void close_all(stack *s)
{
    while (s->depth > 0)
        close_top(s);
    drop_innermost(s);
    td__free(s->entries);
    td__free(s->levels);
    s->entries = NULL;
    s->levels = NULL;
    s->room = s->level_room = 0;
}

static void at_thread_end(void *pointer)
{
    stack *s = pointer;
    s->registered = false;                     /* another key's destructor may still use scopes: then we are called again */
    close_all(s);
}

static void make_key(void)
{
    pthread_key_create(&thread_end, at_thread_end);
}

static void register_thread(stack *s)
{
    if (s->registered)
        return;
    pthread_once(&thread_end_once, make_key);
    s->registered = pthread_setspecific(thread_end, s) == 0;
}

void td__scope_close_root(void)
{
    close_all(&mine);
}

/* ---- levels ----------------------------------------------------------------------------------------------------------------- */

static uint64_t mark_of(uint32_t depth, uint32_t serial)
{
    return (uint64_t)serial << 32 | depth;
}

td_scope td__scope_begin_labelled(const char *label)
{
    stack *s = &mine;
    register_thread(s);
    if (s->depth == s->level_room) {
        uint32_t room = s->level_room ? 2 * s->level_room : 16;
        level *grown = td__grow(s->levels, s->level_room * sizeof *grown, room * sizeof *grown);
        if (!grown)
            return (td_scope){ 0 };            /* ending it does nothing: what is made inside belongs to the enclosing scope */
        s->levels = grown;
        s->level_room = room;
    }
    if (!label && s->depth > 0)
        label = s->levels[s->depth - 1].label;
    s->levels[s->depth++] = (level){ .start = s->count, .serial = ++s->serial, .label = label };
    return (td_scope){ mark_of(s->depth, s->serial) };
}

td_scope td_scope_begin(void)
{
    return td__scope_begin_labelled(NULL);
}

void td_scope_end(td_scope *scope)
{
    if (!scope)
        return;
    stack *s = &mine;
    uint32_t depth = (uint32_t)scope->mark, serial = (uint32_t)(scope->mark >> 32);
    scope->mark = 0;
    if (depth == 0 || depth > s->depth || s->levels[depth - 1].serial != serial)
        return;                                /* ended before, by itself or with an outer scope */
    while (s->depth >= depth)
        close_top(s);
}

const char *td__scope_label(void)
{
    return mine.depth > 0 ? mine.levels[mine.depth - 1].label : NULL;
}

/* ---- entries ------------------------------------------------------------------------------------------------------------------- */

/* Keeps the order; every level's start moves down by the holes below it. */
static void squeeze(stack *s)
{
    uint32_t to = 0, next = 0;
    for (uint32_t from = 0; from < s->count; from++) {
        while (next < s->depth && s->levels[next].start == from)
            s->levels[next++].start = to;
        if (!s->entries[from])
            continue;
        s->entries[to] = s->entries[from];
        s->entries[to]->slot = to;
        to++;
    }
    while (next < s->depth)
        s->levels[next++].start = to;
    s->count = to;
    s->holes = 0;
}

static bool make_room(stack *s)
{
    if (s->count < s->room)
        return true;
    if (s->holes > s->count / 2) {
        squeeze(s);
        return true;
    }
    uint32_t room = s->room ? 2 * s->room : 64;
    td__scoped **grown = room > s->room ? td__grow(s->entries, s->room * sizeof *grown, room * sizeof *grown) : NULL;
    if (!grown)
        return false;
    s->entries = grown;
    s->room = room;
    return true;
}

static void hint_once(void)
{
    static atomic_bool told;
    if (!atomic_exchange(&told, true))
        td__info("%d tensors in the root scope: does a loop lack its TD_SCOPE()?", ROOT_HINT);
}

void td__scope_add(td__scoped *object)
{
    stack *s = &mine;
    register_thread(s);
    object->stack = NULL;
    if (!make_room(s))
        return;                                /* recorded by td__grow; the handle stays valid and belongs to nobody */
    object->stack = s;
    object->slot = s->count;
    s->entries[s->count++] = object;
    if (s->depth == 0 && s->count - s->holes == ROOT_HINT)
        hint_once();
}

bool td__scope_remove(td__scoped *object)
{
    stack *s = &mine;
    if (object->stack != s)
        return false;
    s->entries[object->slot] = NULL;
    s->holes++;
    object->stack = NULL;
    uint32_t floor = s->depth > 0 ? s->levels[s->depth - 1].start : 0;
    while (s->count > floor && !s->entries[s->count - 1]) {
        s->count--;
        s->holes--;
    }
    return true;
}

bool td__scope_escape(td__scoped *object)
{
    stack *s = &mine;
    if (object->stack != s)
        return false;
    uint32_t depth = s->depth;
    while (depth > 0 && s->levels[depth - 1].start > object->slot)
        depth--;
    if (depth == 0)
        return true;                           /* the root has no enclosing scope */
    uint32_t to = s->levels[depth - 1].start++;
    td__scoped *displaced = s->entries[to];
    s->entries[object->slot] = displaced;
    if (displaced)
        displaced->slot = object->slot;
    s->entries[to] = object;
    object->slot = to;
    return true;
}

bool td__scope_holds(const td__scoped *object)
{
    const stack *s = &mine;
    return object->stack == s && object->slot >= (s->depth > 0 ? s->levels[s->depth - 1].start : 0);
}
