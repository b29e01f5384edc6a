/* comm/comm_hier_agree.c: how a collective over several hosts begins: have all called the same? What is small is done with it.
 *
 *   1 the ranks of a host meet: fingerprints (and small data) of all of them lie in the control page
 *   2 the hosts' first ranks tell each other: in round k to the host 2^k further on, everything known so far, so after log2 H
 *     rounds each knows all
 *   3 the ranks of a host meet again and find on the board what came from elsewhere
 * A message is a letter: fingerprint, terms, then the records of ranks if the collective is small. A host whose calls differ from those of a letter
 * passes on only that; everybody learns of it, and MPI's backend, which compares everything again, finds the words.
 */
#include "comm_hier.h"

enum { TAG = 1 << 20 };

typedef struct {
    td_fingerprint print;
    td__terms terms;
    int32_t   from_first;                      /* terms.post is rank 0's                                                         */
    int32_t   records;                         /* of how many hosts records follow                                               */
} letter_head;
_Static_assert(sizeof(letter_head) <= TD_HIER_HEAD, "records follow at a place of their own");

/* ---- small? ------------------------------------------------------------------------------------------------------------------------ */

size_t td__hier_in_bytes(const td__hier *h, const td_coll *coll)
{
    return (size_t)coll->count * td_dtype_size(coll->dtype) * (coll->kind == TD_COLL_REDUCE_SCATTER ? (size_t)h->comm->size : 1);
}

/* A record is the rank's factor, then its data. */
static size_t stride(size_t in)
{
    return 16 + (in + 15) / 16 * 16;
}

size_t td__hier_record(const td__hier *h, const td_coll *coll)
{
    size_t in = td__hier_in_bytes(h, coll);
    return in <= TD_INLINE && stride(in) * (size_t)h->comm->size <= TD_HIER_RECORDS ? stride(in) : 0;
}

double td__hier_post(const td__hier *h, const td_coll *coll, const td__terms *terms)
{
    return coll->op == TD_MEAN ? terms->post / h->comm->size : terms->post;
}

td_combine td__hier_op(td_reduce op)
{
    return op == TD_MIN ? TD_COMBINE_MIN : op == TD_MAX ? TD_COMBINE_MAX : op == TD_PRODUCT ? TD_COMBINE_PRODUCT : TD_COMBINE_SUM;
}

/* Everybody adds the same records in the order of ranks. */
void td__hier_finish_small(td__hier *h, const td_coll *coll, const td__terms *terms)
{
    size_t step = td__hier_record(h, coll), part = (size_t)coll->count * td_dtype_size(coll->dtype);
    bool scatter = coll->kind == TD_COLL_REDUCE_SCATTER;
    int n = h->comm->size;
    char *out = coll->out;
    for (int i = 0; i < n; i++) {
        int r = h->layout.member[i];
        const char *record = h->board->record + (size_t)i * step, *data = record + 16;
        memcpy(&h->pre[r], record, sizeof h->pre[r]);
        h->in[r] = data + (scatter ? (size_t)h->comm->rank * part : 0);
        if (coll->kind == TD_COLL_ALL_GATHER && part)
            memcpy(out + (size_t)r * part, data, part);
        else if (coll->kind == TD_COLL_BROADCAST && r == coll->root && part)
            memcpy(out, data, part);
    }
    h->out[0] = out;
    if (scatter || coll->kind == TD_COLL_ALL_REDUCE)
        h->kernels->combine(coll->dtype, td__hier_op(coll->op), coll->count, n, h->in, h->pre, td__hier_post(h, coll, terms), h->out, 1);
}

/* ---- the hosts' first ranks ---------------------------------------------------------------------------------------------------------- */

