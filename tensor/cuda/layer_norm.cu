/* tensor/cuda/layer_norm.cu: rows brought to mean 0 and variance 1 (layer norm) or to a mean square of 1 (RMS norm), and the gradients.
 *
 * Twin of ../cpu/layer_norm.c. A team of threads takes a row: a warp, or a block where rows are long. Rows that are aligned and not too long are read
 * once, in packs of 16 bytes, and stay in registers between the mean, the squared deviations from it and the result; others are read in three
 * passes, of which the caches serve two. x may have 16 bits and y 32 or the other way round, so that nothing is converted before or after; the
 * saved mean and rstd, w, b and their gradients are in f32 then. The gradients of w and b are sums of columns:
 * rows are cut into parts by their number alone, a block sums a part of some columns in double, a second kernel adds the parts.
 */
#include "packs.h"
#include "vector.h"

/* Neighbours that are moved as one: 16 bytes of the wider of x's and y's types. */
template <class T, class Y> struct both { enum { V = 16 / (int)(sizeof(T) > sizeof(Y) ? sizeof(T) : sizeof(Y)) }; };

/* How many of them a thread holds: 32 values (16 doubles) in a warp, half as many in a block. */
template <class T, class Y, int TEAM> struct held {
    enum { V = both<T, Y>::V, PACKS = (TEAM == 32 ? 32 : 16) / V / (sizeof(T) == 8 ? 2 : 1), MOST = PACKS * TEAM * V };
};

/* V neighbours of w or b */
template <int V, class W> __device__ __forceinline__ void take(const W *p, W (&into)[V])
{
    enum { N = V < td_pack<W>::N ? V : (int)td_pack<W>::N };
    TD_UNROLL for (int k = 0; k < V; k += N) {
        const td_vector<W, N> v = td_load_vector<W, N>(p + k);
        TD_UNROLL for (int j = 0; j < N; j++)
            into[k + j] = v.v[j];
    }
}

template <class T, class Y, int TEAM>
__global__ void __launch_bounds__(TD_THREADS) norm_held(int64_t rows, int64_t n, Y *y, td_wide<T> *mean, td_wide<T> *rstd, const T *x,
                                                        const td_wide<T> *w, const td_wide<T> *b, td_wide<T> eps)
{
    typedef td_wide<T> W;
    enum { V = both<T, Y>::V, PACKS = held<T, Y, TEAM>::PACKS, TEAMS = TD_THREADS / TEAM };
    const int lane = threadIdx.x % TEAM;
    for (int64_t r = (int64_t)blockIdx.x * TEAMS + threadIdx.x / TEAM; r < rows; r += (int64_t)gridDim.x * TEAMS) {
        W v[PACKS][V], mu = 0, square = 0;
        TD_UNROLL for (int c = 0; c < PACKS; c++) {
            const int64_t i = (int64_t)(c * TEAM + lane) * V;
            td_vector<T, V> p;
            if (i < n)
                p = td_load_vector<T, V>(x + r * n + i);
            TD_UNROLL for (int k = 0; k < V; k++) {
                v[c][k] = i < n ? td_load<T>(p.v + k) : 0;
                mu += v[c][k];
            }
        }
        mu = mean ? td_team_sum<TEAM>(mu) / (W)n : 0;
        TD_UNROLL for (int c = 0; c < PACKS; c++)
            TD_UNROLL for (int k = 0; k < V; k++)
                square += (int64_t)(c * TEAM + lane) * V < n ? (v[c][k] - mu) * (v[c][k] - mu) : 0;
        const W scale = 1 / sqrt(td_team_sum<TEAM>(square) / (W)n + eps);
        if (lane == 0) {
            if (mean)
                mean[r] = mu;
            rstd[r] = scale;
        }
        TD_UNROLL for (int c = 0; c < PACKS; c++) {
            const int64_t i = (int64_t)(c * TEAM + lane) * V;
            W factor[V], term[V];
            td_vector<Y, V> o;
            if (i >= n)
                continue;
            if (w)
                take<V>(w + i, factor);
            if (b)
                take<V>(b + i, term);
            TD_UNROLL for (int k = 0; k < V; k++) {
                W h = (v[c][k] - mu) * scale;
                h = w ? h * factor[k] : h;
                td_store<Y>(o.v + k, b ? h + term[k] : h);
            }
            td_store_vector<Y, V>(y + r * n + i, o);
        }
    }
}

