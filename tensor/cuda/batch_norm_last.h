/* tensor/cuda/batch_norm_last.h: the two passes of batch normalisation over rows of channels (inner 1: features, or images with the channels last),
 * as fast as memory is. Internal to batch_norm.cu.
 *
 * A thread keeps 16 bytes of neighbouring channels and goes down the rows of a part, so that what is per channel stays in registers. 16-bit images
 * are summed in f32 by the thread (some hundred terms) and in double from there on; f32 and f64 in double. Squares are of differences from the
 * part's first row, so a large mean costs no digits.
 */
#ifndef TD_CUDA_BATCH_NORM_LAST_H
#define TD_CUDA_BATCH_NORM_LAST_H
#include "vector.h"

typedef struct { int64_t n, c, inner, count, size, parts; } extent;      /* count: n*inner; a part: `size` of them (of n where inner is 1) */

/* How relu stands behind the norm. In a gradient: where it was positive is told by a*x + d, or by y, its result. */
enum relu_mode { PLAIN, RELU, RELU_X, RELU_Y };

template <class T> struct sum_of { typedef double type; };
template <> struct sum_of<td_half> { typedef float type; };
template <> struct sum_of<td_bfloat> { typedef float type; };

/* y = a*x + d of what was saved, always in this way: so the gradient finds the forward's bits */
template <class W> __device__ __forceinline__ void relu_numbers(int64_t k, const W *mean, const W *rstd, const W *w, const W *b, W *a, W *d)
{
    *a = w ? rstd[k] * w[k] : rstd[k];
    *d = (W)((b ? (double)b[k] : 0) - (double)mean[k] * (double)*a);
}

/* What stage one of a gradient behind relu needs besides x and gy. gz: NULL, or where gy goes where relu was positive. */
template <class T> struct relu_side { const T *y; const td_wide<T> *scale, *shift; T *gz; bool add_z; };

/* Threads of a block by channels: `wide` packs of a row, and how many rows at a time. */
static inline int last_wide(int64_t packs)
{
    int wide = 1;
    while (wide < 32 && wide < packs)
        wide *= 2;
    return wide;
}

/* The sum over the rows of threads, of each channel of the block's tile, in thread k for channel k. room: V doubles for each thread. */
template <int V, class A> __device__ __forceinline__ double rows_sum(double *room, int wide, const A (&v)[V])
{
    double s = 0;
    __syncthreads();
    TD_UNROLLED for (int j = 0; j < V; j++)
        room[threadIdx.x * V + j] = (double)v[j];
    __syncthreads();
    if ((int)threadIdx.x < wide * V)
        for (int r = 0; r < TD_THREADS / wide; r++)
            s += room[r * wide * V + threadIdx.x];
    return s;
}

/* GRAD false: of x; one = sum, two = sum of (x - the part's mean)². true: one = sum of gy, two = sum of gy*(x - mean), gy behind relu as MODE says.
 * one, two: (c, parts). */
template <class T, int V, bool GRAD, int MODE, class M>
__global__ void __launch_bounds__(TD_THREADS) last_part_kernel(extent e, int wide, int64_t tiles, const T *x, const T *gy, const M *mean,
                                                               relu_side<T> side, double *one, double *two)
{
    typedef typename sum_of<T>::type A;
    typedef td_wide<T> W;
    __shared__ double room[TD_THREADS * V];
    const int64_t part = blockIdx.x / tiles, tile = blockIdx.x % tiles, rows = TD_THREADS / wide;
    const int64_t channel = (tile * wide + threadIdx.x % wide) * V, begin = part * e.size;
    const int64_t end = begin + e.size < e.n ? begin + e.size : e.n;
    A s[V], q[V], from[V];
    W a[V], d[V];
    TD_UNROLLED for (int j = 0; j < V; j++)
        s[j] = q[j] = from[j] = 0, a[j] = d[j] = 0;
    if (channel < e.c) {
        const td_vector<T, V> first = GRAD ? td_vector<T, V>() : td_load_vector<T, V>(x + begin * e.c + channel);
        TD_UNROLLED for (int j = 0; j < V; j++) {
            from[j] = GRAD ? (A)mean[channel + j] : (A)td_load<T>(first.v + j);
            if (MODE == RELU_X)
                a[j] = side.scale[channel + j], d[j] = side.shift[channel + j];
        }
#pragma unroll 4
        for (int64_t i = begin + threadIdx.x / wide; i < end; i += rows) {
            const int64_t at = i * e.c + channel;
            const td_vector<T, V> v = td_load_vector<T, V>(x + at);
            if (!GRAD) {
                TD_UNROLLED for (int j = 0; j < V; j++) {
                    const A t = (A)td_load<T>(v.v + j) - from[j];
                    s[j] += t;
                    q[j] += t * t;
                }
                continue;
            }
            td_vector<T, V> g = td_load_vector<T, V>(gy + at), y = v;
            if (MODE == RELU_Y)
                y = td_load_vector<T, V>(side.y + at);
            TD_UNROLLED for (int j = 0; j < V; j++) {
                const W t = td_load<T>(v.v + j);
                W gj = td_load<T>(g.v + j);
                if ((MODE == RELU_X && !(a[j] * t + d[j] > 0)) || (MODE == RELU_Y && !(td_load<T>(y.v + j) > 0))) {
                    gj = 0;
                    td_store<T>(g.v + j, 0);
                }
                s[j] += (A)gj;
                q[j] += (A)gj * ((A)t - from[j]);
            }
            if (MODE != PLAIN && side.gz) {
                td_vector<T, V> z = g;
                if (side.add_z) {
                    z = td_load_vector<T, V>(side.gz + at);
                    TD_UNROLLED for (int j = 0; j < V; j++)
                        td_put<T>(z.v + j, td_load<T>(g.v + j), true);
                }
                td_store_vector<T, V>(side.gz + at, z);
            }
        }
    }
    const double sum = rows_sum<V, A>(room, wide, s), square = rows_sum<V, A>(room, wide, q);
    const int64_t mine = tile * wide * V + threadIdx.x;
    if ((int)threadIdx.x >= wide * V || mine >= e.c)
        return;
    double shift = 0, less = 0;
    if (!GRAD) {
        const double m = (double)(end - begin);
        shift = m * (double)td_load<T>(x + begin * e.c + mine);
        less = sum * sum / m;
    }
    one[mine * e.parts + part] = sum + shift;
    two[mine * e.parts + part] = GRAD ? square : square > less ? square - less : 0;
}

