/* comm/verdict.c: one sentence that names the guilty rank, the same on every rank.
 *
 * The first rank of the host that finds something wrong wins the right to write the verdict into the shared page (control.h); the others take
 * it over. A rank's own call site is resolved by itself when it can still do so; that of a dead rank of the same program by whoever
 * reports it, from the address and where the program lay in it.
 */
#include <stdio.h>
#include <time.h>
#include <unistd.h>
#include "comm_room.h"

static const char *const kinds[] = { "barrier", "broadcast", "all_reduce", "reduce_scatter", "all_gather", "reduce", "gather", "scatter", "all_to_all",
                                    "replay of a captured step", "td_comm_split", "meeting" };
static const char *const ops[] = { "", ", mean", ", min", ", max", ", product" };

static char *put(char *at, char *end, const char *text)
{
    while (*text && at < end)
        *at++ = *text++;
    return at;
}

static char *put_number(char *at, char *end, uint64_t n)
{
    char digits[24], *d = digits + sizeof digits;
    *--d = '\0';
    do
        *--d = (char)('0' + n % 10);
    while (n /= 10);
    return put(at, end, d);
}

/* By hand: every collective writes this into the black box. */
void td__coll_text(const td_fingerprint *p, const char *label, const char *group, char into[TD_CALL_TEXT])
{
    char *at = into, *end = into + TD_CALL_TEXT - 1;
    bool known = p->kind >= TD_COLL_BARRIER && p->kind <= TD_COLL_MEET;
    at = put(at, end, known ? kinds[p->kind] : "collective");
    if (p->kind != TD_COLL_BARRIER && p->kind != TD_COLL_REPLAY && p->kind != TD_COLL_SPLIT && p->kind != TD_COLL_MEET) {
        at = put(at, end, "(");
        at = put(at, end, td_dtype_name((td_dtype)p->dtype));
        if (p->kind != TD_COLL_ALL_TO_ALL || !p->uneven)
            at = put_number(put(at, end, ", "), end, (uint64_t)p->count);
        if (p->op > TD_SUM && p->op <= TD_PRODUCT)
            at = put(at, end, ops[p->op]);
        if (p->uneven)
            at = put(at, end, ", uneven");
        if (p->kind == TD_COLL_BROADCAST || p->kind == TD_COLL_REDUCE || p->kind == TD_COLL_GATHER || p->kind == TD_COLL_SCATTER)
            at = put_number(put(at, end, ", root "), end, (uint64_t)p->root);
        if (p->device == TD_CUDA)
            at = put(at, end, ", cuda");
        at = put(at, end, ")");
    }
    at = put_number(put(at, end, " #"), end, p->seq);
    if (group)
        at = put(put(at, end, " of "), end, group);
    if (label && *label)
        at = put(put(put(at, end, " ("), end, label), end, ")");
    *at = '\0';
}

static void add_site(const void *site, char into[TD_CALL_TEXT])
{
    char place[160];
    size_t used = strlen(into);
    if (site && *td__site_text(site, place, sizeof place))
        snprintf(into + used, TD_CALL_TEXT - used, " at %s", place);
}

/* " of parts of 3, 0, 7": what an uneven one lays side by side. */
static void add_counts(const td_coll *coll, char into[TD_CALL_TEXT])
{
    size_t used = strlen(into);
    for (int i = 0; i < coll->parts && i < 8 && used < TD_CALL_TEXT; i++)
        used += (size_t)snprintf(into + used, TD_CALL_TEXT - used, "%s%lld%s", i ? ", " : " of parts of ", (long long)coll->counts[i],
                                 i == 7 && coll->parts > 8 ? ", …" : "");
}

void td__coll_call_text(const td_coll *coll, char into[TD_CALL_TEXT])
{
    if (coll->letter) {
        td__letter_call_text(coll->letter, into);
        return;
    }
    if (coll->seq == 0) {
        snprintf(into, TD_CALL_TEXT, "%s%s%s", coll->label ? coll->label : "td_init", coll->group ? " of " : "", coll->group ? coll->group : "");
    } else {
        td_fingerprint p;
        td__coll_fingerprint(coll, &p);
        td__coll_text(&p, coll->label, coll->group, into);
        if (coll->kind == TD_COLL_ALL_GATHER && coll->counts)
            add_counts(coll, into);
    }
    add_site(coll->site, into);
}

