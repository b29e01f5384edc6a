/* tensor/cuda/attention.cu: softmax(scale * q k^T + mask) v and its gradients without the matrix of scores (FlashAttention-2, Dao 2023).
 *
 * Twin of ../cpu/attention.c. Forward: a block has a tile of queries of one head and walks that head's key tiles in order, with each row's maximum
 * and sum so far, rescaling what it has of the output when the maximum grows. Backward computes a tile's probabilities again from the
 * saved log-sum-exp, twice: a block with a tile of queries walks the keys for gq, a block with a tile of keys walks the queries for gk and
 * gv. So nothing is added to by two blocks, and the order of every sum is fixed.
 *
 * 256 threads hold a tile of 16*R x 16*R scores: thread (ty,tx) rows ty*R …, columns tx, tx + 16 … Products over the head size run through
 * shared memory 16 elements at a time; a block makes at most 16*CN columns of its results, a larger head is cut among blocks that compute the same
 * scores. So any head size works. 16-bit values are widened as they are read, scores and sums are f32; lse and delta, too. These are the kernels of
 * f32 and f64, masks, odd heads and strides; the rest of f16 and bf16 runs on tensor cores (attention_mma.h).
 *
 * Causal is aligned at the top left. A row that sees no key is zero, its lse -inf, and it gives no gradient. NaN is never taken for that.
 */
#include "attention_mma.h"

enum { STEP = 16, PAD = 4 };

__device__ __forceinline__ float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double fused(double a, double b, double c) { return fma(a, b, c); }
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

template <class W, int R, int CN> struct att_shared {
    W a[STEP][16 * R + PAD], b[STEP][16 * R + PAD], x[STEP][16 * CN], p[16 * R][16 * R + PAD];   /* p: by column, then row */
};

/* rows (… , d) of a head: their first, the distance between rows, and how many there are from here on */
template <class T> struct att_rows { const T *p; int64_t step, n; };

template <class T> __device__ __forceinline__ att_rows<T> rows_of(const T *p, const td_attention_shape &a, const int64_t (&stride)[3], int64_t head,
                                                                 int64_t first, int64_t n)
{
    return { p + head / a.h * stride[0] + head % a.h * stride[1] + first * stride[2], stride[2], n - first };
}

template <class T> __device__ __forceinline__ att_rows<T> dense_rows(const T *p, int64_t d, int64_t head, int64_t first, int64_t n)
{
    return { p + (head * n + first) * d, d, n - first };
}

/* into[c][r] = x[r][c0 + c], zero outside */
template <class T, class W, int R> __device__ __forceinline__ void load_turned(W (&into)[STEP][16 * R + PAD], const att_rows<T> &x, int64_t c0, int64_t d)
{
    const int c = threadIdx.x % STEP;
#pragma unroll
    for (int i = 0; i < R; i++) {
        const int r = threadIdx.x / STEP + 16 * i;
        into[c][r] = r < x.n && c0 + c < d ? td_load<T>(x.p + r * x.step + c0 + c) : (W)0;
    }
}

/* acc = the products of this thread's rows of a with its columns, rows of b */
template <class T, class W, int R, int CN>
__device__ __forceinline__ void scores(W (&acc)[R][R], att_shared<W, R, CN> &sh, const att_rows<T> &a, const att_rows<T> &b, int64_t d)
{
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int c = 0; c < R; c++)
            acc[r][c] = 0;
    for (int64_t c0 = 0; c0 < d; c0 += STEP) {
        __syncthreads();
        load_turned<T, W, R>(sh.a, a, c0, d);
        load_turned<T, W, R>(sh.b, b, c0, d);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            W x[R], y[R];
#pragma unroll
            for (int r = 0; r < R; r++)
                x[r] = sh.a[k][ty * R + r], y[r] = sh.b[k][tx + 16 * r];
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int c = 0; c < R; c++)
                    acc[r][c] = fused(x[r], y[c], acc[r][c]);
        }
    }
}

