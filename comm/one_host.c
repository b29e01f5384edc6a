/* comm/one_host.c: memory of the ranks of one host, for who moves bytes between them itself.
 *
 * A collective moves what it was called for and nothing happens in between. Who wants to work on other ranks' memory block by block (ddp's one pass:
 * reduce, step and store while a block is in cache) asks for its address here, and meets the others before and behind: a meeting is a collective
 * that moves a word and a factor of each rank. Its fingerprint, deadline and sentences are those of every collective.
 */
#include "comm_room.h"

_Atomic int td__comm_owed;
void (*td__comm_pay)(void);

bool td__comm_one_host(const td_comm *comm)
{
    return comm->size > 1 && comm->backend == &td__comm_shm && comm->reach.n == comm->size;
}

int64_t td__comm_place(const td_comm *comm, const void *data)
{
    const size_t at = (size_t)((uintptr_t)data - (uintptr_t)comm->reach.base[comm->rank]);
    return data && at < comm->reach.bytes[comm->rank] ? (int64_t)at : -1;
}

void *td__comm_reach(const td_comm *comm, int rank, int64_t place)
{
    return (char *)comm->reach.base[rank] + place;
}

int td__comm_meet(td_comm *comm, td_coll *coll)
{
    coll->kind = TD_COLL_MEET;
    coll->post = 1;
    return td__coll_run(comm, coll);
}

void td__comm_give_back(td_comm *comm)
{
    if (comm->reach.arena)
        td__arena_trim(comm->reach.arena);
}
