/* tensor/cpu/batch_norm.h: how channels are walked by batch_norm.c and batch_norm_relu.c, and their rows (batch_norm_rows.h) in both types.
 *
 * x is (n, c, inner). A channel's rows lie c * inner apart, once per image, and are read more than once: for its sums, then for the result. So a few
 * neighbouring channels are walked together: as many as stay in the second cache, and their rows make one run. Where not even one stays, short rows are taken
 * in the order of memory, many channels at once: jumping from one to the next costs more than reading them from memory again. What is computed of a channel does not
 * depend on its neighbours, so how many they are may depend on the number of threads.
 */
#ifndef TD_BATCH_NORM_H
#define TD_BATCH_NORM_H
#include <omp.h>
#include "cpu.h"
#include "moments.h"
#include "stream.h"

enum { TOGETHER_MOST = 64, TOGETHER_BYTES = 512 << 10, LONG_ROW = 32 << 10 };

/* Channels walked together where `bytes` are read per element. */
static inline int64_t channels_together(int64_t n, int64_t c, int64_t inner, size_t bytes)
{
    const int64_t threads = omp_in_parallel() ? 1 : omp_get_max_threads(), each = n * inner * (int64_t)bytes, share = (c + threads - 1) / threads;
    const bool stays = each <= TOGETHER_BYTES, short_rows = inner * (int64_t)bytes < LONG_ROW;
    int64_t most = stays && each > 0 ? TOGETHER_BYTES / each : short_rows ? TOGETHER_MOST : 1;
    most = most > TOGETHER_MOST ? TOGETHER_MOST : most;
    most = most > share ? share : most;
    return most > 1 ? most : 1;
}

/* Do results of so many bytes pass the caches? Rows shorter than a block would go in pieces of lines. */
static inline bool norm_streamed(int64_t n, int64_t c, int64_t inner, size_t size)
{
    return inner >= TD_BLOCK && n * c * inner * (int64_t)size >= TD_STREAM_BYTES;
}

#define T float
#define F(name) name##_f32
#include "batch_norm_rows.h"
#undef T
#undef F
#define T double
#define F(name) name##_f64
#include "batch_norm_rows.h"
#undef T
#undef F
#endif