/* acc += p, read by this thread's rows, times columns c0 … of x. Begins and goes on with a barrier: p may just have been written. */
template <class T, class W, int R, int CN>
__device__ __forceinline__ void gather(W (&acc)[R][CN], att_shared<W, R, CN> &sh, const att_rows<T> &x, int64_t c0, int64_t d)
{
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    for (int k0 = 0; k0 < 16 * R && k0 < x.n; k0 += STEP) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < CN; i++) {
            const int at = threadIdx.x + 256 * i, k = at / (16 * CN), c = at % (16 * CN);
            sh.x[k][c] = k0 + k < x.n && c0 + c < d ? td_load<T>(x.p + (k0 + k) * x.step + c0 + c) : (W)0;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            W p[R];
#pragma unroll
            for (int r = 0; r < R; r++)
                p[r] = sh.p[k0 + k][ty * R + r];
#pragma unroll
            for (int c = 0; c < CN; c++) {
                const W v = sh.x[k][tx + 16 * c];
#pragma unroll
                for (int r = 0; r < R; r++)
                    acc[r][c] = fused(p[r], v, acc[r][c]);
            }
        }
    }
}

/* The score of query t and key s with scale and mask; -inf where t does not see s. */
template <class T> __device__ __forceinline__ td_wide<T> seen(const td_attention_shape &a, const void *mask, int64_t head, int64_t t, int64_t s, td_wide<T> v)
{
    if (t >= a.t || s >= a.s || (a.causal && s > t))
        return -(td_wide<T>)INFINITY;
    v *= (td_wide<T>)a.scale;
    if (!mask)
        return v;
    const int64_t at = head / a.h * a.mask[0] + head % a.h * a.mask[1] + t * a.mask[2] + s * a.mask[3];
    if (a.mask_bool)
        return ((const uint8_t *)mask)[at] ? v : -(td_wide<T>)INFINITY;
    return v + td_load<T>((const T *)mask + at);
}

template <class W> __device__ __forceinline__ W probability(W score, W lse)
{
    return score == -(W)INFINITY || lse == -(W)INFINITY ? (W)0 : exponential(score - lse);
}

/* Over the 16 threads that share rows. */
template <class W, class O> __device__ __forceinline__ W across(W v, O op)
{
    for (int m = 8; m > 0; m >>= 1)
        v = op(v, __shfl_xor_sync(0xffffffffu, v, m));
    return v;
}
struct att_larger { template <class W> __device__ __forceinline__ W operator()(W a, W b) const { return b > a ? b : a; } };

/* ---- forward ----------------------------------------------------------------------------------------------------------------------- */

/* Block: heads change faster than tiles, and chunks of columns fastest; the last tile, with causal the longest, first. */
struct att_grid { int64_t heads, tiles, chunks; };
__device__ __forceinline__ void place(const att_grid &g, int64_t &tile, int64_t &head, int64_t &chunk)
{
    const int64_t b = blockIdx.x;
    chunk = b % g.chunks;
    head = b / g.chunks % g.heads;
    tile = g.tiles - 1 - b / g.chunks / g.heads;
}