template <class T, class Y, int TEAM>
__global__ void __launch_bounds__(TD_THREADS) norm_passes(int64_t rows, int64_t n, Y *y, td_wide<T> *mean, td_wide<T> *rstd, const T *x,
                                                          const td_wide<T> *w, const td_wide<T> *b, td_wide<T> eps)
{
    typedef td_wide<T> W;
    enum { TEAMS = TD_THREADS / TEAM };
    const int lane = threadIdx.x % TEAM;
    for (int64_t r = (int64_t)blockIdx.x * TEAMS + threadIdx.x / TEAM; r < rows; r += (int64_t)gridDim.x * TEAMS) {
        const T *xr = x + r * n;
        W mu = 0, square = 0;
        for (int64_t i = lane; i < n && mean; i += TEAM)
            mu += td_load<T>(xr + i);
        mu = mean ? td_team_sum<TEAM>(mu) / (W)n : 0;
        for (int64_t i = lane; i < n; i += TEAM) {
            const W d = td_load<T>(xr + i) - mu;
            square += d * d;
        }
        const W scale = 1 / sqrt(td_team_sum<TEAM>(square) / (W)n + eps);
        if (lane == 0) {
            if (mean)
                mean[r] = mu;
            rstd[r] = scale;
        }
        for (int64_t i = lane; i < n; i += TEAM) {
            W h = (td_load<T>(xr + i) - mu) * scale;
            h = w ? h * w[i] : h;
            td_store<Y>(y + r * n + i, b ? h + b[i] : h);
        }
    }
}

/* ---- the gradient of x: with h the normalised row and g = gy*w: rstd * (g - mean(g) - h*mean(g*h)); RMS norm has no mean(g) ---------------- */
template <class T, class Y, int TEAM>
__global__ void __launch_bounds__(TD_THREADS) grad_held(int64_t rows, int64_t n, T *gx, const Y *gy, const T *x, const td_wide<T> *w,
                                                        const td_wide<T> *mean, const td_wide<T> *rstd, bool add)
{
    typedef td_wide<T> W;
    enum { V = both<T, Y>::V, PACKS = held<T, Y, TEAM>::PACKS, TEAMS = TD_THREADS / TEAM };
    const int lane = threadIdx.x % TEAM;
    for (int64_t r = (int64_t)blockIdx.x * TEAMS + threadIdx.x / TEAM; r < rows; r += (int64_t)gridDim.x * TEAMS) {
        const W m = mean ? mean[r] : 0, scale = rstd[r];
        W g[PACKS][V], h[PACKS][V], a = 0, s = 0;
        TD_UNROLL for (int c = 0; c < PACKS; c++) {
            const int64_t i = (int64_t)(c * TEAM + lane) * V;
            td_vector<Y, V> p;
            td_vector<T, V> q;
            W factor[V];
            if (i < n) {
                p = td_load_vector<Y, V>(gy + r * n + i);
                q = td_load_vector<T, V>(x + r * n + i);
                if (w)
                    take<V>(w + i, factor);
            }
            TD_UNROLL for (int k = 0; k < V; k++) {
                g[c][k] = i < n ? w ? (W)td_load<Y>(p.v + k) * factor[k] : (W)td_load<Y>(p.v + k) : 0;
                h[c][k] = i < n ? (td_load<T>(q.v + k) - m) * scale : 0;
                a += g[c][k];
                s += g[c][k] * h[c][k];
            }
        }
        a = mean ? td_team_sum<TEAM>(a) / (W)n : 0;
        s = td_team_sum<TEAM>(s) / (W)n;
        TD_UNROLL for (int c = 0; c < PACKS; c++) {
            const int64_t i = (int64_t)(c * TEAM + lane) * V;
            if (i >= n)
                continue;
            td_vector<T, V> p;
            if (add)
                p = td_load_vector<T, V>(gx + r * n + i);
            TD_UNROLL for (int k = 0; k < V; k++)
                td_put<T>(p.v + k, scale * (g[c][k] - a - h[c][k] * s), add);
            td_store_vector<T, V>(gx + r * n + i, p);
        }
    }
}

