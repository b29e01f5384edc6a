/* tensor/cuda/batch_norm.cu: batch normalisation over all dimensions but the channel, its gradients, and the pieces for several ranks.
 *
 * Twin of ../cpu/batch_norm.c. A channel's n*inner elements are cut into parts by their number alone. A block takes a part: its mean, then its
 * squared deviations from it (the caches hold the part), in double; so x is read from memory once. A warp for each channel joins the parts' means and
 * deviations by their counts, and makes of them all that the last pass needs: y = a*x + b*z + d with three numbers per channel. With inner 1 a
 * channel is a column, and a block takes 32 of them, or the kernels of batch_norm_last.h take packs of them. Where x has 16 bits, everything that
 * is per channel is f32.
 *
 * batch_norm_relu: relu and what is added before it are part of the last pass. Its gradient begins with what relu lets through: with the channels
 * last that is found in both passes as they read, else written out first.
 */
#include "packs.h"
#include "batch_norm_last.h"

enum { PARTS = 1024, PART = 8192, COLUMN_PART = 256 };

static extent extent_of(int64_t n, int64_t c, int64_t inner)
{
    const int64_t count = n * inner, least = inner == 1 ? COLUMN_PART : PART, size = ((count + PARTS - 1) / PARTS + 15) / 16 * 16;     /* whole packs */
    extent e = { n, c, inner, count, size > least ? size : least, 0 };
    e.parts = (count + e.size - 1) / e.size;
    return e;
}

/* ---- sums of the parts: of x and (x - the part's mean)², or (g given) of g and g*(x - mean) ---------------------------------------------- */
/* V elements at a time: inner is a multiple of V. one, two: (c, parts). */
template <class T, int V, class M>
__global__ void __launch_bounds__(TD_THREADS, 3) part_kernel(extent e, const T *x, const T *g, const M *mean, double *one, double *two)
{
    struct __align__(V * sizeof(T)) group { T v[V]; };
    const int64_t channel = blockIdx.x / e.parts, part = blockIdx.x % e.parts, runs = e.inner / V;
    const int64_t begin = part * e.size / V + threadIdx.x, end = (part + 1) * e.size < e.count ? (part + 1) * e.size / V : e.count / V;
    const int64_t jump = TD_THREADS / runs, rest = TD_THREADS % runs;
    const T *first = g ? g : x;
    double s = 0, q = 0;
    double mu = g ? (double)mean[channel] : 0;
    for (int pass = 0; pass < (g ? 1 : 2); pass++) {
        int64_t i = begin / runs, k = begin % runs;
        for (int64_t at = begin; at < end; at += TD_THREADS) {
            const int64_t where = ((i * e.c + channel) * runs + k) * V;
            const group a = *(const group *)(first + where);
            if (g) {
                const group b = *(const group *)(x + where);
                TD_UNROLL for (int j = 0; j < V; j++) {
                    const double v = (double)td_load<T>(a.v + j);
                    s += v;
                    q += v * ((double)td_load<T>(b.v + j) - mu);
                }
            } else {
                TD_UNROLL for (int j = 0; j < V; j++) {
                    const double v = (double)td_load<T>(a.v + j) - mu;
                    if (pass == 0)
                        s += v;
                    else
                        q += v * v;
                }
            }
            i += jump;
            k += rest;
            if (k >= runs) {
                k -= runs;
                i++;
            }
        }
        if (pass == 0)
            s = td_block_all(s, td_op_sum());
        if (!g)
            mu = s / (double)((part + 1) * e.size < e.count ? e.size : e.count - part * e.size);
    }
    q = td_block_all(q, td_op_sum());
    if (threadIdx.x == 0) {
        one[blockIdx.x] = s;
        two[blockIdx.x] = q;
    }
}

__device__ __forceinline__ double column_sum(double (*sum)[32], double v)
{
    const int tx = threadIdx.x % 32, ty = threadIdx.x / 32;
    __syncthreads();
    sum[ty][tx] = v;
    __syncthreads();
    v = 0;
    for (int k = 0; k < TD_COLUMN_ROWS; k++)
        v += sum[k][tx];
    return v;
}

