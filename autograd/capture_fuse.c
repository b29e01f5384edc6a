/* autograd/capture_fuse.c: after recording on the CPU, chains of element-wise entries of the list become one entry each (capture_blocks.c runs it).
 *
 * A chain is of neighbours in the list, of one number of elements, whose operands lie in the same order; an operand may also be one element or a row
 * that is repeated (a bias). Anything else ends it: views, custom operations, writes in place. An intermediate that nobody else
 * knows, neither a gradient nor another entry nor the program, gives its memory up (capture_uses.c tells). Because members follow each other
 * without anything between, no member reads what a later one writes.
 */
#include "capture_fuse.h"
#include <string.h>

enum { MEMBERS = 32 };

/* ---- which entries ------------------------------------------------------------------------------------------------------------------------ */

static bool element_wise(const td_op *op)
{
#define OP(name) &td__op_##name,
    static const td_op *const list[] = { TD_OP_LIST_ELEMENTS(OP) };
#undef OP
    for (size_t i = 0; i < sizeof list / sizeof *list; i++)
        if (list[i] == op)
            return true;
    return false;
}

static bool dense(const td_tensor *x)
{
    return td__strides_contiguous(x->shape, x->stride) || td__lies_channels_last(x);
}

/* Are element i of the one's memory and element i of the other's the same element? Both are dense. */
static bool alike(const td_tensor *in, const td_tensor *out)
{
    if (td__strides_contiguous(in->shape, in->stride) && td__strides_contiguous(out->shape, out->stride))
        return td__shape_numel(in->shape) == td__shape_numel(out->shape);
    return td__shape_equal(in->shape, out->shape) && memcmp(in->stride, out->stride, (size_t)out->shape.ndim * sizeof *out->stride) == 0;
}

/* The last dimensions of a contiguous output, repeated along all others: how many elements; 0: it is no such. */
static int64_t row_of(const td_tensor *in, const td_tensor *out)
{
    int lead = 0;
    while (lead < in->shape.ndim && in->shape.dim[lead] == 1)
        lead++;
    const int own = in->shape.ndim - lead, from = out->shape.ndim - own;
    if (from < 0 || !td__strides_contiguous(in->shape, in->stride) || !td__strides_contiguous(out->shape, out->stride))
        return 0;
    for (int i = 0; i < own; i++)
        if (in->shape.dim[lead + i] != out->shape.dim[from + i])
            return 0;
    return td__shape_numel(in->shape);
}

/* How input `in` is read; `row` is set where it is a repeated one. */
static bool reach_of(const td_tensor *in, const td_tensor *out, td__reach *reach, int64_t *row)
{
    const int64_t numel = td__shape_numel(in->shape);
    if (numel == td__shape_numel(out->shape) && dense(in) && alike(in, out)) {
        *reach = TD__EACH;
        return true;
    }
    if (numel == 1) {
        *reach = TD__ONE;
        return true;
    }
    const int64_t n = row_of(in, out);
    if (n == 0 || n > TD__CHAIN_ROW || (*row && *row != n))
        return false;
    *reach = TD__ROW;
    *row = n;
    return true;
}

/* Can this entry be a member of some chain? Fills m, and the row that it repeats (0: none). */
static bool member_of(td__record *r, td__member *m, int64_t *row)
{
    *row = 0;
    if (r->kind != &td__forward_kind)
        return false;
    td__forward *f = (void *)r->state;
    if (!f->call || !element_wise(f->call->op) || f->n_in > TD__CHAIN_INPUTS || f->changed || f->call->mixed)
        return false;
    td_tensor *out = f->out[0];
    *m = (td__member){ .record = r, .f = f, .shape = out->shape, .drop = f->call->op == &td__op_dropout };
    if (out->storage->device.kind != TD_CPU || out->divisor || !dense(out) || td__shape_numel(out->shape) == 0 || (f->made && !m->drop))
        return false;
    m->out = (td__operand){ out, -1, out->dtype, TD__EACH };
    for (int i = 0; i < f->n_in; i++) {
        td_tensor *in = f->in[i];
        if (!in || in->divisor)
            return false;
        m->in[i] = (td__operand){ in, -1, in->dtype, TD__EACH };
        if (!reach_of(in, out, &m->in[i].reach, row))
            return false;
        m->wide |= td__is_half(in->dtype);
    }
    m->wide &= !(f->call->op->flags & TD_OP_ANY_DTYPE);
    return true;
}

