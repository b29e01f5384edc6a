/* comm/uneven.c: all_to_all of uneven parts, and counts of elements that outlive a call.
 *
 * What rank i says that it sends to rank j must be what j says that it receives from i. MPI and NCCL hang, cut off or write too far where it is not;
 * so the ranks tell each other first, in two small even collectives before the data, which take turns of their own: numbers and their places
 * (an all_to_all), then whether anybody found a difference and how large the largest part is (an all_gather). All ranks end with the same sentence.
 */
#include <stdio.h>
#include "comm_room.h"

/* Of what all ranks must pass alike: of an all_to_all only that it is uneven. Never 0. */
uint32_t td__uneven_hash(const td_coll *coll)
{
    uint64_t hash = 14695981039346656037u;
    for (int i = 0; coll->kind == TD_COLL_ALL_GATHER && i < coll->parts; i++)
        for (int b = 0; b < 64; b += 8)
            hash = (hash ^ (((uint64_t)coll->counts[i] >> b) & 255)) * 1099511628211u;
    return (uint32_t)(hash ^ hash >> 32) | 1;
}

int td__uneven_keep(td_work *work)
{
    td_coll *coll = &work->coll;
    const size_t n = (size_t)coll->parts, bytes = n * sizeof(int64_t);
    if (!coll->counts)
        return 0;
    if (work->counts_room < 2 * coll->parts) {
        td__free(work->counts);
        work->counts_room = 0;
        work->counts = td__alloc(2 * bytes);
        if (!work->counts)
            return td__pending();
        work->counts_room = 2 * coll->parts;
    }
    memcpy(work->counts, coll->counts, bytes);
    coll->counts = work->counts;
    if (coll->in_counts) {
        memcpy(work->counts + n, coll->in_counts, bytes);
        coll->in_counts = work->counts + n;
    }
    return 0;
}

enum { WORD = 4 };                             /* partner whose number differs + 1 (0: none), it sends, is expected, the largest part     */

static void look(int n, const td_coll *coll, const int64_t *from, int64_t word[WORD])
{
    memset(word, 0, WORD * sizeof *word);
    for (int i = 0; i < n; i++) {
        if (from[2 * i] != coll->counts[i] && !word[0])
            word[0] = i + 1, word[1] = from[2 * i], word[2] = coll->counts[i];
        if (coll->in_counts[i] > word[3])
            word[3] = coll->in_counts[i];
    }
}

/* The same on every rank, as words are. */
static int judge(td_comm *comm, td_coll *coll, const int64_t *words)
{
    char call[TD_CALL_TEXT], text[TD_SENTENCE];
    coll->most = 0;
    for (int r = 0; r < comm->size; r++) {
        const int64_t *w = words + (size_t)r * WORD;
        coll->most = w[3] > coll->most ? w[3] : coll->most;
        if (!w[0])
            continue;
        td__coll_call_text(coll, call);
        snprintf(text, sizeof text, "rank %d sends %lld elements to rank %d, which expects %lld from it, in %s",
                 td__comm_world_rank(comm, (int)w[0] - 1), (long long)w[1], td__comm_world_rank(comm, r), (long long)w[2], call);
        return comm->control ? td__verdict(comm->control, TD_ERR_MISMATCH, text) : td__comm_fail(comm, TD_ERR_MISMATCH, "%s", text);
    }
    return 0;
}

/* run: takes a turn. On the host in the executing thread, for a device as collectives of the host. */
static int agree(td_comm *comm, td_coll *coll, int (*run)(td_comm *comm, td_coll *part), bool here)
{
    const size_t n = (size_t)comm->size;
    if (!comm->uneven)
        comm->uneven = td__alloc(n * (4 + WORD) * sizeof(int64_t) + WORD * sizeof(int64_t));
    if (!comm->uneven)
        return td__comm_fail(comm, TD_ERR_MEMORY, "rank %d: no memory to compare the counts of an all_to_all of %d ranks", comm->rank, comm->size);
    int64_t *mine = comm->uneven, *from = mine + 2 * n, *words = from + 2 * n, *word = words + WORD * n, at = 0;
    for (size_t i = 0; i < n; at += coll->in_counts[i++])
        mine[2 * i] = coll->in_counts[i], mine[2 * i + 1] = at;
    td_coll part = { .kind = TD_COLL_ALL_TO_ALL, .dtype = TD_I64, .in = mine, .out = from, .count = 2, .pre = 1, .post = 1, .plain = true,
                     .seq = coll->seq, .turn = coll->turn - 2, .site = coll->site, .group = coll->group,
                     .label = here ? coll->label : "counts of all_to_all",
                     .whole = here ? coll : NULL, .arrived = coll->arrived };
    int code = run(comm, &part);
    coll->last_arrived = part.last_arrived, coll->last_rank = part.last_rank;
    if (code)
        return code;
    look(comm->size, coll, from, word);
    part.kind = TD_COLL_ALL_GATHER, part.in = word, part.out = words, part.count = WORD, part.turn = coll->turn - 1;
    code = run(comm, &part);
    coll->from = from;
    return code ? code : judge(comm, coll, words);
}

int td__uneven_agree(td_comm *comm, td_coll *coll)
{
    return agree(comm, coll, td__comm_take_turn, true);
}

int td__uneven_agree_by_host(td_comm *comm, td_coll *coll)
{
    coll->seq = comm->seq + 3;                 /* the number that it will have, for sentences                                     */
    int code = agree(comm, coll, td__coll_run, false);
    coll->from = NULL;                         /* the next one's counts go there before this one has run                            */
    return code;
}