/* inner 1: 32 channels for each block, its warps take every eighth row of the part */
template <class T, class M>
__global__ void __launch_bounds__(TD_THREADS) column_part_kernel(extent e, int64_t tiles, const T *x, const T *g, const M *mean, double *one, double *two)
{
    __shared__ double sum[TD_COLUMN_ROWS][32];
    const int64_t part = blockIdx.x / tiles, channel = (int64_t)(blockIdx.x % tiles) * 32 + threadIdx.x % 32;
    const int64_t begin = part * e.size, end = begin + e.size < e.n ? begin + e.size : e.n;
    const bool mine = channel < e.c;
    double s = 0, q = 0, mu = 0;
    for (int64_t i = begin + threadIdx.x / 32; i < end && mine; i += TD_COLUMN_ROWS)
        s += (double)td_load<T>((g ? g : x) + i * e.c + channel);
    s = column_sum(sum, s);
    if (mine)
        mu = g ? (double)mean[channel] : s / (double)(end - begin);
    for (int64_t i = begin + threadIdx.x / 32; i < end && mine; i += TD_COLUMN_ROWS) {
        const double v = (double)td_load<T>(x + i * e.c + channel) - mu;
        q += v * (g ? (double)td_load<T>(g + i * e.c + channel) : v);
    }
    q = column_sum(sum, q);
    if (mine && threadIdx.x < 32) {
        one[channel * e.parts + part] = s;
        two[channel * e.parts + part] = q;
    }
}

template <class T, class M> static void sum_parts(const char *row, const extent &e, const T *x, const T *g, const M *mean, double *one, double *two)
{
    enum { V = td_pack<T>::N };
    if (last_packed<T>(e, x, g, NULL, NULL) && g) {
        last_parts<T, true, PLAIN, M>(row, e, x, g, mean, relu_side<T>(), one, two);
    } else if (last_packed<T>(e, x, NULL, NULL, NULL) && !g) {
        last_parts<T, false, PLAIN, M>(row, e, x, NULL, NULL, relu_side<T>(), one, two);
    } else if (e.inner == 1) {
        const int64_t tiles = (e.c + 31) / 32;
        TD_LAUNCH(row, (unsigned)(tiles * e.parts), TD_THREADS, 0, (column_part_kernel<T, M>), e, tiles, x, g, mean, one, two);
    } else if (e.inner % V == 0 && e.size % V == 0 && td_packed(x) && td_packed(g)) {
        TD_LAUNCH(row, (unsigned)(e.c * e.parts), TD_THREADS, 0, (part_kernel<T, V, M>), e, x, g, mean, one, two);
    } else {
        TD_LAUNCH(row, (unsigned)(e.c * e.parts), TD_THREADS, 0, (part_kernel<T, 1, M>), e, x, g, mean, one, two);
    }
}

/* ---- a channel's parts joined, by a warp: every lane gets both ------------------------------------------------------------------------------ */
__device__ __forceinline__ void join_sums(const extent &e, int64_t channel, const double *one, const double *two, double *s, double *q)
{
    double a = 0, b = 0;
    for (int64_t p = threadIdx.x % 32; p < e.parts; p += 32) {
        a += one[channel * e.parts + p];
        b += two[channel * e.parts + p];
    }
    *s = td_team_sum<32>(a);
    *q = td_team_sum<32>(b);
}

__device__ __forceinline__ void join_moments(const extent &e, int64_t channel, const double *one, const double *two, double *mean, double *square)
{
    double a = 0, b = 0;
    for (int64_t p = threadIdx.x % 32; p < e.parts; p += 32)
        a += one[channel * e.parts + p];
    const double mu = td_team_sum<32>(a) / (double)e.count;
    for (int64_t p = threadIdx.x % 32; p < e.parts; p += 32) {
        const double m = (double)((p + 1) * e.size < e.count ? e.size : e.count - p * e.size), d = one[channel * e.parts + p] / m - mu;
        b += two[channel * e.parts + p] + m * d * d;
    }
    *mean = mu;
    *square = td_team_sum<32>(b);
}

/* for (channel = …): one for each warp */
#define EACH_CHANNEL(channel, c)                                                                             \
    for (int64_t channel = (int64_t)blockIdx.x * TD_COLUMN_ROWS + threadIdx.x / 32; channel < (c); channel += (int64_t)gridDim.x * TD_COLUMN_ROWS)

