/* tensor/cuda/reduce.cu: sum, amax, amin, argmax over any axes.
 *
 * Twin of ../cpu/reduce.c. Where neighbouring results come from neighbouring inputs (leading axes reduced) a block takes a tile of columns and
 * its threads different rows of it; otherwise some threads of a warp, a warp or a block make one result together. Few results of much input:
 * what is reduced is cut into slices, whose results a second launch combines. Every cut depends on sizes and strides alone, and so do the
 * bits. Sums of floats are kept in f64 (neighbours and fours of 16-bit ones in f32 before), integers wrap around.
 */
#include "vector.h"

/* ---- what is kept while reducing --------------------------------------------------------------------------------------------------- */
/* Accumulators: A nothing(); take(a, value, place in row order); join(a, b). Fours: what four rows of a column add. */
template <class T> struct sum_in { typedef double type; };
template <> struct sum_in<int64_t> { typedef uint64_t type; };
template <> struct sum_in<int32_t> { typedef uint64_t type; };
template <class T> struct is_half { enum { yes = sizeof(T) == 2 }; };

template <class T> struct summing {
    typedef typename sum_in<T>::type A;
    typedef T out;
    double scale;
    bool add;
    static __device__ __forceinline__ A nothing() { return 0; }
    static __device__ __forceinline__ A take(A a, T v, int64_t) { return a + (A)td_load<T>(&v); }
    static __device__ __forceinline__ A join(A a, A b) { return a + b; }
    static __device__ __forceinline__ A four(A a, T v0, T v1, T v2, T v3, int64_t, int64_t)
    {
        if (is_half<T>::yes)
            return a + (A)((td_load<T>(&v0) + td_load<T>(&v1)) + (td_load<T>(&v2) + td_load<T>(&v3)));
        return a + (A)td_load<T>(&v0) + (A)td_load<T>(&v1) + (A)td_load<T>(&v2) + (A)td_load<T>(&v3);
    }
    __device__ __forceinline__ void put(out *p, A a) const { store(p, a, (A *)0); }
    __device__ __forceinline__ void store(out *p, double a, double *) const
    {
        a *= scale;
        td_store<T>(p, (td_wide<T>)(add ? (double)td_load<T>(p) + a : a));
    }
    __device__ __forceinline__ void store(out *p, uint64_t a, uint64_t *) const
    {
        a *= (uint64_t)(int64_t)scale;
        *p = (T)(add ? (uint64_t)(int64_t)td_load<T>(p) + a : a);
    }
};

template <class W> struct lowest { static __device__ __forceinline__ W value() { return (W)-INFINITY; } };
template <> struct lowest<int64_t> { static __device__ __forceinline__ int64_t value() { return INT64_MIN; } };
template <> struct lowest<int32_t> { static __device__ __forceinline__ int32_t value() { return INT32_MIN; } };

/* Most: the largest, else the smallest, by complement: -x reverses floats, ~x integers, and neither loses a value. NaN wins. */
template <class W> __device__ __forceinline__ W reversed(W v) { return -v; }
template <> __device__ __forceinline__ int64_t reversed<int64_t>(int64_t v) { return ~v; }
template <> __device__ __forceinline__ int32_t reversed<int32_t>(int32_t v) { return ~v; }

template <class T, bool MOST> struct extreme {
    typedef td_wide<T> A;
    typedef T out;
    static __device__ __forceinline__ A nothing() { return lowest<A>::value(); }
    static __device__ __forceinline__ A join(A a, A b) { return td_op_max()(a, b); }
    static __device__ __forceinline__ A lifted(T v) { return MOST ? td_load<T>(&v) : reversed<A>(td_load<T>(&v)); }
    static __device__ __forceinline__ A take(A a, T v, int64_t) { return join(a, lifted(v)); }
    static __device__ __forceinline__ A four(A a, T v0, T v1, T v2, T v3, int64_t, int64_t)
    {
        return join(join(a, join(lifted(v0), lifted(v1))), join(lifted(v2), lifted(v3)));
    }
    __device__ __forceinline__ void put(out *p, A a) const { td_store<T>(p, MOST ? a : reversed<A>(a)); }
};

