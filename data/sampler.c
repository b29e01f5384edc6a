/* data/sampler.c: who sees which rows when. Pure functions of their arguments: no state, no clock, no rank.
 *
 * An epoch is one order of all rows. Global batch k is the rows k*batch*parts … of that order, and part r takes the r-th
 * share of it; so the rows of a step do not depend on how many parts there are, only on batch*parts. The last global batch
 * may be short: it is cut as evenly as possible, the first parts taking one row more, so that every part has the same number of
 * batches and no row is repeated or dropped.
 */
#include "data_impl.h"

int64_t td__batches(int64_t rows, int64_t batch, int parts, bool drop_last)
{
    int64_t global = batch * parts;
    return rows / global + (!drop_last && rows % global != 0);
}

td__share td__shard(int64_t k, int part, int parts, int64_t batch, int64_t rows)
{
    int64_t global = batch * parts, first = k * global;
    int64_t here = rows - first < global ? rows - first : global;
    int64_t even = here / parts, more = here % parts;
    return (td__share){ .first = first + part * even + (part < more ? part : more), .rows = even + (part < more) };
}

/* Uniform in [0, n) from the counters of (epoch, i): the top half of a 64 x 64 bit product, its bias removed by rejection (Lemire
 * 2019). Attempts count in the counter's top bits, which no epoch reaches. The key differs from that of td_rand with the same seed, so that
 * an order is not made of the same bits as somebody's data. */
static uint64_t below(uint64_t n, uint64_t seed, uint64_t epoch, uint64_t i)
{
    uint64_t reject = -n % n;                  /* 2^64 mod n */
    for (uint64_t attempt = 0;; attempt++) {
        td_philox r = td__philox(seed ^ 0x53414D504C455253u, epoch + (attempt << 48), i);
        for (int half = 0; half < 4; half += 2) {
            __uint128_t product = (__uint128_t)((uint64_t)r.v[half + 1] << 32 | r.v[half]) * n;
            if ((uint64_t)product >= reject)
                return (uint64_t)(product >> 64);
        }
    }
}

/* Fisher and Yates 1938, from the top down (Durstenfeld 1964). */
void td__epoch_order(uint64_t seed, int64_t epoch, int64_t rows, int64_t *order)
{
    for (int64_t i = 0; i < rows; i++)
        order[i] = i;
    for (int64_t i = rows - 1; i > 0; i--) {
        int64_t j = (int64_t)below((uint64_t)i + 1, seed, (uint64_t)epoch, (uint64_t)i);
        int64_t moved = order[i];
        order[i] = order[j];
        order[j] = moved;
    }
}