/* The forward's numbers, from the batch or (one NULL) from the running statistics. scale, shift: y = scale*x + shift */
template <bool BEFORE_RELU, class W>
__global__ void __launch_bounds__(TD_THREADS) forward_numbers(extent e, const double *one, const double *two, W *mean, W *rstd, W *scale, W *shift,
                                                              const W *w, const W *b, W *running_mean, W *running_var, double momentum, double eps)
{
    EACH_CHANNEL(k, e.c) {
        double mu = 0, square = 0;
        if (one)
            join_moments(e, k, one, two, &mu, &square);
        if (threadIdx.x % 32)
            continue;
        if (one && running_mean)
            running_mean[k] = (W)((1 - momentum) * (double)running_mean[k] + momentum * mu);
        if (one && running_var)
            running_var[k] = (W)((1 - momentum) * (double)running_var[k] + momentum * square / (double)(e.count - 1));
        mu = one ? mu : (double)running_mean[k];
        const double r = 1 / sqrt((one ? square / (double)e.count : (double)running_var[k]) + eps), f = w ? r * (double)w[k] : r;
        mean[k] = (W)mu;
        rstd[k] = (W)r;
        scale[k] = (W)f;
        shift[k] = (W)((b ? (double)b[k] : 0) - mu * f);
        if (BEFORE_RELU)
            relu_numbers<W>(k, mean, rstd, w, b, scale + k, shift + k);
    }
}

template <class W>
__global__ void __launch_bounds__(TD_THREADS) relu_table_kernel(int64_t c, const W *mean, const W *rstd, const W *w, const W *b, W *scale, W *shift)
{
    TD_GRID_STRIDE(k, c)
        relu_numbers<W>(k, mean, rstd, w, b, scale + k, shift + k);
}

/* to (=|+=) gy where y, or scale*x + shift, is positive; and the same to `copy`, where it is given */
template <class T, class W>
__global__ void __launch_bounds__(TD_THREADS) through_kernel(int64_t n, int64_t c, int64_t inner, T *to, T *copy, const T *gy, const T *y, const T *x,
                                                             const W *scale, const W *shift, bool add)
{
    TD_GRID_STRIDE(i, n) {
        const int64_t k = inner == 1 ? i % c : i / inner % c;
        const bool positive = y ? td_load<T>(y + i) > 0 : scale[k] * td_load<T>(x + i) + shift[k] > 0;
        const td_wide<T> g = positive ? td_load<T>(gy + i) : 0;
        if (copy)
            td_store<T>(copy + i, g);
        if (to)
            td_put<T>(to + i, g, add);
    }
}

/* The gradients of w and b, and gx = a*gy + b*x + d */
template <class W>
__global__ void __launch_bounds__(TD_THREADS) backward_numbers(extent e, const double *one, const double *two, W *gw, W *gb, W *a, W *b, W *d,
                                                               const W *w, const W *mean, const W *rstd, bool train, bool add_w, bool add_b)
{
    EACH_CHANNEL(k, e.c) {
        double g, gd;
        join_sums(e, k, one, two, &g, &gd);
        if (threadIdx.x % 32)
            continue;
        const double r = (double)rstd[k], f = w ? r * (double)w[k] : r;
        if (gw)
            gw[k] = (W)((add_w ? (double)gw[k] : 0) + gd * r);
        if (gb)
            gb[k] = (W)((add_b ? (double)gb[k] : 0) + g);
        const double slope = train ? -f * r * r * gd / (double)e.count : 0;
        a[k] = (W)f;
        b[k] = (W)slope;
        d[k] = train ? (W)(-f * g / (double)e.count - slope * (double)mean[k]) : 0;
    }
}

static __global__ void __launch_bounds__(TD_THREADS) pair_numbers(extent e, const double *one, const double *two, double *first, double *second, bool sums)
{
    EACH_CHANNEL(k, e.c) {
        double s, q;
        if (sums)
            join_sums(e, k, one, two, &s, &q);
        else
            join_moments(e, k, one, two, &s, &q);
        if (threadIdx.x % 32 == 0) {
            first[k] = e.count ? s : 0;
            second[k] = q;
        }
    }
}