bool td__fingerprint_equal(const td_fingerprint *a, const td_fingerprint *b)
{
    return a->seq == b->seq && a->count == b->count && a->kind == b->kind && a->dtype == b->dtype && a->op == b->op && a->root == b->root &&
           a->device == b->device && a->uneven == b->uneven;
}

static void entry_text(td__control *c, int i, const td_fingerprint *print, const char label[TD_LABEL], uint64_t site, char into[TD_CALL_TEXT])
{
    const td__slot *slot = &c->slot[i];
    if (print->seq == 0) {
        snprintf(into, TD_CALL_TEXT, "%s", c->opening);
        return;
    }
    td__coll_text(print, label, td__comm_group(c->comm), into);
    uint64_t offset = site - slot->exe_base;
    if (site && slot->exe_id && slot->exe_id == c->mine->exe_id && offset < slot->exe_size)
        add_site((const void *)(uintptr_t)(c->mine->exe_base + offset), into);
}

/* What rank i of the host called, as far as this rank can tell. */
static void peer_call_text(td__control *c, int i, uint64_t turn, char into[TD_CALL_TEXT])
{
    td__entry entry = *td__control_entry(c, i, turn);
    entry.label[TD_LABEL - 1] = '\0';
    entry_text(c, i, &entry.print, entry.label, entry.site, into);
}

static void peer_device_text(td__control *c, int i, uint64_t turn, char into[TD_CALL_TEXT])
{
    td__device_entry entry = c->slot[i].device[turn % TD_DEVICE_CALLS];
    entry.label[TD_LABEL - 1] = '\0';
    entry_text(c, i, &entry.print, entry.label, entry.site, into);
}

/* ---- one verdict for all ------------------------------------------------------------------------------------------------------ */

int td__verdict_take(td__control *c)
{
    td__head *head = c->head;
    if (c->above && atomic_load(&c->above->verdict) == 2 && c->above->verdict_code == TD_ERR_ABORTED)
        return td__comm_fail(c->comm, TD_ERR_ABORTED, "%s", c->above->verdict_text);
    for (int i = 0; atomic_load(&head->verdict) == 1 && i < 500; i++)   /* its writer may have died over it */
        nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
    if (atomic_load(&head->verdict) != 2)
        return 0;
    return td__comm_fail(c->comm, head->verdict_code, "%s", head->verdict_text);
}

int td__verdict(td__control *c, int code, const char *sentence)
{
    int32_t none = 0;
    if (atomic_compare_exchange_strong(&c->head->verdict, &none, 1)) {
        c->head->verdict_code = code;
        c->head->verdict_slot = c->me;
        snprintf(c->head->verdict_text, sizeof c->head->verdict_text, "%s", sentence);
        atomic_store(&c->head->verdict, 2);
    } else if (td__verdict_take(c)) {
        return atomic_load(&c->comm->code);
    }
    return td__comm_fail(c->comm, code, "%s", sentence);
}

