/* tensor/cuda/group_norm.cu: normalisation of groups of neighbouring channels, each sample by itself, and the gradients.
 *
 * Twin of ../cpu/group_norm.c. x is (n, c, inner); a group is a row of c/groups*inner elements, which a warp or a block takes. The gradients begin
 * with two sums over inner for every sample and channel, in double: from them come a group's two numbers, with which one more pass writes gx, and,
 * added over the samples (packs.h), the gradients of w and b. The saved mean and rstd, w, b and their gradients are in f32 where x has 16 bits.
 */
#include "packs.h"

enum { SHORT = 1024 };               /* up to here a warp takes a row */

template <class T, int TEAM>
__global__ void __launch_bounds__(TD_THREADS) norm_kernel(int64_t rows, int64_t groups, int64_t per, int64_t inner, T *y, td_wide<T> *mean,
                                                          td_wide<T> *rstd, const T *x, const td_wide<T> *w, const td_wide<T> *b, td_wide<T> eps)
{
    typedef td_wide<T> W;
    enum { TEAMS = TD_THREADS / TEAM };
    const int lane = threadIdx.x % TEAM;
    const int64_t m = per * inner;
    for (int64_t r = (int64_t)blockIdx.x * TEAMS + threadIdx.x / TEAM; r < rows; r += (int64_t)gridDim.x * TEAMS) {
        const T *xr = x + r * m;
        W mu = 0, square = 0;
        for (int64_t i = lane; i < m; i += TEAM)
            mu += td_load<T>(xr + i);
        mu = td_team_sum<TEAM>(mu) / (W)m;
        for (int64_t i = lane; i < m; i += TEAM) {
            const W d = td_load<T>(xr + i) - mu;
            square += d * d;
        }
        const W k = 1 / sqrt(td_team_sum<TEAM>(square) / (W)m + eps);
        if (lane == 0) {
            mean[r] = mu;
            rstd[r] = k;
        }
        const int64_t channel = r % groups * per;
        int64_t j = lane / inner, at = lane % inner;       /* the channel within the group, the place within the channel */
        const int64_t jump = TEAM / inner, rest = TEAM % inner;
        for (int64_t i = lane; i < m; i += TEAM) {
            const W scale = w ? k * w[channel + j] : k;
            td_store<T>(y + r * m + i, (td_load<T>(xr + i) - mu) * scale + (b ? b[channel + j] : 0));
            j += jump;
            at += rest;
            if (at >= inner) {
                at -= inner;
                j++;
            }
        }
    }
}

/* For each of n*c rows of inner elements: the sums of gy, and (x given) of gy times the normalised x. */
template <class T, int TEAM>
__global__ void __launch_bounds__(TD_THREADS) channel_sums(int64_t rows, int64_t per, int64_t inner, double *g, double *gh, const T *gy, const T *x,
                                                           const td_wide<T> *mean, const td_wide<T> *rstd)
{
    enum { TEAMS = TD_THREADS / TEAM };
    const int lane = threadIdx.x % TEAM;
    for (int64_t r = (int64_t)blockIdx.x * TEAMS + threadIdx.x / TEAM; r < rows; r += (int64_t)gridDim.x * TEAMS) {
        const td_wide<T> a = mean[r / per], k = rstd[r / per];
        double s = 0, h = 0;
        for (int64_t i = lane; i < inner; i += TEAM) {
            const double v = (double)td_load<T>(gy + r * inner + i);
            s += v;
            if (x)
                h += v * (double)((td_load<T>(x + r * inner + i) - a) * k);
        }
        s = td_team_sum<TEAM>(s);
        h = td_team_sum<TEAM>(h);
        if (lane == 0) {
            g[r] = s;
            gh[r] = h;
        }
    }
}

/* A warp for each group: sub and slope, the means over the group of gy*w and of gy*w times the normalised x. */
template <class T>
__global__ void __launch_bounds__(TD_THREADS) group_numbers(int64_t rows, int64_t groups, int64_t per, int64_t inner, td_wide<T> *sub, td_wide<T> *slope,
                                                            const double *g, const double *gh, const td_wide<T> *w)
{
    const int lane = threadIdx.x % 32;
    const double m = (double)(per * inner);
    for (int64_t r = (int64_t)blockIdx.x * TD_COLUMN_ROWS + threadIdx.x / 32; r < rows; r += (int64_t)gridDim.x * TD_COLUMN_ROWS) {
        double s = 0, h = 0;
        for (int64_t j = lane; j < per; j += 32) {
            const double wj = w ? (double)w[r % groups * per + j] : 1;
            s += g[r * per + j] * wj;
            h += gh[r * per + j] * wj;
        }
        s = td_team_sum<32>(s);
        h = td_team_sum<32>(h);
        if (lane == 0) {
            sub[r] = (td_wide<T>)(s / m);
            slope[r] = (td_wide<T>)(h / m);
        }
    }
}

