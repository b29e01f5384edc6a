/* tensor/cuda/attention_mma.cu: attention forward on tensor cores: f16 and bf16, heads up to 128, no mask (FlashAttention-2, Dao 2023).
 *
 * A block of 4 warps has 128 queries of one head, each warp 32 of them, and walks the keys 64 at a time: while one tile of keys and values is
 * worked on, the next is copied. Scores, their exponentials' sum and the output stay in registers in f32; probabilities are rounded
 * to 16 bits for the product with the values, the output once at the end. Powers are of 2: the scale carries log2(e).
 *
 * What the exponentials are relative to need not be the largest score so far: the output is rescaled only when that grew by more than 2^8 (the
 * quotient at the end is the same, and f32 and f16 have the room), so most tiles do without.
 */
#include "attention_mma.h"

namespace {
enum { WARPS = 4, MT = 2, QUERIES = WARPS * MT * 16, KEYS = 64, NT = KEYS / 8 };

template <int HD> struct forward_plan { enum { TILE = KEYS * HD * 2, BYTES = QUERIES * HD * 2 + 4 * TILE }; };
/* 128 columns of output leave no registers for the queries */
template <int HD> struct forward_queries { typedef att_rows_a<HD, MT> type; };
template <> struct forward_queries<128> { typedef att_rows_in_tile<128, MT> type; };

__device__ __forceinline__ float over_quad(float v, bool largest)
{
TD_UNROLL
    for (int by = 1; by <= 2; by *= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, v, by);
        v = largest ? fmaxf(v, other) : v + other;
    }
    return v;
}