/* Records of `hosts` hosts, from this one backwards, as they lie in a letter; or onto the board from a letter of host `from`. */
static size_t pack(td__hier *h, int from, int hosts, size_t step, char *letter, bool unpack)
{
    size_t used = 0;
    for (int k = 0; k < hosts; k++) {
        int host = (from - k + h->layout.hosts) % h->layout.hosts;
        char *at = h->board->record + (size_t)h->layout.first[host] * step;
        size_t size = (size_t)(h->layout.first[host + 1] - h->layout.first[host]) * step;
        if (unpack)
            memcpy(at, letter + used, size);
        else
            memcpy(letter + used, at, size);
        used += size;
    }
    return used;
}

static int exchange(td__hier *h, const td_coll *coll, letter_head *known, size_t step)
{
    const td_wire *wire = h->plug->wire;
    int hosts = h->layout.hosts, code = 0;
    for (int far = 1, round = 0; far < hosts && !code; far *= 2, round++) {
        int to = h->layout.member[h->layout.first[(h->here + far) % hosts]], from_host = (h->here - far + hosts) % hosts;
        int from = h->layout.member[h->layout.first[from_host]];
        td_wire_request go, come;
        letter_head heard;
        known->records = known->terms.equal && step ? (far < hosts - far ? far : hosts - far) : 0;
        memcpy(h->letter[0], known, sizeof *known);
        size_t size = TD_HIER_HEAD + pack(h, h->here, known->records, step, h->letter[0] + TD_HIER_HEAD, false);
        code = wire->recv(h->plug_state, TD_WIRE_SCHEDULES, from, TAG + round, h->letter[1], TD_HIER_HEAD + TD_HIER_RECORDS, &come);
        if (code)
            return code;
        code = wire->send(h->plug_state, TD_WIRE_SCHEDULES, to, TAG + round, h->letter[0], size, &go);
        if (!code)
            code = td__hier_await(h, coll, &come, from);
        if (!code)
            code = td__hier_await(h, coll, &go, to);
        if (code) {
            wire->drop(h->plug_state, &come);
            return code;
        }
        memcpy(&heard, h->letter[1], sizeof heard);
        known->terms.equal &= heard.terms.equal && td__fingerprint_equal(&known->print, &heard.print);
        known->terms.shared &= heard.terms.shared;
        if (heard.from_first && !known->from_first)
            known->terms.post = heard.terms.post, known->from_first = 1;
        if (known->terms.equal && heard.records)
            pack(h, from_host, heard.records, step, h->letter[1] + TD_HIER_HEAD, true);
    }
    return code;
}

/* What this host has to say. */
static void collect(td__hier *h, const td_coll *coll, letter_head *known, size_t step)
{
    size_t in = td__hier_in_bytes(h, coll);
    int first = h->layout.first[h->here];
    memset(known, 0, sizeof *known);
    known->print = td__control_entry(&h->view, h->me, coll->turn)->print;
    known->terms = (td__terms){ .equal = 1, .shared = 1, .post = td__control_entry(&h->view, 0, coll->turn)->post };
    known->from_first = h->layout.member[first] == 0;
    for (int i = 0; i < h->n; i++) {
        const td__entry *e = td__control_entry(&h->view, i, coll->turn);
        known->terms.equal &= td__fingerprint_equal(&known->print, &e->print);
        known->terms.shared &= h->n == 1 || (e->in >= 0 && e->out >= 0);
        if (!step)
            continue;
        char *record = h->board->record + (size_t)(first + i) * step;
        memcpy(record, &e->pre, sizeof e->pre);
        memcpy(record + 16, td__control_inline(&h->view, i, coll->turn), in);
    }
}

int td__hier_agree(td__hier *h, td_coll *coll, size_t step, td__terms *terms)
{
    int code = td__control_meet(&h->view, coll);
    if (code)
        return code;
    if (h->me == 0) {
        letter_head known;
        collect(h, coll, &known, step);
        code = exchange(h, coll, &known, step);
        if (code)
            return code;
        h->board->terms = known.terms;
    }
    code = td__control_meet(&h->view, coll);
    *terms = h->board->terms;
    return code;
}