template <class T, int R, int CN>
__global__ void __launch_bounds__(256) forward_kernel(td_attention_shape a, att_grid g, T *out, td_wide<T> *lse, const T *q, const T *k, const T *v,
                                                      const void *mask)
{
    typedef td_wide<T> W;
    __shared__ att_shared<W, R, CN> sh;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    int64_t tile, head, chunk;
    place(g, tile, head, chunk);
    const int64_t t0 = tile * 16 * R, c0 = chunk * 16 * CN, end = a.causal && t0 + 16 * R < a.s ? t0 + 16 * R : a.s;
    W most[R], sum[R], acc[R][CN];
#pragma unroll
    for (int r = 0; r < R; r++) {
        most[r] = -(W)INFINITY, sum[r] = 0;
#pragma unroll
        for (int c = 0; c < CN; c++)
            acc[r][c] = 0;
    }
    for (int64_t s0 = 0; s0 < end; s0 += 16 * R) {
        W p[R][R];
        scores<T, W, R, CN>(p, sh, rows_of(q, a, a.q, head, t0, a.t), rows_of(k, a, a.k, head, s0, a.s), a.d);
#pragma unroll
        for (int r = 0; r < R; r++) {
            W top = most[r], part = 0;
#pragma unroll
            for (int c = 0; c < R; c++) {
                p[r][c] = seen<T>(a, mask, head, t0 + ty * R + r, s0 + tx + 16 * c, p[r][c]);
                top = p[r][c] > top ? p[r][c] : top;           /* not a NaN: its exponential carries it on              */
            }
            top = across(top, att_larger());
            const W keep = top == most[r] ? (W)1 : exponential(most[r] - top);
#pragma unroll
            for (int c = 0; c < R; c++) {
                const W e = p[r][c] == -(W)INFINITY ? (W)0 : exponential(p[r][c] - top);
                part += e;
                sh.p[tx + 16 * c][ty * R + r] = e;
            }
            most[r] = top;
            sum[r] = sum[r] * keep + part;
#pragma unroll
            for (int c = 0; c < CN; c++)
                acc[r][c] *= keep;
        }
        gather<T, W, R, CN>(acc, sh, rows_of(v, a, a.v, head, s0, a.s), c0, a.d);
    }
    T *into = out + head / a.h * a.out[0] + head % a.h * a.out[1];
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int64_t t = t0 + ty * R + r;
        const W all = across(sum[r], td_op_sum()), factor = 1 / all;
        if (t >= a.t)
            continue;
#pragma unroll
        for (int c = 0; c < CN; c++)
            if (c0 + tx + 16 * c < a.d)
                td_store<T>(into + t * a.out[2] + c0 + tx + 16 * c, all == 0 ? (W)0 : acc[r][c] * factor);
        if (tx == 0 && chunk == 0)
            lse[head * a.t + t] = all == 0 ? -(W)INFINITY : most[r] + (W)log((double)all);
    }
}

/* ---- backward ---------------------------------------------------------------------------------------------------------------------- */

/* delta: gout . out of a row, a warp each */
template <class T> __global__ void __launch_bounds__(TD_THREADS) delta_kernel(td_attention_shape a, td_wide<T> *delta, const T *gout, const T *out)
{
    const int64_t row = ((int64_t)blockIdx.x * TD_THREADS + threadIdx.x) / 32, rows = a.n * a.h * a.t;
    double sum = 0;
    if (row < rows) {
        const att_rows<T> o = rows_of(out, a, a.out, row / a.t, row % a.t, a.t);
        for (int64_t c = threadIdx.x % 32; c < a.d; c += 32)
            sum += (double)td_load<T>(gout + row * a.d + c) * (double)td_load<T>(o.p + c);
    }
    sum = td_warp_all(sum, td_op_sum());
    if (row < rows && threadIdx.x % 32 == 0)
        delta[row] = (td_wide<T>)sum;
}

template <class T> struct att_backward {
    const T *gout, *q, *k, *v;
    const td_wide<T> *lse, *delta;
    const void *mask;
};

template <class T, int R, int CN>
__global__ void __launch_bounds__(256) queries_kernel(td_attention_shape a, att_grid g, att_backward<T> b, T *gq, bool add)
{
    typedef td_wide<T> W;
    __shared__ att_shared<W, R, CN> sh;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    int64_t tile, head, chunk;
    place(g, tile, head, chunk);
    const int64_t t0 = tile * 16 * R, c0 = chunk * 16 * CN, end = a.causal && t0 + 16 * R < a.s ? t0 + 16 * R : a.s;
    W acc[R][CN], lse[R], delta[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        const bool there = t0 + ty * R + r < a.t;
        lse[r] = there ? b.lse[head * a.t + t0 + ty * R + r] : -(W)INFINITY;
        delta[r] = there ? b.delta[head * a.t + t0 + ty * R + r] : 0;
#pragma unroll
        for (int c = 0; c < CN; c++)
            acc[r][c] = 0;
    }
    for (int64_t s0 = 0; s0 < end; s0 += 16 * R) {
        W p[R][R], dp[R][R];
        const att_rows<T> keys = rows_of(b.k, a, a.k, head, s0, a.s);
        scores<T, W, R, CN>(p, sh, rows_of(b.q, a, a.q, head, t0, a.t), keys, a.d);
        scores<T, W, R, CN>(dp, sh, dense_rows(b.gout, a.d, head, t0, a.t), rows_of(b.v, a, a.v, head, s0, a.s), a.d);
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int c = 0; c < R; c++) {
                const W s = seen<T>(a, b.mask, head, t0 + ty * R + r, s0 + tx + 16 * c, p[r][c]);
                sh.p[tx + 16 * c][ty * R + r] = probability(s, lse[r]) * (dp[r][c] - delta[r]);
            }
        gather<T, W, R, CN>(acc, sh, keys, c0, a.d);
    }
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int c = 0; c < CN; c++)
            if (t0 + ty * R + r < a.t && c0 + tx + 16 * c < a.d)
                td_put<T>(gq + (head * a.t + t0 + ty * R + r) * a.d + c0 + tx + 16 * c, acc[r][c] * (W)a.scale, add);
}