int td__verdict_peer(td__control *c, int peer, td__peer_fault fault, const td_coll *waiting)
{
    int code = td__verdict_take(c);            /* a rank that fails tells why before it ends */
    if (code)
        return code;
    char text[TD_SENTENCE], mine[TD_CALL_TEXT], theirs[TD_CALL_TEXT] = "";
    int rank = c->mine->rank;
    td__coll_call_text(waiting, mine);
    if (peer < 0) {
        snprintf(text, sizeof text, "rank %d waited %g s (TANDEM_TIMEOUT) in %s and it did not end", rank, c->timeout, mine);
        return td__verdict(c, TD_ERR_TIMEOUT, text);
    }
    td__slot *slot = &c->slot[peer];
    uint64_t calls = atomic_load(&slot->calls), device_calls = atomic_load(&slot->device_calls);
    bool inside = atomic_load(&slot->inside), device = waiting->device.kind == TD_CUDA && device_calls && !inside;
    if (device)
        peer_device_text(c, peer, device_calls, theirs);
    else
        peer_call_text(c, peer, calls, theirs);
    if (device)
        inside = atomic_load(&slot->device_passed) < device_calls, calls = device_calls;
    char where[TD_CALL_TEXT + 64];
    if (calls == 0)
        snprintf(where, sizeof where, inside ? "it was in %s" : "it has entered no collective", c->opening);
    else
        snprintf(where, sizeof where, inside ? "it is in %s" : "its last was %s", theirs);
    switch (fault) {
    case TD_PEER_DIED:
        if (calls == 0)
            snprintf(where, sizeof where, "it had entered no collective");
        else
            snprintf(where, sizeof where, inside ? "it died in %s" : "its last was %s", theirs);
        snprintf(text, sizeof text, "rank %d (pid %d) was killed or died while rank %d waited in %s; %s", slot->rank, slot->pid, rank, mine, where);
        break;
    case TD_PEER_EXITED:
        snprintf(text, sizeof text, "rank %d (pid %d) ended its process without td_finish while rank %d waited in %s; %s", slot->rank,
                 slot->pid, rank, mine, where);
        break;
    case TD_PEER_STOPPED:
        snprintf(text, sizeof text, "rank %d (pid %d) is stopped by a signal (kill -CONT %d continues it) while rank %d waits in %s; %s",
                 slot->rank, slot->pid, slot->pid, rank, mine, where);
        break;
    case TD_PEER_FINISHED:
        slot->error[TD_SENTENCE - 1] = '\0';
        snprintf(text, sizeof text, "rank %d (pid %d) had called td_finish%s%.300s%s while rank %d waited in %s; %s", slot->rank, slot->pid,
                 *slot->error ? " after an error (" : "", slot->error, *slot->error ? ")" : "", rank, mine, where);
        break;
    case TD_PEER_LATE:
        snprintf(text, sizeof text, "rank %d (pid %d) did not come to %s within %g s (TANDEM_TIMEOUT), where rank %d waits; %s", slot->rank,
                 slot->pid, mine, c->timeout, rank, where);
        break;
    }
    return td__verdict(c, fault == TD_PEER_LATE ? TD_ERR_TIMEOUT : TD_ERR_PEER, text);
}

/* ---- different calls ------------------------------------------------------------------------------------------------------------ */

static size_t add_ranks(char *into, size_t size, size_t used, int n, const int *rank, const int *group, int which)
{
    int count = 0, shown = 0;
    for (int i = 0; i < n; i++)
        count += group[i] == which;
    used += (size_t)snprintf(into + used, size - used, count > 1 ? "ranks " : "rank ");
    for (int i = 0; i < n && used < size; i++)
        if (group[i] == which && shown++ < 8)
            used += (size_t)snprintf(into + used, size - used, "%s%d", shown > 1 ? ", " : "", rank[i]);
    if (shown > 8 && used < size)
        used += (size_t)snprintf(into + used, size - used, " and %d more", shown - 8);
    return used < size ? used : size - 1;
}

/* Ranks with the same fingerprint are one group. Those outside the largest group are the guilty ones; without a majority all are
 * named alike, the later rank first. */
void td__mismatch_sentence(int n, const int *rank, const td_fingerprint *prints, const char (*texts)[TD_CALL_TEXT], char *into, size_t size)
{
    int *group = td__alloc((size_t)n * sizeof *group), largest = 0, most = 0, odd = -1;
    if (!group) {
        snprintf(into, size, "ranks called different collectives");
        return;
    }
    for (int i = 0; i < n; i++) {
        group[i] = i;
        for (int k = 0; k < i; k++)
            if (td__fingerprint_equal(&prints[k], &prints[i])) {
                group[i] = k;
                break;
            }
    }
    for (int i = 0; i < n; i++) {
        int count = 0;
        for (int k = 0; k < n; k++)
            count += group[k] == i;
        if (count > most)
            most = count, largest = i;
    }
    for (int i = 0; i < n && odd < 0; i++)
        if (group[i] != largest)
            odd = group[i];
    size_t used = add_ranks(into, size, 0, n, rank, group, odd);
    used += (size_t)snprintf(into + used, size - used, " called %s while ", texts[odd]);
    if (used < size) {
        used = add_ranks(into, size, used, n, rank, group, largest);
        snprintf(into + used, size - used, " called %s", texts[largest]);
    }
    td__free(group);
}

