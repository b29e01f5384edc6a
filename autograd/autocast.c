/* autograd/autocast.c: TD_AUTOCAST: which dtype an operation computes in is decided at the door, by the flags of its record.
 *
 * A cast is a td_cast like any other: recorded, so that the gradient of an f32 weight arrives in f32. The cast of a weight is made once per
 * outermost region and kept here, by thread: entries lie in an open-addressed table by the leaf's address and hold a reference to leaf and
 * cast; a weight that was changed since (its version) is cast anew. Such casts outlive the backward that runs through them first
 * (td_call.shared), because a later graph of the same region may use them, too.
 */
#include "ops_shared.h"
#include "tape.h"
#include <string.h>

typedef struct {
    td_tensor *leaf, *cast;                    /* leaf NULL: empty                                                         */
    td_storage *storage;                       /* the leaf's when it was cast (td_module_to exchanges it), not referenced   */
    uint32_t version;
    bool last;                                 /* the cast was made channels last                                          */
} entry;

static __thread struct { entry *at; size_t room, used; } casts;

td_dtype td__autocast_now(void)
{
    return td__tape_now.autocast;
}

/* ---- the casts of weights --------------------------------------------------------------------------------------------------------- */

void td__autocast_drop(void)
{
    entry *at = casts.at;
    size_t room = casts.room;
    memset(&casts, 0, sizeof casts);           /* first: freeing a graph may come back here                                */
    for (size_t i = 0; i < room; i++) {
        if (!at[i].leaf)
            continue;
        td__tensor_unref(at[i].cast);
        td__tensor_unref(at[i].leaf);
    }
    td__free(at);
}

/* Where the cast of x to `dtype` (and to channels last) is, or would be. The table has empty entries always. */
static entry *find(entry *at, size_t room, const td_tensor *x, td_dtype dtype, bool last)
{
    size_t i = ((uintptr_t)x >> 6) * 0x9E3779B97F4A7C15u >> 20 & (room - 1);
    while (at[i].leaf && (at[i].leaf != x || at[i].cast->dtype != dtype || at[i].last != last))
        i = (i + 1) & (room - 1);
    return &at[i];
}

static int make_room(void)
{
    if (2 * (casts.used + 1) <= casts.room)
        return 0;
    size_t room = casts.room ? 2 * casts.room : 64;
    entry *at = td__calloc(room * sizeof *at);
    if (!at)
        return TD_ERR_MEMORY;
    for (size_t i = 0; i < casts.room; i++)
        if (casts.at[i].leaf)
            *find(at, room, casts.at[i].leaf, casts.at[i].cast->dtype, casts.at[i].last) = casts.at[i];
    td__free(casts.at);
    casts.at = at;
    casts.room = room;
    return 0;
}

/* Of the leaf as it is now, and with a graph if one is wanted. */
static bool usable(const entry *e, const td_tensor *x)
{
    return e->leaf && e->storage == x->storage && e->version == x->storage->version &&
           (td_needs_grad(e->cast) || !td_needs_grad(x) || !td__grad_enabled());
}

static td_tensor *cast_leaf(td_tensor *x, td_dtype dtype, bool last)
{
    td__tape *tape = &td__tape_now;
    if (tape->again)
        return td__checkpoint_cast(x, dtype, last);
    if (make_room())
        return td__poison();
    entry *e = find(casts.at, casts.room, x, dtype, last);
    if (usable(e, x))
        return e->cast;
    bool light = tape->light;
    tape->light = false;                       /* later graphs use it, too                                                 */
    td_tensor *cast = last ? td__cast_channels_last(x, dtype) : td_cast(x, dtype);
    tape->light = light;
    if (cast->poisoned)
        return cast;
    if (cast->graph)
        td__graph_node(td__graph_of(cast))->shared = true;
    td__tensor_ref(cast);
    if (e->leaf) {
        td__tensor_unref(e->cast);
    } else {
        td__tensor_ref(x);
        casts.used++;
    }
    *e = (entry){ x, cast, x->storage, x->storage->version, last };
    return cast;
}