/* The first of the largest; the first NaN before all. */
template <class W> struct located { W value; int64_t at; };
template <class T> struct locating {
    typedef located<td_wide<T>> A;
    typedef int64_t out;
    static __device__ __forceinline__ A nothing() { return A{ lowest<td_wide<T>>::value(), INT64_MAX }; }
    static __device__ __forceinline__ A join(A a, A b)
    {
        const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
        if (a_nan != b_nan)
            return a_nan ? a : b;
        if (!a_nan && a.value != b.value)
            return a.value > b.value ? a : b;
        return a.at < b.at ? a : b;
    }
    static __device__ __forceinline__ A take(A a, T v, int64_t at) { return join(a, A{ td_load<T>(&v), at }); }
    static __device__ __forceinline__ A four(A a, T v0, T v1, T v2, T v3, int64_t at, int64_t step)
    {
        return take(take(take(take(a, v0, at), v1, at + step), v2, at + 2 * step), v3, at + 3 * step);
    }
    __device__ __forceinline__ void put(out *p, A a) const { *p = a.at; }
};

template <class A> __device__ __forceinline__ A exchanged(A a, int mask) { return __shfl_xor_sync(0xffffffffu, a, mask); }
template <class W> __device__ __forceinline__ located<W> exchanged(located<W> a, int mask)
{
    return located<W>{ __shfl_xor_sync(0xffffffffu, a.value, mask), __shfl_xor_sync(0xffffffffu, a.at, mask) };
}

/* ---- the plan ------------------------------------------------------------------------------------------------------------------------- */
/* Division without the instructions (or calls) of a 64-bit one: i below 2^53, as no array is larger. */
struct divisor { int64_t by; double inverse; };
__device__ __forceinline__ int64_t quotient(int64_t i, const divisor &d)
{
    const int64_t q = (int64_t)((double)i * d.inverse), r = i - q * d.by;      /* off by one at most                            */
    return r < 0 ? q - 1 : r >= d.by ? q + 1 : q;
}

struct walk { int ndim; int64_t count, stride[TD_MAX_DIMS]; divisor dim[TD_MAX_DIMS]; };

__device__ __forceinline__ int64_t place(const walk &w, int64_t i)
{
    if (w.ndim == 1)
        return i * w.stride[0];
    int64_t at = 0;
    for (int d = w.ndim - 1; d >= 0; d--) {
        const int64_t q = quotient(i, w.dim[d]);
        at += (i - q * w.dim[d].by) * w.stride[d];
        i = q;
    }
    return at;
}

struct plan {
    walk keep, red;             /* keep without the columns; red in units of `vector` neighbours, but for `tail` single elements after them */
    int64_t columns;            /* neighbouring results from neighbouring inputs; 1: none, results are made by rows                */
    int64_t kept, tail;         /* results                                                                                         */
    int64_t slices, slice;      /* of red's units                                                                                  */
    divisor by_kept, by_outer, by_tiles;        /* rows: kept. Columns: keep's results, tiles of lanes*vector columns               */
    int lanes, vector;          /* rows: threads of a result; columns: threads side by side. Neighbours that a thread reads at once */
};

enum { ENOUGH_BLOCKS = 1024, ROW_SLICE = 4096, COLUMN_SLICE = 64 };

static walk walk_of(const td_loop &l)
{
    walk w = { l.ndim, 1, { 0 }, {} };
    for (int d = 0; d < l.ndim; d++) {
        w.dim[d].by = l.dim[d], w.stride[d] = l.stride[1][d];
        w.count *= l.dim[d];
    }
    return w;
}

/* Larger strides outside, and what then runs on is one dimension: only where the order does not count. */
static void sort_walk(walk &w)
{
    for (int d = 1; d < w.ndim; d++)
        for (int e = d; e > 0 && w.stride[e - 1] < w.stride[e]; e--) {
            const int64_t dim = w.dim[e].by, stride = w.stride[e];
            w.dim[e].by = w.dim[e - 1].by, w.stride[e] = w.stride[e - 1];
            w.dim[e - 1].by = dim, w.stride[e - 1] = stride;
        }
    int n = 0;
    for (int d = 0; d < w.ndim; d++)
        if (n > 0 && w.stride[n - 1] == w.stride[d] * w.dim[d].by) {
            w.dim[n - 1].by *= w.dim[d].by;
            w.stride[n - 1] = w.stride[d];
        } else {
            w.dim[n].by = w.dim[d].by;
            w.stride[n++] = w.stride[d];
        }
    w.ndim = n;
}

static bool strides_fit(const walk &w, int dims, int vector)
{
    for (int d = 0; d < dims; d++)
        if (w.stride[d] % vector)
            return false;
    return true;
}