template <class T, int HD>
__global__ void __launch_bounds__(WARPS * 32, 2)
mma_forward_kernel(td_attention_shape a, float scale2, T *out, float *lse, const T *q, const T *k, const T *v)
{
    typedef forward_plan<HD> plan;
    TD_SHARED(att_bytes, shared);
    att_bytes *const tiles = shared + QUERIES * HD * 2;        /* two stages of keys, then values                            */
    const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int t0 = (int)(a.causal ? gridDim.x - 1 - blockIdx.x : blockIdx.x) * QUERIES, mine = t0 + (int)threadIdx.x / 32 * (MT * 16), ts = (int)a.t, ss = (int)a.s;
    const int end = a.causal && t0 + QUERIES < ss ? t0 + QUERIES : ss;
    att_bytes *const my_queries = shared + threadIdx.x / 32 * (MT * 16) * (HD * 2);
    q = att_of_head(q, a.q);
    k = att_of_head(k, a.k);
    v = att_of_head(v, a.v);
    att_fetch<HD, QUERIES, WARPS * 32>(shared, q + t0 * a.q[2], a.q[2], ts - t0, (int)a.d);
    att_fetch<HD, KEYS, WARPS * 32>(tiles, k, a.k[2], ss, (int)a.d);
    att_fetch<HD, KEYS, WARPS * 32>(tiles + plan::TILE, v, a.v[2], ss, (int)a.d);
    td_copies_commit();

    typename forward_queries<HD>::type queries;
    float o[MT][HD / 8][4], most[MT][2], sum[MT][2];           /* most: times scale2                                         */
    att_zero(o);
TD_UNROLL
    for (int i = 0; i < MT; i++)
        most[i][0] = most[i][1] = -INFINITY, sum[i][0] = sum[i][1] = 0;
    int stage = 0;
    for (int s0 = 0; s0 < end; s0 += KEYS, stage ^= 1) {
        att_bytes *const now = tiles + stage * 2 * plan::TILE, *const next = tiles + (stage ^ 1) * 2 * plan::TILE;
        td_copies_wait<0>();
        __syncthreads();                       /* this tile is here, and nobody reads the one before                        */
        if (s0 == 0)
            queries.load(my_queries);
        if (s0 + KEYS < end) {
            att_fetch<HD, KEYS, WARPS * 32>(next, k + (s0 + KEYS) * a.k[2], a.k[2], ss - s0 - KEYS, (int)a.d);
            att_fetch<HD, KEYS, WARPS * 32>(next + plan::TILE, v + (s0 + KEYS) * a.v[2], a.v[2], ss - s0 - KEYS, (int)a.d);
            td_copies_commit();
        }
        if (mine >= ts || (a.causal && s0 > mine + MT * 16 - 1))
            continue;                          /* this warp has no such queries, or they see none of these keys              */
        float s[MT][NT][4];
        att_scores<T, HD, MT, NT>(s, queries, now);
        if (s0 + KEYS > ss || (a.causal && s0 + KEYS - 1 > mine))
            att_hide<false, MT, NT>(s, -INFINITY, a.causal, mine, s0, ss);
        float top[MT][2];
        bool grown = false;
TD_UNROLL
        for (int i = 0; i < MT; i++)
TD_UNROLL
            for (int r = 0; r < 2; r++) {
                float m = s[i][0][2 * r];
TD_UNROLL
                for (int n = 0; n < NT; n++)
                    m = fmaxf(m, fmaxf(s[i][n][2 * r], s[i][n][2 * r + 1]));        /* not a NaN: its power carries it on   */
                top[i][r] = fmaxf(most[i][r], over_quad(m, true) * scale2);
                grown |= top[i][r] - most[i][r] > 8;
            }
        if (__any_sync(0xffffffffu, grown)) {
TD_UNROLL
            for (int i = 0; i < MT; i++)
TD_UNROLL
                for (int r = 0; r < 2; r++) {
                    const float keep = top[i][r] == most[i][r] ? 1.0f : td_power2(most[i][r] - top[i][r]);
                    most[i][r] = top[i][r];
                    sum[i][r] *= keep;
TD_UNROLL
                    for (int c = 0; c < HD / 8; c++)
                        o[i][c][2 * r] *= keep, o[i][c][2 * r + 1] *= keep;
                }
        }
TD_UNROLL
        for (int i = 0; i < MT; i++)
TD_UNROLL
            for (int r = 0; r < 2; r++) {
                const float base = most[i][r] == -INFINITY ? 0.0f : most[i][r];
TD_UNROLL
                for (int n = 0; n < NT; n++)
TD_UNROLL
                    for (int e = 2 * r; e < 2 * r + 2; e++) {
                        s[i][n][e] = td_power2(fmaf(s[i][n][e], scale2, -base));
                        sum[i][r] += s[i][n][e];
                    }
            }
        att_gather<T, HD, MT, NT>(o, s, now + plan::TILE);
    }
    td_copies_wait<0>();                       /* where there is no key the queries may still be on their way into what follows */
    __syncthreads();
TD_UNROLL
    for (int i = 0; i < MT; i++)
TD_UNROLL
        for (int r = 0; r < 2; r++) {
            const float all = over_quad(sum[i][r], false), factor = all == 0 ? 0.0f : 1 / all;
            const int row = mine + i * 16 + r * 8 + g;
TD_UNROLL
            for (int c = 0; c < HD / 8; c++)
                o[i][c][2 * r] *= factor, o[i][c][2 * r + 1] *= factor;
            if (t == 0 && row < ts)
                lse[att_head(a) * a.t + row] = all == 0 ? -INFINITY : (most[i][r] + log2f(all)) * (float)(1 / ATT_LOG2E);
        }
    att_put<T, HD, MT>(att_of_head(out, a.out) + mine * a.out[2], a.out[2], ts - mine, (int)a.d, o, my_queries, false);
}

template <class T, int HD> void forward(const td_attention_shape *a, void *out, void *lse, const void *q, const void *k, const void *v)
{
    const dim3 grid = att_grid_of(a, a->t, QUERIES);
    if (att_empty(grid))
        return;
    TD_SHARED_UP_TO(forward_plan<HD>::BYTES, (mma_forward_kernel<T, HD>));
    TD_LAUNCH("attention_mma", grid, WARPS * 32, forward_plan<HD>::BYTES, (mma_forward_kernel<T, HD>), *a,
              (float)(a->scale * ATT_LOG2E), (T *)out, (float *)lse, (const T *)q, (const T *)k, (const T *)v);
}
}

extern "C" bool td__cuda_attention_mma(td_dtype t, const td_attention_shape *a, void *out, void *lse, const void *q, const void *k, const void *v)
{
    if (!att_mma_takes(t, a) || !td_packed(out) || !td_packed(q) || !td_packed(k) || !td_packed(v))
        return false;
    if (t == TD_F16 && a->d <= 64)
        forward<td_half, 64>(a, out, lse, q, k, v);
    else if (t == TD_F16)
        forward<td_half, 128>(a, out, lse, q, k, v);
    else if (a->d <= 64)
        forward<td_bfloat, 64>(a, out, lse, q, k, v);
    else
        forward<td_bfloat, 128>(a, out, lse, q, k, v);
    return true;
}
