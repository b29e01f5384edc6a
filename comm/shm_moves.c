/* comm/shm_moves.c: broadcast, all_gather, gather, scatter and all_to_all between the ranks of one host: each rank takes parts of others.
 *
 * All five are one thing: this rank takes from rank i so many elements, from such a place of i's `in`, to such a place of its `out`. In arenas it
 * copies them from there. What is private goes through the buffers: a rank lays out pieces of what others take, one for all where all take
 * the same, else one for each.
 */
#include "comm_shm.h"

static int64_t part_of(const td_coll *coll, int i)
{
    return coll->counts ? coll->counts[i] : coll->count;
}

void td__shm_take(td__shm *s, const td_coll *coll)
{
    bool everybody = coll->kind == TD_COLL_ALL_GATHER || coll->kind == TD_COLL_ALL_TO_ALL || (coll->kind == TD_COLL_GATHER && coll->root == s->me);
    int64_t to = 0;
    for (int i = 0; i < s->n; i++) {
        td__taken *t = &s->taken[i];
        *t = (td__taken){ everybody || ((coll->kind == TD_COLL_BROADCAST || coll->kind == TD_COLL_SCATTER) && coll->root == i) ? part_of(coll, i) : 0, 0, to };
        if (coll->kind == TD_COLL_SCATTER || coll->kind == TD_COLL_ALL_TO_ALL)
            t->at = coll->from ? coll->from[2 * i + 1] : s->me * coll->count;
        to += t->count;
    }
}

int64_t td__shm_largest(const td__shm *s, const td_coll *coll)
{
    int64_t largest = coll->in_counts ? coll->most : coll->counts ? 0 : coll->count;
    for (int i = 0; i < s->n && coll->counts && !coll->in_counts; i++)
        largest = coll->counts[i] > largest ? coll->counts[i] : largest;
    return largest;
}

/* Not all from the same one at a time. */
static td__taken next_part(const td__shm *s, int k, int *from)
{
    *from = (s->me + k) % s->n;
    return s->taken[*from];
}

static int arena_move(td__shm *s, const td_coll *coll)
{
    size_t size = td_dtype_size(coll->dtype);
    int from;
    for (int k = 0; k < s->n; k++) {
        td__taken t = next_part(s, k, &from);
        if (!t.count)
            continue;
        const char *source = (from == s->me ? (const char *)coll->in : td__shm_peer(s, coll, from, false)) + (size_t)t.at * size;
        char *to = (char *)coll->out + (size_t)t.to * size;
        if (to != source)
            memcpy(to, source, (size_t)t.count * size);
    }
    return td__control_meet(s->c, coll);
}

/* A gather whose root alone has its memory in an arena: every rank brings its part. */
static int arena_bring(td__shm *s, const td_coll *coll)
{
    size_t part = (size_t)coll->count * td_dtype_size(coll->dtype);
    char *to = td__shm_peer(s, coll, coll->root, true) + (size_t)s->me * part;
    if (to != coll->in)
        memcpy(to, coll->in, part);
    return td__control_meet(s->c, coll);
}

/* What rank j takes of this one: elements and where. */
static int64_t given(const td__shm *s, const td_coll *coll, int j, int64_t *at)
{
    bool scatters = coll->kind == TD_COLL_SCATTER;
    if ((scatters || coll->kind == TD_COLL_BROADCAST) && coll->root != s->me)
        return 0;
    *at = j && coll->in_counts ? *at + coll->in_counts[j - 1] : scatters || coll->kind == TD_COLL_ALL_TO_ALL ? j * coll->count : 0;
    return coll->in_counts ? coll->in_counts[j] : coll->counts ? coll->counts[s->me] : coll->count;
}

static int staged_move(td__shm *s, const td_coll *coll)
{
    const int64_t size = (int64_t)td_dtype_size(coll->dtype), largest = td__shm_largest(s, coll);
    const int slots = coll->kind == TD_COLL_SCATTER || coll->kind == TD_COLL_ALL_TO_ALL ? s->n : 1, slot = slots > 1 ? s->me : 0;
    const int64_t line = 64 / size, piece = slots > 1 ? TD_STAGE / size / slots / line * line : TD_STAGE / size;
    int from;
    for (int64_t done = 0; done < largest; done += piece, s->turn++) {
        char *stage = td__control_stage(s->c, s->me, s->turn);
        int64_t at = 0;
        for (int j = 0; j < slots; j++) {
            int64_t left = given(s, coll, j, &at) - done, n = left < piece ? left : piece;
            if (n > 0)
                memcpy(stage + j * piece * size, (const char *)coll->in + (at + done) * size, (size_t)(n * size));
        }
        int code = td__control_meet(s->c, coll);
        if (code)
            return code;
        for (int k = 0; k < s->n; k++) {
            td__taken t = next_part(s, k, &from);
            int64_t left = t.count - done, n = left < piece ? left : piece;
            char *to = (char *)coll->out + (t.to + done) * size;
            if (n > 0 && (from != s->me || to != (const char *)coll->in + (t.at + done) * size))
                memcpy(to, td__control_stage(s->c, from, s->turn) + slot * piece * size, (size_t)(n * size));
        }
    }
    return 0;
}

int td__shm_move(td__shm *s, const td_coll *coll)
{
    bool one = coll->kind == TD_COLL_BROADCAST || coll->kind == TD_COLL_SCATTER;
    if (coll->kind == TD_COLL_GATHER && td__shm_in_arena(s, coll, coll->root, true))
        return arena_bring(s, coll);
    td__shm_take(s, coll);
    return (one ? td__shm_in_arena(s, coll, coll->root, false) : td__shm_all_in_arena(s, coll, false)) ? arena_move(s, coll) : staged_move(s, coll);
}