template <class T, class Y, int TEAM>
__global__ void __launch_bounds__(TD_THREADS) grad_passes(int64_t rows, int64_t n, T *gx, const Y *gy, const T *x, const td_wide<T> *w,
                                                          const td_wide<T> *mean, const td_wide<T> *rstd, bool add)
{
    typedef td_wide<T> W;
    enum { TEAMS = TD_THREADS / TEAM };
    const int lane = threadIdx.x % TEAM;
    for (int64_t r = (int64_t)blockIdx.x * TEAMS + threadIdx.x / TEAM; r < rows; r += (int64_t)gridDim.x * TEAMS) {
        const W m = mean ? mean[r] : 0, scale = rstd[r];
        const Y *gr = gy + r * n;
        const T *xr = x + r * n;
        W a = 0, s = 0;
        for (int64_t i = lane; i < n; i += TEAM) {
            const W g = w ? (W)td_load<Y>(gr + i) * w[i] : (W)td_load<Y>(gr + i);
            a += g;
            s += g * ((td_load<T>(xr + i) - m) * scale);
        }
        a = mean ? td_team_sum<TEAM>(a) / (W)n : 0;
        s = td_team_sum<TEAM>(s) / (W)n;
        for (int64_t i = lane; i < n; i += TEAM) {
            const W g = w ? (W)td_load<Y>(gr + i) * w[i] : (W)td_load<Y>(gr + i);
            td_put<T>(gx + r * n + i, scale * (g - a - (td_load<T>(xr + i) - m) * scale * s), add);
        }
    }
}

/* ---- the gradients of w and b --------------------------------------------------------------------------------------------------------------- */
enum { PARTS = 256, PART_ROWS = 64 };

static int64_t rows_of_part(int64_t rows)      /* at most PARTS parts, of at least PART_ROWS rows */
{
    const int64_t size = (rows + PARTS - 1) / PARTS;
    return size > PART_ROWS ? size : (int64_t)PART_ROWS;
}

