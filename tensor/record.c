/* tensor/record.c: the list of what a captured step does (tensor_impl.h says how it is written, autograd/capture.c who reads it).
 *
 * It lies beneath all rooms that act on tensors, so that none of them knows who records. A step that does what cannot be done once more goes
 * on as if nobody recorded: only the first reason is kept.
 */
#include "tensor_impl.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

__thread td__recording *td__recording_now;

void *td__record_new(const td__record_kind *kind)
{
    td__recording *r = td__recording_now;
    td__record *record = td__calloc(sizeof *record + kind->size);
    if (!record) {
        td__record_refuse("there is no memory to note %s", kind->name);
        return NULL;
    }
    record->kind = kind;
    record->site = td__site;
    *(r->last ? &r->last->next : &r->first) = record;
    r->last = record;
    return record->state;
}

void td__record_refuse(const char *format, ...)
{
    td__recording *r = td__recording_now;
    if (!r || r->code)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(r->reason, sizeof r->reason, format, args);
    va_end(args);
    r->code = TD_ERR_STATE;
    r->reason_site = td__site;
}

void td__records_free(td__record *first)
{
    for (td__record *record = first, *next; record; record = next) {
        next = record->next;
        if (record->kind->drop)
            record->kind->drop(record->state);
        td__free(record);
    }
}

void td__record_read(const char *who)
{
    if (td__recorded_here())
        td__record_refuse("%s is called by the step: the host would read a value of this call, and every replay go on with it; read what the step "
                          "returns, after td_replay", who);
}

/* ---- what constructors and movers do ------------------------------------------------------------------------------------------------- */

typedef struct { td_tensor *into, *from; double value; } moved;

static int copy_run(void *state)
{
    moved *m = state;
    m->into->storage->version++;
    return td__copy(m->into, m->from, false);
}

static int fill_run(void *state)
{
    moved *m = state;
    return td__fill(m->into, m->value);
}

static void moved_drop(void *state)
{
    moved *m = state;
    td__tensor_unref(m->into);
    td__tensor_unref(m->from);
}

static void moved_uses(void *state, td__uses *u)
{
    moved *m = state;
    if (m->from)
        u->tensor(u, m->from, TD__READS);
    u->tensor(u, m->into, TD__FILLS);
}

static void note(const td__record_kind *kind, td_tensor *into, td_tensor *from, double value)
{
    moved *m = td__record_begin(kind);
    if (m) {
        *m = (moved){ into, from, value };
        td__tensor_ref(into);
        td__tensor_ref(from);
    }
    td__record_end();
}

void td__record_copy(td_tensor *into, td_tensor *from)
{
    static const td__record_kind kind = { "td_to", sizeof(moved), copy_run, NULL, moved_drop, NULL, moved_uses };
    note(&kind, into, from, 0);
}

void td__record_fill(td_tensor *into, double value)
{
    static const td__record_kind kind = { "a constant tensor", sizeof(moved), fill_run, NULL, moved_drop, NULL, moved_uses };
    note(&kind, into, NULL, value);
}

typedef struct { const char *who; td_tensor *x; uint32_t version; } constant;

static int constant_run(void *state)
{
    (void)state;
    return 0;
}

static void constant_drop(void *state)
{
    td__tensor_unref(((constant *)state)->x);
}

static const td__record_kind constant_kind = { "a tensor of the host's numbers", sizeof(constant), constant_run, NULL, constant_drop, NULL };

void td__record_constant(const char *who, td_tensor *x)
{
    constant *c = td__record_begin(&constant_kind);
    if (c) {
        *c = (constant){ who, x, x->storage->version };
        td__tensor_ref(x);
    }
    td__record_end();
}

void td__record_end_constants(td__recording *r)
{
    for (td__record *record = r->first; record; record = record->next) {
        const constant *c = (const void *)record->state;
        if (record->kind != &constant_kind || !c->x || c->x->storage->version == c->version)
            continue;
        const void *site = td__site;
        td__site = record->site;
        td__record_refuse("the step changes a tensor in place that it made by %s, and a replay would not make it anew; make it before td_capture, or by "
                          "operations", c->who);
        td__site = site;
    }
}
