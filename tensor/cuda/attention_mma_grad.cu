/* tensor/cuda/attention_mma_grad.cu: attention backward on tensor cores: f16 and bf16, heads up to 128, no mask.
 *
 * Three launches. stats_kernel makes of each query's row what the others need of it: its lse in powers of 2, and gout . out times the scale.
 * keys_kernel: a block has 128 keys and walks the queries for gk and gv; it computes scores turned, keys by queries, so that
 * probabilities are A fragments of both products. queries_kernel: a block has 128 queries and walks the keys for gq. Scores and their gradients are
 * so computed twice, 7 products where 5 are needed; in return nothing is added to by two blocks, no sum goes through memory, and
 * every order is fixed.
 *
 * The gradient of a score is rounded to 16 bits, with the scale in it: in f16 it has more room to the top than without.
 */
#include "attention_mma.h"

namespace {
/* lse2: of each row the lse times log2(e), +inf where the row saw nothing; delta: gout . out times the scale */
struct grad_input { const void *gout, *q, *k, *v; float *lse2, *delta; float scale, scale2; };

/* ---- rows of queries -------------------------------------------------------------------------------------------------------------------- */

/* HD/8 lanes a row */
template <class T, int HD>
__global__ void __launch_bounds__(TD_THREADS) stats_kernel(td_attention_shape a, grad_input b, const T *out, const float *lse)
{
    constexpr int TEAM = HD / 8;
    const int64_t row = ((int64_t)blockIdx.x * TD_THREADS + threadIdx.x) / TEAM, rows = a.n * a.h * a.t;
    const int c = threadIdx.x % TEAM * 8;
    float sum = 0;
    if (row < rows && c < a.d) {
        const int64_t head = row / a.t;
        const td_pack<T> g = *(const td_pack<T> *)((const T *)b.gout + row * a.d + c);
        const td_pack<T> o = *(const td_pack<T> *)(out + head / a.h * a.out[0] + head % a.h * a.out[1] + row % a.t * a.out[2] + c);
TD_UNROLL
        for (int i = 0; i < 8; i++)
            sum = fmaf(td_load<T>(g.v + i), td_load<T>(o.v + i), sum);
    }
TD_UNROLL
    for (int by = TEAM / 2; by > 0; by /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, by);
    if (row < rows && c == 0) {
        const float l = lse[row];
        b.lse2[row] = l == -INFINITY ? (float)INFINITY : l * (float)ATT_LOG2E;
        b.delta[row] = sum * b.scale;
    }
}

/* ---- gk, gv ----------------------------------------------------------------------------------------------------------------------------- */

/* The accumulators of 32 keys by 128 columns, twice, are more than the registers: there a warp has 16. */
template <int HD> struct keys_plan {
    enum { MT = HD == 64 ? 2 : 1, WARPS = HD == 64 ? 4 : 8, THREADS = WARPS * 32, KEYS = WARPS * MT * 16, QUERIES = 64, CHUNK = HD == 64 ? 32 : 64,
           NT = CHUNK / 8, TILE = QUERIES * HD * 2, STATS = QUERIES * 4, BYTES = 2 * KEYS * HD * 2 + 4 * TILE + 4 * STATS,
           BLOCKS = HD == 64 ? 2 : 1 };
};

template <class T, int HD>
__global__ void __launch_bounds__(keys_plan<HD>::THREADS, keys_plan<HD>::BLOCKS)
keys_kernel(td_attention_shape a, grad_input b, T *gk, T *gv, bool add_k, bool add_v)
{
    typedef keys_plan<HD> plan;
    enum { MT = plan::MT, NT = plan::NT, KEYS = plan::KEYS, QUERIES = plan::QUERIES, CHUNK = plan::CHUNK, THREADS = plan::THREADS };
    TD_SHARED(att_bytes, shared);
    att_bytes *const values = shared + KEYS * HD * 2, *const tiles = values + KEYS * HD * 2;      /* two stages of queries, then gout */
    float *const stats = (float *)(tiles + 4 * plan::TILE);    /* two stages of lse2, then delta                             */
    const int warp = (int)threadIdx.x / 32, t = threadIdx.x % 4;
    const int64_t head = att_head(a);
    const int s0 = (int)blockIdx.x * KEYS, mine = s0 + warp * (MT * 16), ts = (int)a.t, ss = (int)a.s;
    const T *const q = att_of_head((const T *)b.q, a.q), *const gout = (const T *)b.gout + head * a.t * a.d;
    const T *const k = att_of_head((const T *)b.k, a.k), *const v = att_of_head((const T *)b.v, a.v);
    const auto fetch = [&](int stage, int t0) {
        att_fetch<HD, QUERIES, THREADS>(tiles + stage * 2 * plan::TILE, q + t0 * a.q[2], a.q[2], ts - t0, (int)a.d);
        att_fetch<HD, QUERIES, THREADS>(tiles + (stage * 2 + 1) * plan::TILE, gout + (int64_t)t0 * a.d, a.d, ts - t0, (int)a.d);
        if (threadIdx.x < 2 * QUERIES) {
            const int r = threadIdx.x % QUERIES;
            td_copy_async<4>(stats + stage * 2 * QUERIES + threadIdx.x, (threadIdx.x < QUERIES ? b.lse2 : b.delta) + head * a.t + t0 + r, r < ts - t0);
        }
        td_copies_commit();
    };
    int t0 = a.causal ? s0 / QUERIES * QUERIES : 0;
    att_fetch<HD, KEYS, THREADS>(shared, k + s0 * a.k[2], a.k[2], ss - s0, (int)a.d);
    att_fetch<HD, KEYS, THREADS>(values, v + s0 * a.v[2], a.v[2], ss - s0, (int)a.d);
    fetch(0, t0 < ts ? t0 : 0);

    const att_rows_in_tile<HD, MT> my_keys = { shared + warp * (MT * 16) * (HD * 2) }, my_values = { values + warp * (MT * 16) * (HD * 2) };
    float acc_k[MT][HD / 8][4], acc_v[MT][HD / 8][4];
    att_zero(acc_k);
    att_zero(acc_v);
    for (int stage = 0; t0 < ts; t0 += QUERIES, stage ^= 1) {
        td_copies_wait<0>();
        __syncthreads();                       /* this tile is here, and nobody reads the one before                        */
        if (t0 + QUERIES < ts)
            fetch(stage ^ 1, t0 + QUERIES);
        if (mine >= ss)
            continue;
        for (int c = 0; c < QUERIES; c += CHUNK) {
            const int first = t0 + c;
            if (first >= ts || (a.causal && first + CHUNK - 1 < mine))
                continue;
            const att_bytes *const queries = tiles + stage * 2 * plan::TILE + c * (HD * 2), *const grads = queries + plan::TILE;
            const bool cut = first + CHUNK > ts || (a.causal && first < mine + MT * 16 - 1);
            const float *const lse2 = stats + stage * 2 * QUERIES + c + 2 * t, *const delta = lse2 + QUERIES;
            float p[MT][NT][4];
            att_scores<T, HD, MT, NT>(p, my_keys, queries);
TD_UNROLL
            for (int n = 0; n < NT; n++) {
                const float2 of = *(const float2 *)(lse2 + n * 8);
TD_UNROLL
                for (int i = 0; i < MT; i++)
TD_UNROLL
                    for (int e = 0; e < 4; e++)
                        p[i][n][e] = td_power2(fmaf(p[i][n][e], b.scale2, -(e % 2 ? of.y : of.x)));
            }
            if (cut)
                att_hide<true, MT, NT>(p, 0, a.causal, mine, first, ts);
            if (gv)
                att_gather<T, HD, MT, NT>(acc_v, p, grads);
            if (!gk)
                continue;
            float dp[MT][NT][4];
            att_scores<T, HD, MT, NT>(dp, my_values, grads);
TD_UNROLL
            for (int n = 0; n < NT; n++) {
                const float2 of = *(const float2 *)(delta + n * 8);
TD_UNROLL
                for (int i = 0; i < MT; i++)
TD_UNROLL
                    for (int e = 0; e < 4; e++)
                        p[i][n][e] *= fmaf(dp[i][n][e], b.scale, -(e % 2 ? of.y : of.x));
            }
            att_gather<T, HD, MT, NT>(acc_k, p, queries);
        }
    }
    td_copies_wait<0>();                       /* where no query sees these keys they may still be on their way              */
    __syncthreads();
    const int64_t at = (head * a.s + mine) * a.d;
    if (gk)
        att_put<T, HD, MT>(gk + at, a.d, ss - mine, (int)a.d, acc_k, shared + warp * (MT * 16) * (HD * 2), add_k);
    if (gv)
        att_put<T, HD, MT>(gv + at, a.d, ss - mine, (int)a.d, acc_v, values + warp * (MT * 16) * (HD * 2), add_v);
}

/* ---- gq --------------------------------------------------------------------------------------------------------------------------------- */

template <int HD> struct queries_plan {
    enum { MT = 2, WARPS = 4, THREADS = WARPS * 32, QUERIES = WARPS * MT * 16, KEYS = HD == 64 ? 64 : 32, CHUNK = 32, NT = CHUNK / 8,
           TILE = KEYS * HD * 2, BYTES = 2 * QUERIES * HD * 2 + 4 * TILE + QUERIES * 8 };
    static_assert((int)QUERIES == (int)THREADS, "a thread brings one row's statistics");
};

/* as fragments where registers are left */
template <int HD> struct grad_queries { typedef att_rows_a<HD, queries_plan<HD>::MT> type; };
template <> struct grad_queries<128> { typedef att_rows_in_tile<128, queries_plan<128>::MT> type; };

template <class T, int HD>
__global__ void __launch_bounds__(queries_plan<HD>::THREADS, 2) queries_kernel(td_attention_shape a, grad_input b, T *gq, bool add)
{
    typedef queries_plan<HD> plan;
    enum { MT = plan::MT, NT = plan::NT, KEYS = plan::KEYS, QUERIES = plan::QUERIES, CHUNK = plan::CHUNK, THREADS = plan::THREADS };
    TD_SHARED(att_bytes, shared);
    att_bytes *const grads = shared + QUERIES * HD * 2, *const tiles = grads + QUERIES * HD * 2;   /* two stages of keys, then values */
    float *const stats = (float *)(tiles + 4 * plan::TILE);    /* lse2, then delta                                            */
    const int warp = (int)threadIdx.x / 32, g = threadIdx.x % 32 / 4;
    const int64_t head = att_head(a);
    const int t0 = (int)(a.causal ? gridDim.x - 1 - blockIdx.x : blockIdx.x) * QUERIES, mine = t0 + warp * (MT * 16), ts = (int)a.t, ss = (int)a.s;
    const int end = a.causal && t0 + QUERIES < ss ? t0 + QUERIES : ss;
    const T *const q = att_of_head((const T *)b.q, a.q), *const gout = (const T *)b.gout + head * a.t * a.d;
    const T *const k = att_of_head((const T *)b.k, a.k), *const v = att_of_head((const T *)b.v, a.v);
    const auto fetch = [&](int stage, int s0) {
        att_fetch<HD, KEYS, THREADS>(tiles + stage * 2 * plan::TILE, k + s0 * a.k[2], a.k[2], ss - s0, (int)a.d);
        att_fetch<HD, KEYS, THREADS>(tiles + (stage * 2 + 1) * plan::TILE, v + s0 * a.v[2], a.v[2], ss - s0, (int)a.d);
        td_copies_commit();
    };
    att_fetch<HD, QUERIES, THREADS>(shared, q + t0 * a.q[2], a.q[2], ts - t0, (int)a.d);
    att_fetch<HD, QUERIES, THREADS>(grads, gout + (int64_t)t0 * a.d, a.d, ts - t0, (int)a.d);
    fetch(0, 0);

    const att_bytes *const of_queries = shared + warp * (MT * 16) * (HD * 2), *const of_grads = grads + warp * (MT * 16) * (HD * 2);
    typename grad_queries<HD>::type my_queries, my_grads;
    if constexpr (HD == 128)
        my_queries.load(of_queries), my_grads.load(of_grads);
    float acc[MT][HD / 8][4];
    att_zero(acc);
    stats[threadIdx.x] = t0 + (int)threadIdx.x < ts ? b.lse2[head * a.t + t0 + threadIdx.x] : 0;
    stats[QUERIES + threadIdx.x] = t0 + (int)threadIdx.x < ts ? b.delta[head * a.t + t0 + threadIdx.x] : 0;
    int stage = 0;
    for (int s0 = 0; s0 < end; s0 += KEYS, stage ^= 1) {
        td_copies_wait<0>();
        __syncthreads();                       /* this tile is here, and nobody reads the one before                        */
        if (HD == 64 && s0 == 0)
            my_queries.load(of_queries), my_grads.load(of_grads);
        if (s0 + KEYS < end)
            fetch(stage ^ 1, s0 + KEYS);
        if (mine >= ts)
            continue;
        for (int c = 0; c < KEYS; c += CHUNK) {
            const int first = s0 + c;
            if (first >= ss || (a.causal && first > mine + MT * 16 - 1))
                continue;
            const att_bytes *const keys = tiles + stage * 2 * plan::TILE + c * (HD * 2), *const values = keys + plan::TILE;
            const bool cut = first + CHUNK > ss || (a.causal && first + CHUNK - 1 > mine);
            float p[MT][NT][4], dp[MT][NT][4];
            att_scores<T, HD, MT, NT>(p, my_queries, keys);
            att_scores<T, HD, MT, NT>(dp, my_grads, values);
TD_UNROLL
            for (int i = 0; i < MT; i++)
TD_UNROLL
                for (int r = 0; r < 2; r++) {
                    const float lse2 = stats[warp * (MT * 16) + i * 16 + r * 8 + g], delta = stats[QUERIES + warp * (MT * 16) + i * 16 + r * 8 + g];
TD_UNROLL
                    for (int n = 0; n < NT; n++)
TD_UNROLL
                        for (int e = 2 * r; e < 2 * r + 2; e++)
                            p[i][n][e] = td_power2(fmaf(p[i][n][e], b.scale2, -lse2)) * fmaf(dp[i][n][e], b.scale, -delta);
                }
            if (cut)
                att_hide<false, MT, NT>(p, 0, a.causal, mine, first, ss);
            att_gather<T, HD, MT, NT>(acc, p, keys);
        }
    }
    td_copies_wait<0>();
    __syncthreads();
    att_put<T, HD, MT>(gq + (head * a.t + mine) * a.d, a.d, ts - mine, (int)a.d, acc, shared + warp * (MT * 16) * (HD * 2), add);
}

/* ---- launching -------------------------------------------------------------------------------------------------------------------------- */

template <class T, int HD>
void backward(const td_attention_shape *a, grad_input b, void *gq, void *gk, void *gv, const void *out, const void *lse, bool add_q, bool add_k, bool add_v)
{
    const dim3 queries = att_grid_of(a, a->t, queries_plan<HD>::QUERIES), keys = att_grid_of(a, a->s, keys_plan<HD>::KEYS);
    const int64_t rows = a->n * a->h * a->t;
    b.lse2 = (float *)td__cuda_scratch(sizeof(float) * 2 * (size_t)(rows + 1));
    if (!b.lse2)
        return;
    b.delta = b.lse2 + rows;
    if (rows > 0)
        TD_LAUNCH("attention_mma_grad", (unsigned)((rows * (HD / 8) + TD_THREADS - 1) / TD_THREADS), TD_THREADS, 0, (stats_kernel<T, HD>), *a, b,
                  (const T *)out, (const float *)lse);
    if ((gk || gv) && !att_empty(keys)) {
        TD_SHARED_UP_TO(keys_plan<HD>::BYTES, (keys_kernel<T, HD>));
        TD_LAUNCH("attention_mma_grad", keys, keys_plan<HD>::THREADS, keys_plan<HD>::BYTES, (keys_kernel<T, HD>), *a, b, (T *)gk,
                  (T *)gv, add_k, add_v);
    }
    if (gq && !att_empty(queries)) {
        TD_SHARED_UP_TO(queries_plan<HD>::BYTES, (queries_kernel<T, HD>));
        TD_LAUNCH("attention_mma_grad", queries, queries_plan<HD>::THREADS, queries_plan<HD>::BYTES, (queries_kernel<T, HD>), *a,
                  b, (T *)gq, add_q);
    }
    td__cuda_scratch_free(b.lse2);
}
}

extern "C" bool td__cuda_attention_mma_grad(td_dtype t, const td_attention_shape *a, void *gq, void *gk, void *gv, const void *gout, const void *out,
                                            const void *lse, const void *q, const void *k, const void *v, bool add_q, bool add_k, bool add_v)
{
    if (!att_mma_takes(t, a) || !td_packed(gq) || !td_packed(gk) || !td_packed(gv) || !td_packed(gout) || !td_packed(out) || !td_packed(q) ||
        !td_packed(k) || !td_packed(v))
        return false;
    const grad_input b = { gout, q, k, v, NULL, NULL, (float)a->scale, (float)(a->scale * ATT_LOG2E) };
    if (t == TD_F16 && a->d <= 64)
        backward<td_half, 64>(a, b, gq, gk, gv, out, lse, add_q, add_k, add_v);
    else if (t == TD_F16)
        backward<td_half, 128>(a, b, gq, gk, gv, out, lse, add_q, add_k, add_v);
    else if (a->d <= 64)
        backward<td_bfloat, 64>(a, b, gq, gk, gv, out, lse, add_q, add_k, add_v);
    else
        backward<td_bfloat, 128>(a, b, gq, gk, gv, out, lse, add_q, add_k, add_v);
    return true;
}