static int lanes_for(int64_t n)        /* the power of two that covers n, at most a warp                                        */
{
    int lanes = 1;
    while (lanes < 32 && lanes < n)
        lanes *= 2;
    return lanes;
}

static void cut(plan &p, int64_t blocks, int64_t least)
{
    const int64_t most = (p.red.count + least - 1) / least, wanted = (ENOUGH_BLOCKS + blocks - 1) / blocks;
    const int64_t slices = most < wanted ? most : wanted;
    p.slice = slices > 1 ? (p.red.count + slices - 1) / slices : p.red.count;
    p.slices = p.slice > 0 ? (p.red.count + p.slice - 1) / p.slice : 1;
}

static void set_inverses(plan &p)
{
    for (int d = 0; d < TD_MAX_DIMS; d++) {
        p.keep.dim[d].inverse = 1 / (double)p.keep.dim[d].by;
        p.red.dim[d].inverse = 1 / (double)p.red.dim[d].by;
    }
    p.by_kept.by = p.kept, p.by_outer.by = p.keep.count;
    p.by_kept.inverse = 1 / (double)p.kept, p.by_outer.inverse = 1 / (double)p.keep.count, p.by_tiles.inverse = 1 / (double)p.by_tiles.by;
}

static plan make_plan(const td_reduce_loop *r, bool in_order, const void *x, int widest)
{
    plan p = {};
    p.keep = walk_of(r->keep), p.red = walk_of(r->red);
    p.columns = p.slices = p.lanes = p.vector = 1;
    p.kept = p.keep.count;
    if (!in_order && p.red.count > 0)
        sort_walk(p.red);
    const int last = p.red.ndim - 1, k = p.keep.ndim - 1;
    const bool runs = last >= 0 && p.red.stride[last] == 1 && p.red.dim[last].by >= 4, aligned = (uintptr_t)x % 16 == 0 && widest > 1;
    if (p.kept == 0)
        return p;
    if (k >= 0 && p.keep.stride[k] == 1 && p.keep.dim[k].by > 1 && !runs) {
        p.columns = p.keep.dim[k].by;
        p.keep.ndim--, p.keep.count /= p.columns;
        if (aligned && p.columns % widest == 0 && p.columns >= 2 * widest && strides_fit(p.keep, k, widest) && strides_fit(p.red, last + 1, widest))
            p.vector = widest;
        p.lanes = lanes_for(p.columns / p.vector);
        const int64_t wide = (int64_t)p.lanes * p.vector;
        p.by_tiles.by = (p.columns + wide - 1) / wide;
        cut(p, p.keep.count * p.by_tiles.by, COLUMN_SLICE);
        set_inverses(p);
        return p;
    }
    if (runs && aligned && strides_fit(p.keep, k + 1, widest) && strides_fit(p.red, last, widest) &&
        (last == 0 || p.red.dim[last].by % widest == 0)) {
        p.vector = widest;
        p.tail = p.red.dim[last].by % widest;
        p.red.dim[last].by /= widest;
        p.red.stride[last] = widest;
        p.red.count = last == 0 ? p.red.dim[0].by : p.red.count / widest;
    }
    p.lanes = p.red.count > 512 ? (int)TD_THREADS : lanes_for(p.red.count);
    cut(p, p.lanes > 32 ? p.kept : (p.kept * p.lanes + TD_THREADS - 1) / TD_THREADS, p.lanes > 32 ? ROW_SLICE / p.vector : p.red.count + 1);
    set_inverses(p);
    return p;
}

/* ---- kernels --------------------------------------------------------------------------------------------------------------------------- */
/* Result k of slice s: into the result, or into the parts (slices, kept). */
template <class O> __device__ __forceinline__ void finish(const plan &p, const O &op, typename O::A *parts, typename O::out *out, int64_t k,
                                                          int64_t s, typename O::A a)
{
    if (p.slices > 1)
        parts[s * p.kept + k] = a;
    else
        op.put(out + k, a);
}