int td__verdict_turn(td__control *c, uint64_t turn)
{
    char (*texts)[TD_CALL_TEXT] = td__alloc((size_t)c->n * sizeof *texts);
    td_fingerprint *prints = td__alloc((size_t)c->n * sizeof *prints);
    int *rank = td__alloc((size_t)c->n * sizeof *rank), n = 0;
    char sentence[TD_SENTENCE] = "ranks called different collectives";
    double end = td__now() + 0.3;              /* who is about to come is named, too                                              */
    for (int i = 0; i < c->n; i++)
        while (atomic_load(&c->slot[i].device_calls) < turn && !atomic_load(&c->head->verdict) && td__now() < end)
            nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
    for (int i = 0; texts && prints && rank && i < c->n; i++)
        if (atomic_load_explicit(&c->slot[i].device_calls, memory_order_acquire) >= turn) {
            prints[n] = c->slot[i].device[turn % TD_DEVICE_CALLS].print;
            peer_device_text(c, i, turn, texts[n]);
            rank[n++] = c->slot[i].rank;
        }
    if (n)
        td__mismatch_sentence(n, rank, prints, (const char (*)[TD_CALL_TEXT])texts, sentence, sizeof sentence);
    td__free(texts);
    td__free(prints);
    td__free(rank);
    return td__verdict(c, TD_ERR_MISMATCH, sentence);
}

int td__verdict_mismatch(td__control *c, const td_coll *coll)
{
    td__coll_call_text(coll, c->mine->text);
    atomic_store(&c->mine->text_of, coll->turn);
    int32_t none = 0;
    if (!atomic_compare_exchange_strong(&c->head->verdict, &none, 1)) {
        int code = td__verdict_take(c);
        return code ? code : td__comm_fail(c->comm, TD_ERR_MISMATCH, "ranks called different collectives: this one %s", c->mine->text);
    }
    char (*texts)[TD_CALL_TEXT] = td__alloc((size_t)c->n * sizeof *texts);
    td_fingerprint *prints = td__alloc((size_t)c->n * sizeof *prints);
    int *rank = td__alloc((size_t)c->n * sizeof *rank);
    char sentence[TD_SENTENCE] = "ranks called different collectives";
    if (texts && prints && rank) {
        double end = td__now() + 0.3;          /* reading debug information takes the others some time, too */
        for (int i = 0; i < c->n; i++) {
            td__slot *slot = &c->slot[i];
            while (atomic_load(&slot->text_of) != coll->turn && td__now() < end)
                nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
            if (atomic_load(&slot->text_of) == coll->turn)
                snprintf(texts[i], sizeof texts[i], "%s", slot->text);
            else
                peer_call_text(c, i, coll->turn, texts[i]);
            prints[i] = td__control_entry(c, i, coll->turn)->print;
            rank[i] = slot->rank;
        }
        td__mismatch_sentence(c->n, rank, prints, (const char (*)[TD_CALL_TEXT])texts, sentence, sizeof sentence);
    }
    td__free(texts);
    td__free(prints);
    td__free(rank);
    c->head->verdict_code = TD_ERR_MISMATCH;
    c->head->verdict_slot = c->me;
    snprintf(c->head->verdict_text, sizeof c->head->verdict_text, "%s", sentence);
    atomic_store(&c->head->verdict, 2);
    return td__comm_fail(c->comm, TD_ERR_MISMATCH, "%s", sentence);
}