/* ---- y (=|+=) a*x + b*z + d per channel, or relu(a*x + z + d); z may be NULL ---------------------------------------------------------------------------------------- */
template <class T, int V, bool RELUS, class N>
__global__ void __launch_bounds__(TD_THREADS) apply_kernel(int64_t groups, uint32_t c, int64_t runs, T *y, const T *x, const T *z, const N *a, const N *b,
                                                           const N *d, bool add)
{
    typedef td_wide<T> W;
    struct __align__(V * sizeof(T)) group { T v[V]; };
    TD_GRID_STRIDE(i, groups) {
        const int64_t row = groups <= 0x7fffffff ? (int64_t)((uint32_t)i / (uint32_t)runs) : i / runs;
        const int64_t k = row <= 0x7fffffff ? (int64_t)((uint32_t)row % c) : row % c;
        const W ak = (W)a[k], bk = z && !RELUS ? (W)b[k] : 0, dk = (W)d[k];
        const group p = *(const group *)(x + i * V);
        group q = p, r = p;
        if (z)
            q = *(const group *)(z + i * V);
        if (add)
            r = *(const group *)(y + i * V);
        TD_UNROLL for (int j = 0; j < V; j++) {
            W v = ak * td_load<T>(p.v + j);
            if (RELUS) {
                v += dk;
                v = z ? v + td_load<T>(q.v + j) : v;
                v = v > 0 || v != v ? v : 0;
            } else {
                v += z ? bk * td_load<T>(q.v + j) + dk : dk;
            }
            td_put<T>(r.v + j, v, add);
        }
        *(group *)(y + i * V) = r;
    }
}