td_tensor *td__autocast_leaf(td_tensor *x, bool channels_last)
{
    const td_dtype to = td__tape_now.autocast;
    return to != TD_F32 && x && !x->poisoned && x->dtype == TD_F32 && td__leaf_of(x) ? cast_leaf(x, to, channels_last) : NULL;
}

/* ---- what an operation's inputs become ---------------------------------------------------------------------------------------------- */

static bool eligible(const td_tensor *x)
{
    return x && (x->dtype == TD_F32 || td__is_half(x->dtype));
}

/* The dtype that all eligible inputs get: the widest where nothing is said. f16 and bf16 meet in f32: neither holds the other. */
static td_dtype wanted(const td_op *op, td_tensor *const *in, size_t n)
{
    if (op->flags & TD_OP_LOW)
        return td__tape_now.autocast;
    if (op->flags & TD_OP_HIGH)
        return TD_F32;
    const td_tensor *first = NULL;
    for (size_t i = 0; i < n; i++) {
        if (!eligible(in[i]))
            continue;
        if (first && first->dtype != in[i]->dtype)
            return TD_F32;
        first = in[i];
    }
    return first ? first->dtype : TD_F32;
}

/* Leaves 16 bits be where the operation reads them as they are: what it makes is in f32 either way, without a copy of its input. */
static bool stays_mixed(const td_op *op, td_tensor *const *in, size_t n)
{
    const td_tensor *first = NULL, *half = NULL;
    for (size_t i = 0; i < n; i++) {
        const td_tensor *x = in[i];
        if (!eligible(x))
            continue;
        if (td__is_half(x->dtype) && half && half->dtype != x->dtype)
            return false;                      /* f16 beside bf16                                                          */
        if (op->flags & TD__OP_WIDE_ALIKE && first && !td__shape_equal(first->shape, x->shape))
            return false;
        half = td__is_half(x->dtype) ? x : half;
        first = first ? first : x;
    }
    return half && half->storage->ops->computes_half;
}

int td__autocast_inputs(const td_op *op, td_tensor *const **in, size_t n, td_tensor **cast, bool *mixed)
{
    td_dtype to = wanted(op, *in, n);
    bool any = false;
    if (op->flags & TD_OP_MIXED)
        return 0;
    for (size_t i = 0; i < n; i++)
        any |= eligible((*in)[i]) && (*in)[i]->dtype != to;
    if (!any)
        return 0;
    if (op->flags & (TD__OP_WIDE | TD__OP_WIDE_ALIKE) && to == TD_F32 && stays_mixed(op, *in, n)) {
        *mixed = true;
        return 0;
    }
    const void *site = td__site;               /* messages name the operation's caller, not the casts'                      */
    for (size_t i = 0; i < n; i++) {
        td_tensor *x = (*in)[i];
        size_t same = 0;                       /* x*x casts its one tensor once                                            */
        while (same < i && (*in)[same] != x)
            same++;
        if (same < i)
            x = cast[same];
        else if (eligible(x) && x->dtype != to)
            x = x->dtype == TD_F32 && td__leaf_of(x) ? cast_leaf(x, to, false) : td_cast(x, to);
        if (x && x->poisoned)
            return TD_ERR_MEMORY;
        cast[i] = x;
    }
    td__site = site;
    *in = cast;
    return 0;
}

/* ---- regions ------------------------------------------------------------------------------------------------------------------------ */

td_autocast td_autocast_begin(td_dtype dtype)
{
    TD_ENTER();
    td__tape *tape = &td__tape_now;
    td_autocast region = { .was = tape->autocast };
    tape->autocast_depth++;
    if (dtype == TD_F32 || td__is_half(dtype))
        tape->autocast = dtype;
    else if (!td__dtype_check("td_autocast_begin", dtype))
        td__fail(TD_ERR_DTYPE, "td_autocast_begin: dtype is %s, expected bf16 or f16, or f32 (off)", td_dtype_name(dtype));
    return region;
}

void td_autocast_end(td_autocast *region)
{
    td__tape *tape = &td__tape_now;
    if (!region || tape->autocast_depth == 0)
        return;
    tape->autocast = region->was;
    if (--tape->autocast_depth == 0)
        td__autocast_drop();
}