template <class T, int R, int CN>
__global__ void __launch_bounds__(256) keys_kernel(td_attention_shape a, att_grid g, att_backward<T> b, T *gk, T *gv, bool add_k, bool add_v)
{
    typedef td_wide<T> W;
    __shared__ att_shared<W, R, CN> sh;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    int64_t tile, head, chunk;
    place(g, tile, head, chunk);
    tile = g.tiles - 1 - tile;                         /* with causal the first keys are the longest                          */
    const int64_t s0 = tile * 16 * R, c0 = chunk * 16 * CN;
    W acc_k[R][CN], acc_v[R][CN];
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int c = 0; c < CN; c++)
            acc_k[r][c] = acc_v[r][c] = 0;
    for (int64_t t0 = a.causal ? s0 : 0; t0 < a.t; t0 += 16 * R) {
        W p[R][R], dp[R][R];
        const att_rows<T> queries = rows_of(b.q, a, a.q, head, t0, a.t), gout = dense_rows(b.gout, a.d, head, t0, a.t);
        scores<T, W, R, CN>(p, sh, rows_of(b.k, a, a.k, head, s0, a.s), queries, a.d);
        if (gk)
            scores<T, W, R, CN>(dp, sh, rows_of(b.v, a, a.v, head, s0, a.s), gout, a.d);
#pragma unroll
        for (int c = 0; c < R; c++) {
            const int64_t t = t0 + tx + 16 * c;
            const W lse = t < a.t ? b.lse[head * a.t + t] : -(W)INFINITY, delta = gk && t < a.t ? b.delta[head * a.t + t] : 0;
#pragma unroll
            for (int r = 0; r < R; r++) {
                p[r][c] = probability(seen<T>(a, b.mask, head, t, s0 + ty * R + r, p[r][c]), lse);
                if (gk)
                    dp[r][c] = p[r][c] * (dp[r][c] - delta);
                if (gv)
                    sh.p[tx + 16 * c][ty * R + r] = p[r][c];
            }
        }
        if (gv)
            gather<T, W, R, CN>(acc_v, sh, gout, c0, a.d);
        if (!gk)
            continue;
        __syncthreads();
#pragma unroll
        for (int c = 0; c < R; c++)
#pragma unroll
            for (int r = 0; r < R; r++)
                sh.p[tx + 16 * c][ty * R + r] = dp[r][c];
        gather<T, W, R, CN>(acc_k, sh, queries, c0, a.d);
    }
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int c = 0; c < CN; c++) {
            const int64_t at = (head * a.s + s0 + ty * R + r) * a.d + c0 + tx + 16 * c;
            if (s0 + ty * R + r >= a.s || c0 + tx + 16 * c >= a.d)
                continue;
            if (gk)
                td_put<T>(gk + at, acc_k[r][c] * (W)a.scale, add_k);
            if (gv)
                td_put<T>(gv + at, acc_v[r][c], add_v);
        }
}

/* ---- launching --------------------------------------------------------------------------------------------------------------------- */

/* Tiles of 64 x 64 scores in f32, 32 x 32 in f64. */
template <class T> struct att_tile { enum { R = 4 }; };
template <> struct att_tile<double> { enum { R = 2 }; };