/* ---- chains ---------------------------------------------------------------------------------------------------------------------------------- */

typedef struct {
    td__member member[MEMBERS];
    int n, links;                                      /* links: inputs that a member before has written                        */
    uint32_t first;                                    /* moment of the first                                                  */
    int64_t numel, row, rows;                          /* rows: of the dropouts, 0: there is none                                */
} found;

static int writer_of(const found *c, const td_storage *storage)
{
    for (int k = c->n - 1; k >= 0; k--)
        if (c->member[k].out.x->storage == storage)
            return k;
    return -1;
}

/* A dropout counts from the start of each sample, in steps of 64: rows of another rhythm would not fit into its blocks. */
static bool in_step(const found *c, const td__member *m, int64_t row)
{
    const int64_t own = m->shape.ndim > 0 ? m->shape.dim[0] : 1, rows = m->drop ? own : c->rows;
    if (m->drop && c->rows && c->rows != own)
        return false;
    return !rows || !row || (row % 64 == 0 && c->numel / rows % row == 0);
}

static bool joins(const found *c, const td__member *m, int64_t row)
{
    const td_tensor *out = m->out.x, *first = c->member[0].out.x;
    if (c->n == MEMBERS || c->numel != td__shape_numel(m->shape) || (row && c->row && row != c->row) || !alike(out, first) ||
        !in_step(c, m, row ? row : c->row))
        return false;
    for (int i = 0; i < m->f->n_in; i++)
        if (m->in[i].reach != TD__EACH && writer_of(c, m->in[i].x->storage) >= 0)
            return false;
    return true;
}

static void join(found *c, const td__member *m, int64_t row, uint32_t moment)
{
    if (c->n == 0)
        *c = (found){ .first = moment, .numel = td__shape_numel(m->shape) };
    for (int i = 0; i < m->f->n_in; i++)
        c->links += writer_of(c, m->in[i].x->storage) >= 0;
    c->row = row ? row : c->row;
    c->rows = m->drop ? m->shape.ndim > 0 ? m->shape.dim[0] : 1 : c->rows;
    c->member[c->n++] = *m;
}

/* ---- memory that only the chain knows ---------------------------------------------------------------------------------------------------------- */

static bool nobody_else(const found *c, int k, const td__list_uses *uses)
{
    const td_storage *storage = c->member[k].out.x->storage;
    for (int j = 0; j < c->n; j++) {
        const td__forward *f = c->member[j].f;
        for (int s = 0; s < f->n_saved && f->call->recording && !c->member[j].drop; s++)
            if ((f->saved[s] < 0 ? f->out[~f->saved[s]] : f->in[f->saved[s]])->storage == storage)
                return false;
    }
    for (size_t i = 0; i < uses->n; i++)
        if (uses->use[i].storage == storage)
            return uses->use[i].movable && uses->use[i].first >= c->first && uses->use[i].last < c->first + (uint32_t)c->n;
    return false;
}

static int last_reader(const found *c, const td_storage *storage)
{
    int last = writer_of(c, storage);
    for (int k = 0; k < c->n; k++)
        for (int i = 0; i < c->member[k].f->n_in; i++)
            if (c->member[k].in[i].x && c->member[k].in[i].x->storage == storage)
                last = k > last ? k : last;
    return last;
}

static void let_go(td_tensor **x)
{
    td__tensor_unref(*x);
    *x = NULL;
}

