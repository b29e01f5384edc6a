/* tensor/cuda/softmax.cu: softmax and log-softmax over rows, and their gradients.
 *
 * Twin of ../cpu/softmax.c. A short row is a warp's, a long one a block's. Rows that fit are read once and stay in registers, as they are in
 * memory, until they are written; longer ones are read again. Sums are kept in f64. A row with NaN, with +inf or with nothing but -inf is NaN.
 */
#include "vector.h"

/* ---- a row and its threads --------------------------------------------------------------------------------------------------------------- */
/* The sum, or largest, over the `lanes` threads of a row: 32, else the whole block. */
template <class A, class O> __device__ __forceinline__ A over_row(A a, O op, int lanes)
{
    return lanes == 32 ? td_warp_all(a, op) : td_block_all(a, op);
}

/* What this thread holds of a row: C vectors of V neighbours, `lanes` vectors apart; C 0: nothing, each is read when it is asked for. */
template <class T, int V, int C> struct held {
    td_vector<T, V> v[C];
    __device__ __forceinline__ held(const T *row, int64_t vectors, int lane, int lanes)
    {
        TD_UNROLLED
        for (int c = 0; c < C; c++)
            if (lane + c * lanes < vectors)
                v[c] = td_load_vector<T, V>(row + (lane + c * lanes) * V);
    }
    /* f(vector, where it begins) for each */
    template <class F> __device__ __forceinline__ void each(const T *, int64_t vectors, int lane, int lanes, F f) const
    {
        TD_UNROLLED
        for (int c = 0; c < C; c++)
            if (lane + c * lanes < vectors)
                f(v[c], (int64_t)(lane + c * lanes) * V);
    }
};
template <class T, int V> struct held<T, V, 0> {
    __device__ __forceinline__ held(const T *, int64_t, int, int) {}
    template <class F> __device__ __forceinline__ void each(const T *row, int64_t vectors, int lane, int lanes, F f) const
    {
        for (int64_t i = lane; i < vectors; i += lanes)
            f(td_load_vector<T, V>(row + i * V), i * V);
    }
};

/* What the last steps of log-softmax are made in: f32 is enough for 16 bits. */
template <class T> struct careful { typedef double type; };
template <> struct careful<td_half> { typedef float type; };
template <> struct careful<td_bfloat> { typedef float type; };

/* ---- kernels --------------------------------------------------------------------------------------------------------------------------- */
template <class T, int V, int C, bool LOG>
__global__ void __launch_bounds__(TD_THREADS, 2) forward_kernel(int64_t rows, int64_t n, int lanes, T *y, const T *x)
{
    typedef td_wide<T> W;
    typedef typename careful<T>::type D;
    const int lane = threadIdx.x % lanes, groups = TD_THREADS / lanes;
    const int64_t vectors = n / V;
    for (int64_t first = (int64_t)blockIdx.x * groups; first < rows; first += (int64_t)gridDim.x * groups) {
        const int64_t r = first + threadIdx.x / lanes, mine = r < rows ? vectors : 0;
        const T *in = x + r * n;
        T *out = y + r * n;
        const held<T, V, C> row(in, mine, lane, lanes);
        W most = (W)-INFINITY;
        row.each(in, mine, lane, lanes, [&](const td_vector<T, V> &v, int64_t) {
            for (int j = 0; j < V; j++)
                most = td_op_max()(most, td_load<T>(&v.v[j]));
        });
        most = over_row(most, td_op_max(), lanes);
        double sum = 0;
        row.each(in, mine, lane, lanes, [&](const td_vector<T, V> &v, int64_t) {
            for (int j = 0; j < V; j++)
                sum += (double)exp(td_load<T>(&v.v[j]) - most);
        });
        sum = over_row(sum, td_op_sum(), lanes);
        const W scale = (W)(1 / sum);
        const D log_sum = LOG ? (D)log(sum) : (D)0;
        row.each(in, mine, lane, lanes, [&](const td_vector<T, V> &v, int64_t at) {
            td_vector<T, V> o;
            for (int j = 0; j < V; j++) {
                const W value = td_load<T>(&v.v[j]);
                td_store<T>(&o.v[j], LOG ? (W)((D)value - (D)most - log_sum) : (W)exp(value - most) * scale);
            }
            td_store_vector<T, V>(out + at, o);
        });
    }
}