template <class T, bool RELUS, class N>
static void apply(const char *row, const extent &e, T *y, const T *x, const T *z, const N *a, const N *b, const N *d, bool add)
{
    enum { V = td_pack<T>::N };
    const int64_t total = e.count * e.c;
    if (total == 0)
        return;
    if (last_packed<T>(e, y, x, z, NULL))
        last_apply<T, RELUS ? RELU : PLAIN, N>(row, e, y, x, z, NULL, a, b, d, NULL, NULL, add);
    else if (e.inner % V == 0 && td_packed(y) && td_packed(x) && td_packed(z))
        TD_LAUNCH(row, td_blocks(total / V), TD_THREADS, 0, (apply_kernel<T, V, RELUS, N>), total / V, (uint32_t)e.c, e.inner / V, y, x, z, a, b, d, add);
    else
        TD_LAUNCH(row, td_blocks(total), TD_THREADS, 0, (apply_kernel<T, 1, RELUS, N>), total, (uint32_t)e.c, e.inner, y, x, z, a, b, d, add);
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
template <class W> __global__ void __launch_bounds__(TD_THREADS) zero_kernel(int64_t n, W *a, W *b)
{
    TD_GRID_STRIDE(i, n)
        a[i] = b[i] = 0;
}

static size_t part_bytes(const extent &e)
{
    return sizeof(double) * (size_t)(e.c * (e.parts > 0 ? e.parts : 1));
}

template <class T, bool RELUS>
static void norm(const char *row, const extent &e, T *y, void *mean, void *rstd, const T *x, const T *z, const void *w, const void *b, void *running_mean,
                 void *running_var, bool train, double momentum, double eps)
{
    typedef td_wide<T> W;
    if (e.count <= 0) {              /* no rows: nothing to write, nothing learnt; saved numbers that give zero gradients */
        TD_LAUNCH(row, td_blocks(e.c), TD_THREADS, 0, (zero_kernel<W>), e.c, (W *)mean, (W *)rstd);
        return;
    }
    const size_t bytes = part_bytes(e);
    char *room = (char *)td__cuda_scratch(2 * bytes + sizeof(W) * 2 * (size_t)e.c);
    if (!room)
        return;
    double *one = (double *)room, *two = (double *)(room + bytes);
    W *scale = (W *)(room + 2 * bytes), *shift = scale + e.c;
    if (train)
        sum_parts<T, W>(row, e, x, NULL, NULL, one, two);
    TD_LAUNCH(row, td_blocks(e.c, TD_COLUMN_ROWS), TD_THREADS, 0, (forward_numbers<RELUS, W>), e, (const double *)(train ? one : NULL),
              (const double *)two, (W *)mean, (W *)rstd, scale, shift, (const W *)w, (const W *)b, (W *)running_mean, (W *)running_var, momentum, eps);
    apply<T, RELUS, W>(row, e, y, x, z, scale, NULL, shift, false);
    td__cuda_scratch_free(room);
}

extern "C" void td__cuda_batch_norm(td_dtype t, int64_t n, int64_t c, int64_t inner, void *y, void *mean, void *rstd, const void *x, const void *w,
                                    const void *b, void *running_mean, void *running_var, bool train, double momentum, double eps)
{
    if (c > 0)
        TD_CUDA_FLOAT(t, T, (norm<T, false>("batch_norm", extent_of(n, c, inner), (T *)y, mean, rstd, (const T *)x, NULL, w, b, running_mean,
                                            running_var, train, momentum, eps)))
}

extern "C" void td__cuda_batch_norm_relu(td_dtype t, int64_t n, int64_t c, int64_t inner, void *y, void *mean, void *rstd, const void *x, const void *z,
                                         const void *w, const void *b, void *running_mean, void *running_var, bool train, double momentum, double eps)
{
    if (c > 0)
        TD_CUDA_FLOAT(t, T, (norm<T, true>("batch_norm_relu", extent_of(n, c, inner), (T *)y, mean, rstd, (const T *)x, (const T *)z, w, b,
                                           running_mean, running_var, train, momentum, eps)))
}

template <class T>
static void norm_grad(const extent &e, T *gx, void *gw, void *gb, const T *gy, const T *x, const void *w, const void *mean, const void *rstd, bool train,
                      bool add_x, bool add_w, bool add_b)
{
    typedef td_wide<T> W;
    const size_t bytes = part_bytes(e);
    char *room = (char *)td__cuda_scratch(2 * bytes + sizeof(W) * 3 * (size_t)e.c);
    if (!room)
        return;
    double *one = (double *)room, *two = (double *)(room + bytes);
    W *a = (W *)(room + 2 * bytes), *b = a + e.c, *d = b + e.c;
    if (e.parts > 0 && (gw || gb || train))      /* x is there where its sum is read: gb alone takes gy in its place */
        sum_parts<T, W>("batch_norm_grad", e, x ? x : gy, gy, (const W *)mean, one, two);
    extent joined = e;
    if (!(gw || gb || train))
        joined.parts = 0;
    TD_LAUNCH("batch_norm_grad", td_blocks(e.c, TD_COLUMN_ROWS), TD_THREADS, 0, (backward_numbers<W>), joined, (const double *)one, (const double *)two,
              (W *)gw, (W *)gb, a, b, d, (const W *)w, (const W *)mean, (const W *)rstd, train, add_w, add_b);
    if (gx)
        apply<T, false, W>("batch_norm_grad", e, gx, gy, train ? x : NULL, a, b, d, add_x);
    td__cuda_scratch_free(room);
}

extern "C" void td__cuda_batch_norm_grad(td_dtype t, int64_t n, int64_t c, int64_t inner, void *gx, void *gw, void *gb, const void *gy, const void *x,
                                         const void *w, const void *mean, const void *rstd, bool train, bool add_x, bool add_w, bool add_b)
{
    if (n * inner <= 0)              /* no division by the count: only zeroes are written */
        train = false;
    if (c > 0)
        TD_CUDA_FLOAT(t, T, norm_grad<T>(extent_of(n, c, inner), (T *)gx, gw, gb, (const T *)gy, (const T *)x, w, mean, rstd, train, add_x, add_w, add_b))
}

/* Channels last: what relu let through is found in both passes. */
template <class T, int MODE>
static void last_relu_grad(const extent &e, T *gx, void *gw, void *gb, const T *gy, const T *x, const void *w, const void *mean, const void *rstd,
                           bool train, bool add_x, bool add_w, bool add_b, const relu_side<T> &side, void *scratch)
{
    typedef td_wide<T> W;
    double *one = (double *)scratch, *two = one + e.c * e.parts;
    W *a = (W *)(two + e.c * e.parts), *b = a + e.c, *d = b + e.c;
    const bool written = side.gz && !side.add_z;
    last_parts<T, true, MODE, W>("batch_norm_relu_grad", e, x, gy, (const W *)mean, side, one, two);
    TD_LAUNCH("batch_norm_relu_grad", td_blocks(e.c, TD_COLUMN_ROWS), TD_THREADS, 0, (backward_numbers<W>), e, (const double *)one,
              (const double *)two, (W *)gw, (W *)gb, a, b, d, (const W *)w, (const W *)mean, (const W *)rstd, train, add_w, add_b);
    if (gx && written)
        last_apply<T, PLAIN, W>("batch_norm_relu_grad", e, gx, side.gz, train ? x : NULL, NULL, a, b, d, NULL, NULL, add_x);
    else if (gx)
        last_apply<T, MODE, W>("batch_norm_relu_grad", e, gx, gy, MODE == RELU_X || train ? x : NULL, side.y, a, b, d, side.scale, side.shift, add_x);
}

template <class T>
static void relu_grad(td_dtype t, const extent &e, T *gx, T *gz, void *gw, void *gb, const T *gy, const T *y, const T *x, const void *w, const void *b,
                      const void *mean, const void *rstd, bool train, bool add_x, bool add_z, bool add_w, bool add_b)
{
    typedef td_wide<T> W;
    const bool more = gx || gw || gb, last = e.parts > 0 && x && last_packed<T>(e, gx, gy, x, y) && ((uintptr_t)gz & 15) == 0;
    const bool own = more && !last && (!gz || add_z);
    const int64_t total = e.count * e.c;
    const size_t table = sizeof(W) * 5 * (size_t)e.c, bytes = 2 * part_bytes(e) + table;
    char *room = (char *)td__cuda_scratch(bytes + (own ? sizeof(T) * (size_t)total : 0) + 16);
    if (!room)
        return;
    W *scale = (W *)(room + 2 * part_bytes(e)) + 3 * e.c, *shift = scale + e.c;
    if (!y)
        TD_LAUNCH("batch_norm_relu_grad", td_blocks(e.c), TD_THREADS, 0, (relu_table_kernel<W>), e.c, (const W *)mean, (const W *)rstd, (const W *)w,
                  (const W *)b, scale, shift);
    if (last && more) {
        const relu_side<T> side = { y, scale, shift, gz, add_z };
        if (y)
            last_relu_grad<T, RELU_Y>(e, gx, gw, gb, gy, x, w, mean, rstd, train, add_x, add_w, add_b, side, room);
        else
            last_relu_grad<T, RELU_X>(e, gx, gw, gb, gy, x, w, mean, rstd, train, add_x, add_w, add_b, side, room);
        td__cuda_scratch_free(room);
        return;
    }
    T *through = own ? (T *)(room + (bytes + 15) / 16 * 16) : gz;
    if (total > 0)
        TD_LAUNCH("batch_norm_relu_grad", td_blocks(total), TD_THREADS, 0, (through_kernel<T, W>), total, e.c, e.inner, gz, own ? through : (T *)NULL, gy,
                  y, x, (const W *)scale, (const W *)shift, add_z);
    if (more)
        td__cuda_batch_norm_grad(t, e.n, e.c, e.inner, gx, gw, gb, through, x, w, mean, rstd, train, add_x, add_w, add_b);
    td__cuda_scratch_free(room);
}

extern "C" void td__cuda_batch_norm_relu_grad(td_dtype t, int64_t n, int64_t c, int64_t inner, void *gx, void *gz, void *gw, void *gb, const void *gy,
                                              const void *y, const void *x, const void *w, const void *b, const void *mean, const void *rstd,
                                              bool train, bool add_x, bool add_z, bool add_w, bool add_b)
{
    if (n * inner <= 0)
        train = false;
    if (c > 0)
        TD_CUDA_FLOAT(t, T, relu_grad<T>(t, extent_of(n, c, inner), (T *)gx, (T *)gz, gw, gb, (const T *)gy, (const T *)y, (const T *)x, w, b, mean, rstd,
                                         train, add_x, add_z, add_w, add_b))
}

/* mean, first and second lie on the device, as batch_norm_sync.cu wants them. */
extern "C" void td__cuda_batch_norm_pair(td_dtype t, int64_t n, int64_t c, int64_t inner, const void *x, const void *g, const double *mean, double *first,
                                         double *second)
{
    const extent e = extent_of(n, c, inner);
    const size_t bytes = part_bytes(e);
    if (c <= 0)
        return;
    char *room = (char *)td__cuda_scratch(2 * bytes);
    if (!room)
        return;
    double *one = (double *)room, *two = (double *)(room + bytes);
    if (e.parts > 0)
        TD_CUDA_FLOAT(t, T, (sum_parts<T, double>("batch_norm_pair", e, (const T *)x, (const T *)g, mean, one, two)))
    TD_LAUNCH("batch_norm_pair", td_blocks(c, TD_COLUMN_ROWS), TD_THREADS, 0, (pair_numbers), e, (const double *)one, (const double *)two, first, second,
              g != NULL);
    td__cuda_scratch_free(room);
}

/* a, b and d likewise */
extern "C" void td__cuda_batch_norm_affine(td_dtype t, int64_t n, int64_t c, int64_t inner, void *y, const void *x, const void *z, const double *a,
                                           const double *b, const double *d, bool add)
{
    if (c > 0)
        TD_CUDA_FLOAT(t, T, (apply<T, false, double>("batch_norm_affine", extent_of(n, c, inner), (T *)y, (const T *)x, (const T *)z, a, b, d, add)))
}