template <class T>
__global__ void __launch_bounds__(TD_THREADS) grad_kernel(int64_t n, int64_t groups, int64_t per, int64_t inner, T *gx, const T *gy, const T *x,
                                                          const td_wide<T> *w, const td_wide<T> *mean, const td_wide<T> *rstd, const td_wide<T> *sub,
                                                          const td_wide<T> *slope, bool add)
{
    typedef td_wide<T> W;
    TD_GRID_STRIDE(i, n) {
        int64_t row, r;                                    /* sample and channel; sample and group */
        if (n <= 0x7fffffff) {
            row = (uint32_t)i / (uint32_t)inner;
            r = (uint32_t)row / (uint32_t)per;
        } else {
            row = i / inner;
            r = row / per;
        }
        const W k = rstd[r], g = td_load<T>(gy + i);
        const W gw = w ? g * w[r % groups * per + row - r * per] : g;
        td_put<T>(gx + i, k * (gw - sub[r] - (td_load<T>(x + i) - mean[r]) * k * slope[r]), add);
    }
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
template <class T> __global__ void __launch_bounds__(TD_THREADS) zero_kernel(int64_t rows, T *mean, T *rstd)
{
    TD_GRID_STRIDE(i, rows)
        mean[i] = rstd[i] = 0;
}

template <class T>
static void norm(int64_t n, int64_t c, int64_t inner, int64_t groups, T *y, void *mean_, void *rstd_, const T *x, const void *w_, const void *b_, double eps)
{
    typedef td_wide<T> W;
    const W *w = (const W *)w_, *b = (const W *)b_;
    W *mean = (W *)mean_, *rstd = (W *)rstd_;
    const int64_t rows = n * groups, per = c / groups;
    if (per * inner == 0)            /* groups of nothing: saved numbers that mean nothing */
        TD_LAUNCH("group_norm", td_blocks(rows), TD_THREADS, 0, (zero_kernel<W>), rows, mean, rstd);
    else if (per * inner <= SHORT)
        TD_LAUNCH("group_norm", td_blocks(rows, TD_THREADS / 32), TD_THREADS, 0, (norm_kernel<T, 32>), rows, groups, per, inner, y, mean, rstd, x, w, b,
                  (W)eps);
    else
        TD_LAUNCH("group_norm", td_blocks(rows, 1), TD_THREADS, 0, (norm_kernel<T, TD_THREADS>), rows, groups, per, inner, y, mean, rstd, x, w, b, (W)eps);
}

extern "C" void td__cuda_group_norm(td_dtype t, int64_t n, int64_t c, int64_t inner, int64_t groups, void *y, void *mean, void *rstd, const void *x,
                                    const void *w, const void *b, double eps)
{
    if (n * groups > 0)
        TD_CUDA_FLOAT(t, T, norm<T>(n, c, inner, groups, (T *)y, mean, rstd, (const T *)x, w, b, eps))
}

template <class T>
static void norm_grad(int64_t n, int64_t c, int64_t inner, int64_t groups, T *gx, void *gw, void *gb, const T *gy, const T *x, const void *w_, const void *mean_,
                      const void *rstd_, bool add_x, bool add_w, bool add_b)
{
    typedef td_wide<T> W;
    const W *mean = (const W *)mean_, *rstd = (const W *)rstd_, *w = (const W *)w_;
    const int64_t rows = n * c, per = c / groups;
    double *g = (double *)td__cuda_scratch(sizeof(double) * 2 * (size_t)rows + sizeof(W) * 2 * (size_t)(n * groups)), *gh = g + rows;
    W *sub = (W *)(gh + rows), *slope = sub + n * groups;
    if (!g)
        return;
    if (rows > 0 && inner <= SHORT)
        TD_LAUNCH("group_norm_grad", td_blocks(rows, TD_THREADS / 32), TD_THREADS, 0, (channel_sums<T, 32>), rows, per, inner, g, gh, gy, x, mean, rstd);
    else if (rows > 0)
        TD_LAUNCH("group_norm_grad", td_blocks(rows, 1), TD_THREADS, 0, (channel_sums<T, TD_THREADS>), rows, per, inner, g, gh, gy, x, mean, rstd);
    if (gx && rows > 0) {
        TD_LAUNCH("group_norm_grad", td_blocks(n * groups, TD_THREADS / 32), TD_THREADS, 0, (group_numbers<T>), n * groups, groups, per, inner, sub, slope,
                  (const double *)g, (const double *)gh, w);
        TD_LAUNCH("group_norm_grad", td_blocks(rows * inner), TD_THREADS, 0, (grad_kernel<T>), rows * inner, groups, per, inner, gx, gy, x, w, mean, rstd,
                  (const W *)sub, (const W *)slope, add_x);
    }
    if (gw || gb)
        td_columns<W>("group_norm_grad", n, c, c, (W *)gw, (W *)gb, gh, g, add_w, add_b);
    td__cuda_scratch_free(g);
}

extern "C" void td__cuda_group_norm_grad(td_dtype t, int64_t n, int64_t c, int64_t inner, int64_t groups, void *gx, void *gw, void *gb, const void *gy,
                                         const void *x, const void *w, const void *mean, const void *rstd, bool add_x, bool add_w, bool add_b)
{
    if (inner <= 0)
        n = 0;                       /* no elements: gradients of w and b are zero */
    if (c > 0)
        TD_CUDA_FLOAT(t, T, norm_grad<T>(n, c, inner, groups, (T *)gx, gw, gb, (const T *)gy, (const T *)x, w, mean, rstd, add_x,
                                         add_w, add_b))
}