/* softmax: gx = y * (gy - sum(gy*y)); log-softmax: gx = gy - exp(y) * sum(gy) */
template <class T, int V, int C, bool LOG>
__global__ void __launch_bounds__(TD_THREADS, 2) backward_kernel(int64_t rows, int64_t n, int lanes, T *gx, const T *gy, const T *y, bool add)
{
    typedef td_wide<T> W;
    const int lane = threadIdx.x % lanes, groups = TD_THREADS / lanes;
    const int64_t vectors = n / V;
    for (int64_t first = (int64_t)blockIdx.x * groups; first < rows; first += (int64_t)gridDim.x * groups) {
        const int64_t r = first + threadIdx.x / lanes, mine = r < rows ? vectors : 0;
        const T *g = gy + r * n, *value = y + r * n;
        T *out = gx + r * n;
        const held<T, V, C> row(g, mine, lane, lanes);
        double total = 0;
        row.each(g, mine, lane, lanes, [&](const td_vector<T, V> &v, int64_t at) {
            if (LOG) {
                for (int j = 0; j < V; j++)
                    total += (double)td_load<T>(&v.v[j]);
            } else {
                const td_vector<T, V> s = td_load_vector<T, V>(value + at);
                for (int j = 0; j < V; j++)
                    total += (double)td_load<T>(&v.v[j]) * (double)td_load<T>(&s.v[j]);
            }
        });
        const W sum = (W)over_row(total, td_op_sum(), lanes);
        row.each(g, mine, lane, lanes, [&](const td_vector<T, V> &v, int64_t at) {
            const td_vector<T, V> s = td_load_vector<T, V>(value + at);
            td_vector<T, V> o;
            if (add)
                o = td_load_vector<T, V>(out + at);
            for (int j = 0; j < V; j++) {
                const W each = td_load<T>(&v.v[j]), of = td_load<T>(&s.v[j]);
                td_put<T>(&o.v[j], LOG ? each - (W)exp(of) * sum : of * (each - sum), add);
            }
            td_store_vector<T, V>(out + at, o);
        });
    }
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
enum { FEW = 2, MANY = 8 };            /* vectors that a thread holds                                                               */

static unsigned grid_of(int64_t blocks)
{
    return (unsigned)(blocks < TD_GRID_MAX ? blocks : TD_GRID_MAX);
}

/* Chooses V, C and the threads of a row by its length, and calls launch.template operator()<V, C>(lanes). */
template <class T, class L> static void by_length(int64_t n, bool aligned, const L &launch)
{
    enum { V = td_widest<T>::N };
    const bool wide = aligned && n % V == 0;
    const int64_t vectors = wide ? n / V : n;
    const int lanes = vectors <= 32 * MANY ? 32 : (int)TD_THREADS;
    if (wide && vectors <= FEW * 32)
        launch.template go<V, FEW>(lanes);
    else if (wide && vectors <= MANY * lanes)
        launch.template go<V, MANY>(lanes);
    else if (wide)
        launch.template go<V, 0>(lanes);
    else if (vectors <= MANY * lanes)
        launch.template go<1, MANY>(lanes);
    else
        launch.template go<1, 0>(lanes);
}

template <class T, bool LOG> struct forward {
    int64_t rows, n;
    T *y;
    const T *x;
    template <int V, int C> void go(int lanes) const
    {
        const int64_t groups = TD_THREADS / lanes;
        TD_LAUNCH(LOG ? "log_softmax" : "softmax", grid_of((rows + groups - 1) / groups), TD_THREADS, 0, (forward_kernel<T, V, C, LOG>), rows, n,
                  lanes, y, x);
    }
};
template <class T, bool LOG> struct backward {
    int64_t rows, n;
    T *gx;
    const T *gy, *y;
    bool add;
    template <int V, int C> void go(int lanes) const
    {
        const int64_t groups = TD_THREADS / lanes;
        TD_LAUNCH(LOG ? "log_softmax_grad" : "softmax_grad", grid_of((rows + groups - 1) / groups), TD_THREADS, 0, (backward_kernel<T, V, C, LOG>),
                  rows, n, lanes, gx, gy, y, add);
    }
};

static bool aligned(const void *a, const void *b, const void *c)
{
    return ((uintptr_t)a | (uintptr_t)b | (uintptr_t)c) % 16 == 0;
}

#define SOFTMAX(name, LOG)                                                                                   \
    extern "C" void td__cuda_##name(td_dtype t, int64_t rows, int64_t n, void *y, const void *x)             \
    {                                                                                                        \
        if (rows <= 0 || n <= 0)                                                                             \
            return;                                                                                          \
        TD_CUDA_FLOAT(t, T, (by_length<T>(n, aligned(x, y, y), forward<T, LOG>{ rows, n, (T *)y, (const T *)x }))) \
    }                                                                                                        \
    extern "C" void td__cuda_##name##_grad(td_dtype t, int64_t rows, int64_t n, void *gx, const void *gy, const void *y, bool add) \
    {                                                                                                        \
        if (rows <= 0 || n <= 0)                                                                             \
            return;                                                                                          \
        TD_CUDA_FLOAT(t, T, (by_length<T>(n, aligned(gx, gy, y), backward<T, LOG>{ rows, n, (T *)gx, (const T *)gy, (const T *)y, add }))) \
    }
SOFTMAX(softmax, false)
SOFTMAX(log_softmax, true)
