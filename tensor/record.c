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
