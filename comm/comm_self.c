/* comm/comm_self.c: a world of one. A sum over one rank is its own part; everything else is a copy.
 */
#include "comm_room.h"

static int self_run(void *state, td_coll *coll)
{
    (void)state;
    const int64_t n = td__coll_alone(coll);
    bool reduces = coll->kind == TD_COLL_ALL_REDUCE || coll->kind == TD_COLL_REDUCE_SCATTER || coll->kind == TD_COLL_REDUCE;
    if (coll->kind == TD_COLL_BARRIER || n == 0)
        return 0;
    bool scaled = reduces && (coll->op == TD_SUM || coll->op == TD_MEAN) && (coll->pre != 1 || coll->post != 1);
    if (scaled)
        td__cpu_kernels()->combine(coll->dtype, TD_COMBINE_SUM, n, 1, &coll->in, &coll->pre, coll->post, &coll->out, 1);
    else if (coll->out != coll->in)
        memmove(coll->out, coll->in, (size_t)n * td_dtype_size(coll->dtype));
    return 0;
}

const td_comm_backend td__comm_self = { .name = "self", .run = self_run };