template <class T, class O, int V>
__global__ void __launch_bounds__(TD_THREADS) rows_kernel(plan p, O op, typename O::A *parts, typename O::out *out, const T *x)
{
    typedef typename O::A A;
    __shared__ A part[TD_THREADS / 32];
    const int lanes = p.lanes, lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = TD_THREADS / lanes;
    const int64_t units = p.kept * p.slices;
    for (int64_t first = (int64_t)blockIdx.x * groups; first < units; first += (int64_t)gridDim.x * groups) {
        const int64_t u = first + group;
        int64_t k = u, s = 0;
        A a = O::nothing();
        if (u < units) {
            if (p.slices > 1)
                s = quotient(u, p.by_kept), k = u - s * p.kept;
            const T *from = x + place(p.keep, k);
            const int64_t end = (s + 1) * p.slice < p.red.count ? (s + 1) * p.slice : p.red.count;
            for (int64_t i = s * p.slice + lane; i < end; i += lanes) {
                const td_vector<T, V> v = td_load_vector<T, V>(from + place(p.red, i));
                if (V % 4 == 0) {
                    for (int j = 0; j + 3 < V; j += 4)
                        a = O::four(a, v.v[j], v.v[(j + 1) % V], v.v[(j + 2) % V], v.v[(j + 3) % V], i * V + j, 1);
                } else {
                    for (int j = 0; j < V; j++)
                        a = O::take(a, v.v[j], i * V + j);
                }
            }
            if (s == p.slices - 1)
                for (int64_t i = lane; i < p.tail; i += lanes)
                    a = O::take(a, from[p.red.count * V + i], p.red.count * V + i);
        }
        for (int m = (lanes < 32 ? lanes : 32) / 2; m > 0; m /= 2)
            a = O::join(a, exchanged(a, m));
        if (lanes > 32) {
            __syncthreads();                   /* part may still be read from the result before                                 */
            if (threadIdx.x % 32 == 0)
                part[threadIdx.x / 32] = a;
            __syncthreads();
            a = part[0];
            for (int w = 1; w < TD_THREADS / 32; w++)
                a = O::join(a, part[w]);
        }
        if (lane == 0 && u < units)
            finish(p, op, parts, out, k, s, a);
    }
}

template <class T, class O, int V>
__global__ void __launch_bounds__(TD_THREADS) columns_kernel(plan p, O op, typename O::A *parts, typename O::out *out, const T *x)
{
    typedef typename O::A A;
    TD_SHARED(A, part);                        /* (V, threads)                                                                  */
    const int me = threadIdx.x, width = p.lanes, rows = TD_THREADS / width, row = me / width;
    const int64_t wide = (int64_t)width * V, tiles = p.by_tiles.by, units = tiles * p.keep.count * p.slices;
    for (int64_t u = blockIdx.x; u < units; u += gridDim.x) {
        const int64_t outer = quotient(u, p.by_tiles), c = (u - outer * tiles) * wide + me % width * V, s = quotient(outer, p.by_outer), k = outer - s * p.keep.count;
        A a[V];
        for (int j = 0; j < V; j++)
            a[j] = O::nothing();
        if (c < p.columns) {
            const T *from = x + place(p.keep, k) + c;
            const int64_t end = (s + 1) * p.slice < p.red.count ? (s + 1) * p.slice : p.red.count;
            int64_t i = s * p.slice + row;
            for (; i + 3 * rows < end; i += 4 * rows) {
                const td_vector<T, V> v0 = td_load_vector<T, V>(from + place(p.red, i)), v1 = td_load_vector<T, V>(from + place(p.red, i + rows)),
                                    v2 = td_load_vector<T, V>(from + place(p.red, i + 2 * rows)),
                                    v3 = td_load_vector<T, V>(from + place(p.red, i + 3 * rows));
                for (int j = 0; j < V; j++)
                    a[j] = O::four(a[j], v0.v[j], v1.v[j], v2.v[j], v3.v[j], i, rows);
            }
            for (; i < end; i += rows) {
                const td_vector<T, V> v = td_load_vector<T, V>(from + place(p.red, i));
                for (int j = 0; j < V; j++)
                    a[j] = O::take(a[j], v.v[j], i);
            }
        }
        __syncthreads();                       /* part may still be read from the tile before                                   */
        for (int j = 0; j < V; j++)
            part[j * TD_THREADS + me] = a[j];
        for (int half = rows / 2; half > 0; half /= 2) {
            __syncthreads();
            if (row < half)
                for (int j = 0; j < V; j++)
                    part[j * TD_THREADS + me] = O::join(part[j * TD_THREADS + me], part[j * TD_THREADS + me + half * width]);
        }
        if (row == 0 && c < p.columns)
            for (int j = 0; j < V; j++)
                finish(p, op, parts, out, k * p.columns + c + j, s, part[j * TD_THREADS + me]);
    }
}