/* V neighbouring columns for each thread of a warp; the block's warps take every eighth row of the part. `both`: gw is wanted too. */
template <class T, class Y, int V>
__global__ void __launch_bounds__(TD_THREADS, 3) affine_parts(int64_t rows, int64_t n, int64_t size, int64_t tiles, double *part_w, double *part_b,
                                                           const Y *gy, const T *x, const td_wide<T> *mean, const td_wide<T> *rstd)
{
    typedef td_wide<T> W;
    __shared__ double sum[TD_COLUMN_ROWS][32 * V];
    const int tx = threadIdx.x % 32, ty = threadIdx.x / 32;
    const int64_t p = blockIdx.x / tiles, j = ((int64_t)(blockIdx.x % tiles) * 32 + tx) * V, end = (p + 1) * size < rows ? (p + 1) * size : rows;
    double sw[V] = { 0 }, sb[V] = { 0 };
    if (j < n)
        for (int64_t r = p * size + ty; r < end; r += TD_COLUMN_ROWS) {
            const td_vector<Y, V> g = td_load_vector<Y, V>(gy + r * n + j);
            const W m = mean ? mean[r] : 0, scale = rstd[r];
            td_vector<T, V> h;
            if (part_w)
                h = td_load_vector<T, V>(x + r * n + j);
            TD_UNROLL for (int k = 0; k < V; k++) {
                sb[k] += (double)td_load<Y>(g.v + k);
                if (part_w)
                    sw[k] += (double)((W)td_load<Y>(g.v + k) * ((td_load<T>(h.v + k) - m) * scale));
            }
        }
    for (int which = 0; which < 2; which++) {
        double *part = which ? part_b : part_w;
        __syncthreads();
        TD_UNROLL for (int k = 0; k < V; k++)
            sum[ty][tx * V + k] = which ? sb[k] : sw[k];
        __syncthreads();
        for (int q = threadIdx.x; q < 32 * V && part; q += TD_THREADS) {
            const int64_t column = (int64_t)(blockIdx.x % tiles) * 32 * V + q;
            double s = 0;
            for (int k = 0; k < TD_COLUMN_ROWS; k++)
                s += sum[k][q];
            if (column < n)
                part[p * n + column] = s;
        }
    }
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
template <class T> __global__ void __launch_bounds__(TD_THREADS) zero_kernel(int64_t rows, T *mean, T *rstd)
{
    TD_GRID_STRIDE(i, rows) {
        if (mean)
            mean[i] = 0;
        rstd[i] = 0;
    }
}

/* a warp for each row, or a block: held where everything is aligned */
#define TEAMS(row, kind, T, Y, packed, rows, n, ...)                                                         \
    do {                                                                                                     \
        if ((packed) && (n) <= held<T, Y, 32>::MOST)                                                         \
            TD_LAUNCH(row, td_blocks(rows, TD_THREADS / 32), TD_THREADS, 0, (kind##_held<T, Y, 32>), rows, n, __VA_ARGS__);  \
        else if ((packed) && (n) <= held<T, Y, TD_THREADS>::MOST)                                            \
            TD_LAUNCH(row, td_blocks(rows, 1), TD_THREADS, 0, (kind##_held<T, Y, TD_THREADS>), rows, n, __VA_ARGS__);  \
        else if ((n) <= 1024)                                                                                \
            TD_LAUNCH(row, td_blocks(rows, TD_THREADS / 32), TD_THREADS, 0, (kind##_passes<T, Y, 32>), rows, n, __VA_ARGS__);  \
        else                                                                                                 \
            TD_LAUNCH(row, td_blocks(rows, 1), TD_THREADS, 0, (kind##_passes<T, Y, TD_THREADS>), rows, n, __VA_ARGS__);  \
    } while (0)

/* the types of x and y that may meet */
#define TYPES(t, ty, T, Y, ...)                                                                              \
    switch (t) {                                                                                             \
        TD_CUDA_CASE(TD_F64, T, double, typedef double Y; __VA_ARGS__)                                       \
        TD_CUDA_CASE(TD_F32, T, float, switch (ty) {                                                         \
            TD_CUDA_CASE(TD_F16, Y, td_half, __VA_ARGS__)                                                    \
            TD_CUDA_CASE(TD_BF16, Y, td_bfloat, __VA_ARGS__)                                                 \
            default: { typedef float Y; __VA_ARGS__; } })                                                    \
        TD_CUDA_CASE(TD_F16, T, td_half, if (ty == TD_F32) { typedef float Y; __VA_ARGS__; } else { typedef td_half Y; __VA_ARGS__; })  \
        TD_CUDA_CASE(TD_BF16, T, td_bfloat, if (ty == TD_F32) { typedef float Y; __VA_ARGS__; } else { typedef td_bfloat Y; __VA_ARGS__; })  \
    default: break;                                                                                          \
    }

/* Can V neighbours be moved as one? NULL can: nobody reads it. */
template <class T, int V> static bool together(const void *p) { return (uintptr_t)p % (sizeof(T) * V < 16 ? sizeof(T) * V : 16) == 0; }

template <class T, class Y>
static void norm(int64_t rows, int64_t n, Y *y, void *mean, void *rstd, const T *x, const void *w, const void *b, double eps)
{
    typedef td_wide<T> W;
    enum { V = both<T, Y>::V };
    if (n == 0) {                /* rows of nothing: saved numbers that mean nothing */
        TD_LAUNCH("layer_norm", td_blocks(rows), TD_THREADS, 0, (zero_kernel<W>), rows, (W *)mean, (W *)rstd);
        return;
    }
    const bool packed = n % V == 0 && together<Y, V>(y) && together<T, V>(x) && together<W, V>(w) && together<W, V>(b);
    TEAMS("layer_norm", norm, T, Y, packed, rows, n, y, (W *)mean, (W *)rstd, x, (const W *)w, (const W *)b, (W)eps);
}

extern "C" void td__cuda_layer_norm(td_dtype t, td_dtype ty, int64_t rows, int64_t n, void *y, void *mean, void *rstd, const void *x, const void *w,
                                    const void *b, double eps)
{
    if (rows > 0)
        TYPES(t, ty, T, Y, norm<T, Y>(rows, n, (Y *)y, mean, rstd, (const T *)x, w, b, eps))
}

template <class T, class Y>
static void affine_grad(int64_t rows, int64_t n, td_wide<T> *gw, td_wide<T> *gb, const Y *gy, const T *x, const td_wide<T> *mean, const td_wide<T> *rstd,
                        bool add_w, bool add_b)
{
    enum { V = both<T, Y>::V };
    const int64_t size = rows_of_part(rows), parts = (rows + size - 1) / size;
    double *part = (double *)td__cuda_scratch(sizeof(double) * 2 * (size_t)n * (size_t)(parts > 0 ? parts : 1));
    if (!part)
        return;
    double *part_w = gw ? part : NULL, *part_b = gb ? part + parts * n : NULL;
    const bool packed = n % V == 0 && together<Y, V>(gy) && (!gw || together<T, V>(x));
    const int64_t tiles = (n + (packed ? 32 * V : 32) - 1) / (packed ? 32 * V : 32);
    if (parts > 0 && packed)
        TD_LAUNCH("layer_norm_grad", (unsigned)(tiles * parts), TD_THREADS, 0, (affine_parts<T, Y, V>), rows, n, size, tiles, part_w, part_b, gy, x, mean,
                  rstd);
    else if (parts > 0)
        TD_LAUNCH("layer_norm_grad", (unsigned)(tiles * parts), TD_THREADS, 0, (affine_parts<T, Y, 1>), rows, n, size, tiles, part_w, part_b, gy, x, mean,
                  rstd);
    td_columns<td_wide<T>>("layer_norm_grad", parts, n, n, gw, gb, part_w, part_b, add_w, add_b);
    td__cuda_scratch_free(part);
}

template <class T, class Y>
static void norm_grad(int64_t rows, int64_t n, T *gx, void *gw, void *gb, const Y *gy, const T *x, const void *w_, const void *mean_, const void *rstd_,
                      bool add_x, bool add_w, bool add_b)
{
    typedef td_wide<T> W;
    enum { V = both<T, Y>::V };
    const W *mean = (const W *)mean_, *rstd = (const W *)rstd_, *w = (const W *)w_;
    const bool packed = n % V == 0 && together<T, V>(gx) && together<Y, V>(gy) && together<T, V>(x) && together<W, V>(w);
    if (gx && rows > 0)
        TEAMS("layer_norm_grad", grad, T, Y, packed, rows, n, gx, gy, x, w, mean, rstd, add_x);
    if (gw || gb)
        affine_grad<T, Y>(rows, n, (W *)gw, (W *)gb, gy, x, mean, rstd, add_w, add_b);
}

extern "C" void td__cuda_layer_norm_grad(td_dtype t, td_dtype ty, int64_t rows, int64_t n, void *gx, void *gw, void *gb, const void *gy, const void *x,
                                         const void *w, const void *mean, const void *rstd, bool add_x, bool add_w, bool add_b)
{
    if (n > 0)
        TYPES(t, ty, T, Y, norm_grad<T, Y>(rows, n, (T *)gx, gw, gb, (const Y *)gy, (const T *)x, w, mean, rstd, add_x, add_w, add_b))
}