template <class T> static inline bool last_packed(const extent &e, const void *x, const void *y, const void *z, const void *u)
{
    return e.inner == 1 && e.c * (int64_t)sizeof(T) % 16 == 0 && (((uintptr_t)x | (uintptr_t)y | (uintptr_t)z | (uintptr_t)u) & 15) == 0;
}

template <class T, bool GRAD, int MODE, class M>
static void last_parts(const char *row, const extent &e, const T *x, const T *gy, const M *mean, const relu_side<T> &side, double *one, double *two)
{
    enum { V = td_widest<T>::N };
    const int wide = last_wide(e.c / V);
    const int64_t tiles = (e.c / V + wide - 1) / wide;
    TD_LAUNCH(row, (unsigned)(tiles * e.parts), TD_THREADS, 0, (last_part_kernel<T, V, GRAD, MODE, M>), e, wide, tiles, x, gy, mean, side, one, two);
}

/* PLAIN: y (=|+=) a*x + b*z + d, z may be NULL. RELU: y = relu(a*x + z + d). RELU_X, RELU_Y: as PLAIN, x (a gradient) where scale*z + shift, or
 * `side`, is positive. */
template <class T, int V, int MODE, class N>
__global__ void __launch_bounds__(TD_THREADS) last_apply_kernel(extent e, int wide, int64_t tiles, int64_t chunk, T *y, const T *x, const T *z,
                                                                const T *side, const N *a, const N *b, const N *d, const N *scale, const N *shift,
                                                                bool add)
{
    typedef td_wide<T> W;
    const int64_t tile = blockIdx.x % tiles, rows = TD_THREADS / wide, channel = (tile * wide + threadIdx.x % wide) * V;
    const int64_t begin = blockIdx.x / tiles * chunk, end = begin + chunk < e.n ? begin + chunk : e.n;
    if (channel >= e.c)
        return;
    W by[V], with[V], plus[V], up[V], off[V];
    TD_UNROLLED for (int j = 0; j < V; j++) {
        by[j] = (W)a[channel + j], plus[j] = (W)d[channel + j];
        with[j] = MODE != RELU && z ? (W)b[channel + j] : 0;
        up[j] = MODE == RELU_X ? (W)scale[channel + j] : 0, off[j] = MODE == RELU_X ? (W)shift[channel + j] : 0;
    }
#pragma unroll 4
    for (int64_t i = begin + threadIdx.x / wide; i < end; i += rows) {
        const int64_t at = i * e.c + channel;
        const td_vector<T, V> p = td_load_vector<T, V>(x + at);
        td_vector<T, V> q = p, r = p, s = p;
        if (z)
            q = td_load_vector<T, V>(z + at);
        if (add)
            r = td_load_vector<T, V>(y + at);
        if (MODE == RELU_Y)
            s = td_load_vector<T, V>(side + at);
        TD_UNROLLED for (int j = 0; j < V; j++) {
            W v = td_load<T>(p.v + j);
            const W other = td_load<T>(q.v + j);
            if ((MODE == RELU_X && !(up[j] * other + off[j] > 0)) || (MODE == RELU_Y && !(td_load<T>(s.v + j) > 0)))
                v = 0;
            v = by[j] * v;
            if (MODE == RELU) {
                v += plus[j];
                v = z ? v + other : v;
                v = v > 0 || v != v ? v : 0;
            } else {
                v += z ? with[j] * other + plus[j] : plus[j];
            }
            td_put<T>(r.v + j, v, add);
        }
        td_store_vector<T, V>(y + at, r);
    }
}

template <class T, int MODE, class N>
static void last_apply(const char *row, const extent &e, T *y, const T *x, const T *z, const T *side, const N *a, const N *b, const N *d,
                       const N *scale, const N *shift, bool add)
{
    enum { V = td_widest<T>::N };
    const int wide = last_wide(e.c / V);
    const int64_t tiles = (e.c / V + wide - 1) / wide, rows = TD_THREADS / wide, blocks = td_blocks(e.n * tiles, (int)rows * 4);
    const int64_t chunk = (e.n * tiles + blocks - 1) / blocks, chunks = (e.n + chunk - 1) / chunk;
    TD_LAUNCH(row, (unsigned)(tiles * chunks), TD_THREADS, 0, (last_apply_kernel<T, V, MODE, N>), e, wide, tiles, chunk, y, x, z, side, a, b, d,
              scale, shift, add);
}
#endif