/* The parts of all slices, in a fixed order: as columns, `width` results side by side. */
template <class O> __global__ void __launch_bounds__(TD_THREADS) slices_kernel(O op, int64_t kept, int64_t slices, int width, typename O::out *out,
                                                                                const typename O::A *parts)
{
    typedef typename O::A A;
    __shared__ A part[TD_THREADS];
    const int me = threadIdx.x, rows = TD_THREADS / width, row = me / width;
    for (int64_t first = (int64_t)blockIdx.x * width; first < kept; first += (int64_t)gridDim.x * width) {
        const int64_t k = first + me % width;
        A a = O::nothing();
        if (k < kept)
            for (int64_t s = row; s < slices; s += rows)
                a = O::join(a, parts[s * kept + k]);
        __syncthreads();                       /* part may still be read from the results before                                */
        part[me] = a;
        for (int half = rows / 2; half > 0; half /= 2) {
            __syncthreads();
            if (row < half)
                part[me] = O::join(part[me], part[me + half * width]);
        }
        if (row == 0 && k < kept)
            op.put(out + k, part[me]);
    }
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
static unsigned grid_of(int64_t blocks)
{
    return (unsigned)(blocks < 1 ? 1 : blocks < TD_GRID_MAX ? blocks : TD_GRID_MAX);
}

template <class T, class O, int V> static void launch(const char *name, const plan &p, O op, typename O::A *parts, typename O::out *out, const T *x)
{
    if (p.columns > 1) {
        const int64_t wide = (int64_t)p.lanes * V, units = (p.columns + wide - 1) / wide * p.keep.count * p.slices;
        TD_LAUNCH(name, grid_of(units), TD_THREADS, sizeof(typename O::A) * TD_THREADS * V, (columns_kernel<T, O, V>), p, op, parts, out, x);
    } else {
        const int64_t groups = TD_THREADS / p.lanes;
        TD_LAUNCH(name, grid_of((p.kept * p.slices + groups - 1) / groups), TD_THREADS, 0, (rows_kernel<T, O, V>), p, op, parts, out, x);
    }
}

template <class T, class O, int V> static void reduce(const char *name, const td_reduce_loop *r, O op, bool in_order, typename O::out *out, const T *x)
{
    typedef typename O::A A;
    const plan p = make_plan(r, in_order, x, V);
    if (p.kept == 0)
        return;
    A *parts = NULL;
    if (p.slices > 1 && !(parts = (A *)td__cuda_scratch((size_t)(p.slices * p.kept) * sizeof(A))))
        return;
    if (p.vector == V)
        launch<T, O, V>(name, p, op, parts, out, x);
    else
        launch<T, O, 1>(name, p, op, parts, out, x);
    if (!parts)
        return;
    const int width = lanes_for(p.kept);
    TD_LAUNCH(name, grid_of((p.kept + width - 1) / width), TD_THREADS, 0, (slices_kernel<O>), op, p.kept, p.slices, width, out, parts);
    td__cuda_scratch_free(parts);
}

extern "C" void td__cuda_sum(const td_reduce_loop *r, td_dtype t, void *out, const void *x, double scale, bool add)
{
    TD_CUDA_ARITH(t, T, {
        const summing<T> op = { scale, add };
        reduce<T, summing<T>, td_widest<T>::N>("sum", r, op, false, (T *)out, (const T *)x);
    })
}

extern "C" void td__cuda_amax(const td_reduce_loop *r, td_dtype t, void *out, const void *x)
{
    TD_CUDA_ARITH(t, T, (reduce<T, extreme<T, true>, td_widest<T>::N>("amax", r, extreme<T, true>(), false, (T *)out, (const T *)x)))
}

extern "C" void td__cuda_amin(const td_reduce_loop *r, td_dtype t, void *out, const void *x)
{
    TD_CUDA_ARITH(t, T, (reduce<T, extreme<T, false>, td_widest<T>::N>("amin", r, extreme<T, false>(), false, (T *)out, (const T *)x)))
}

/* single elements: the pair of a value and its place is what costs, not the loads */
extern "C" void td__cuda_argmax(const td_reduce_loop *r, td_dtype t, int64_t *out, const void *x)
{
    TD_CUDA_ARITH(t, T, (reduce<T, locating<T>, 1>("argmax", r, locating<T>(), true, out, (const T *)x)))
}