/* Gives each such output a slot of scratch that is free from its writer to its last reader, and the memory back. Returns how many slots. */
static int make_slots(found *c, const td__list_uses *uses)
{
    int until[MEMBERS + 1], slots = 0, slot[MEMBERS];
    bool only[MEMBERS];
    for (int k = 0; k < c->n; k++) {
        only[k] = nobody_else(c, k, uses);
        slot[k] = -1;
        if (!only[k])
            continue;
        int s = 0;
        while (s < slots && until[s] >= k)
            s++;
        slots = s == slots ? slots + 1 : slots;
        until[s] = last_reader(c, c->member[k].out.x->storage);
        slot[k] = s;
    }
    for (int k = 0; k < c->n; k++) {                   /* first the readers: a writer is found by its storage                     */
        td__member *m = &c->member[k];
        for (int i = 0; i < m->f->n_in; i++) {
            const int w = writer_of(c, m->in[i].x->storage);
            if (w >= 0 && w < k && only[w])
                m->in[i].slot = slot[w];
        }
    }
    for (int k = 0; k < c->n; k++) {
        td__member *m = &c->member[k];
        for (int i = 0; i < m->f->n_in; i++)
            if (m->in[i].slot >= 0) {
                m->in[i].x = NULL;
                let_go(&m->f->in[i]);
            }
    }
    for (int k = 0; k < c->n; k++)
        if (only[k]) {
            c->member[k].out.slot = slot[k];
            c->member[k].out.x = NULL;
            let_go(&c->member[k].f->out[0]);
        }
    return slots;
}

/* ---- the entry ------------------------------------------------------------------------------------------------------------------------------- */

static int fused_run(void *state)
{
    return td__chain_run(state);
}

static void fused_drop(void *state)
{
    td__chain *c = state;
    td__chain_lanes_free(c);
    td__free(c->member);
    td__records_free(c->first);
}

/* What the chain has written itself it merely holds. */
static void fused_uses(void *state, td__uses *u)
{
    td__chain *c = state;
    for (int k = 0; k < c->n; k++) {
        td__forward *f = c->member[k].f;
        for (int i = 0; i < f->n_in; i++) {
            if (!f->in[i])
                continue;
            bool inside = false;
            for (int j = 0; j < k; j++)
                inside |= c->member[j].f->out[0] && c->member[j].f->out[0]->storage == f->in[i]->storage;
            u->tensor(u, f->in[i], inside ? 0 : TD__READS);
            if (f->saved_in >> i & 1)
                u->saved(u, f->in[i], f->call);
        }
        if (!f->out[0])
            continue;
        u->tensor(u, f->out[0], TD__FILLS);
        if (f->saved_out & 1)
            u->saved(u, f->out[0], f->call);
    }
}

static const td__record_kind fused_kind = { "element-wise operations in a chain", sizeof(td__chain), fused_run, NULL, fused_drop, NULL, fused_uses };

/* Puts one entry in the place of the chain's, which *place points to. Returns where the list goes on. */
static td__record **put_entry(found *f, const td__list_uses *uses, td__record **place, int *code)
{
    td__record *last = f->member[f->n - 1].record, *r = td__calloc(sizeof *r + sizeof(td__chain));
    td__chain *c = r ? (void *)r->state : NULL;
    td__member *member = r ? td__alloc((size_t)f->n * sizeof *member) : NULL;
    if (!member) {
        td__free(r);
        *code = TD_ERR_MEMORY;
        return &last->next;
    }
    const int slots = make_slots(f, uses);
    memcpy(member, f->member, (size_t)f->n * sizeof *member);
    *c = (td__chain){ .first = *place, .member = member, .n = f->n, .numel = f->numel, .row = f->row, .slots = slots };
    r->kind = &fused_kind;
    r->site = c->first->site;
    r->next = last->next;
    last->next = NULL;
    *place = r;
    *code = td__chain_lanes(c, td__chain_threads(c));  /* now, not within a replay                                              */
    return &r->next;
}

int td__capture_fuse(td_graph *g)
{
    td__list_uses uses;
    found *c = td__calloc(sizeof *c);
    if (!c)
        return TD_ERR_MEMORY;
    int code = td__list_uses_find(g->first, &uses);
    uint32_t moment = 0;
    td__record **begin = &g->first, **at = &g->first;          /* begin: where the chain that is looked at starts                 */
    while (!code) {
        td__record *r = *at;
        td__member m;
        int64_t row = 0;
        const bool may = r && member_of(r, &m, &row);
        if (c->n && !(may && joins(c, &m, row))) {
            if (c->links) {
                g->fused += c->n;
                at = put_entry(c, &uses, begin, &code);
            }
            c->n = 0;
            begin = at;
            continue;
        }
        if (!r)
            break;
        if (may)
            join(c, &m, row, moment);
        moment += td__record_moments(r);
        at = &r->next;
        if (!may)
            begin = at;
    }
    td__list_uses_free(&uses);
    td__free(c);
    return code;
}