template <class T, int CN> static att_grid grid_of(const td_attention_shape *a, int64_t rows)
{
    const int64_t tile = 16 * att_tile<T>::R;
    return { a->n * a->h, (rows + tile - 1) / tile, (a->d + 16 * CN - 1) / (16 * CN) };
}

static unsigned blocks_of(const att_grid &g)
{
    return (unsigned)(g.heads * g.tiles * g.chunks);
}

template <class T, int CN>
static void forward(const td_attention_shape *a, T *out, td_wide<T> *lse, const T *q, const T *k, const T *v, const void *mask)
{
    const att_grid g = grid_of<T, CN>(a, a->t);
    if (blocks_of(g))
        TD_LAUNCH("attention", blocks_of(g), 256, 0, (forward_kernel<T, att_tile<T>::R, CN>), *a, g, out, lse, q, k, v, mask);
}

template <class T, int CN>
static void backward(const td_attention_shape *a, const att_backward<T> &b, T *gq, T *gk, T *gv, bool add_q, bool add_k, bool add_v)
{
    enum { R = att_tile<T>::R };
    const att_grid queries = grid_of<T, CN>(a, a->t), keys = grid_of<T, CN>(a, a->s);
    if (gq && blocks_of(queries))
        TD_LAUNCH("attention_grad", blocks_of(queries), 256, 0, (queries_kernel<T, R, CN>), *a, queries, b, gq, add_q);
    if ((gk || gv) && blocks_of(keys))
        TD_LAUNCH("attention_grad", blocks_of(keys), 256, 0, (keys_kernel<T, R, CN>), *a, keys, b, gk, gv, add_k, add_v);
}

template <class T> static void backward_all(const td_attention_shape *a, att_backward<T> b, const T *out, T *gq, T *gk, T *gv, bool add_q,
                                            bool add_k, bool add_v)
{
    typedef td_wide<T> W;
    const int64_t rows = a->n * a->h * a->t;
    W *delta = NULL;
    if ((gq || gk) && rows > 0) {
        delta = (W *)td__cuda_scratch(sizeof(W) * (size_t)rows);
        if (!delta)
            return;
        TD_LAUNCH("attention_grad", (unsigned)((rows + TD_THREADS / 32 - 1) / (TD_THREADS / 32)), TD_THREADS, 0, (delta_kernel<T>), *a, delta, b.gout, out);
    }
    b.delta = delta;
    if (a->d <= 64)
        backward<T, 4>(a, b, gq, gk, gv, add_q, add_k, add_v);
    else
        backward<T, 8>(a, b, gq, gk, gv, add_q, add_k, add_v);
    if (delta)
        td__cuda_scratch_free(delta);
}

/* ---- rows -------------------------------------------------------------------------------------------------------------------------- */
extern "C" {
void td__cuda_attention(td_dtype t, const td_attention_shape *a, void *out, void *lse, const void *q, const void *k, const void *v,
                        const void *mask)
{
    if (!mask && td__cuda_attention_mma(t, a, out, lse, q, k, v))
        return;
    TD_CUDA_FLOAT(t, T, {
        if (a->d <= 64)
            forward<T, 4>(a, (T *)out, (td_wide<T> *)lse, (const T *)q, (const T *)k, (const T *)v, mask);
        else
            forward<T, 8>(a, (T *)out, (td_wide<T> *)lse, (const T *)q, (const T *)k, (const T *)v, mask);
    });
}

void td__cuda_attention_grad(td_dtype t, const td_attention_shape *a, void *gq, void *gk, void *gv, const void *gout, const void *out,
                             const void *lse, const void *q, const void *k, const void *v, const void *mask, bool add_q, bool add_k, bool add_v)
{
    if (!mask && td__cuda_attention_mma_grad(t, a, gq, gk, gv, gout, out, lse, q, k, v, add_q, add_k, add_v))
        return;
    TD_CUDA_FLOAT(t, T, {
        const att_backward<T> b = { (const T *)gout, (const T *)q, (const T *)k, (const T *)v, (const td_wide<T> *)lse, NULL, mask };
        backward_all<T>(a, b, (const T *)out, (T *)gq, (T *)gk, (T *)gv, add_q, add_k, add_v);
    });
}
}
