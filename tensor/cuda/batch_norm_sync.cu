/* tensor/cuda/batch_norm_sync.cu: what lies between the pieces of a batch_norm over several ranks, so that no host sees the statistics.
 *
 * Twin of ../cpu/batch_norm_sync.c, operation by operation: a thread for each channel.
 */
#include "cuda.h"

template <class W> __device__ __forceinline__ double get(const W *x, int64_t i, double standard) { return x ? (double)x[i] : standard; }

template <class W>
static __global__ void __launch_bounds__(TD_THREADS) norm_kernel(int ranks, int64_t c, const double *all, const W *w, const W *b, W *running_mean,
                                                                 W *running_var, double momentum, double eps, double *save, double *factor, double *term)
{
    double total = 0;
    for (int r = 0; r < ranks; r++)
        total += all[r * (2 * c + 1)];
    if (blockIdx.x == 0 && threadIdx.x == 0)
        save[0] = total;
    TD_GRID_STRIDE(k, c) {
        double count = 0, mean = 0, m2 = 0;
        for (int r = 0; r < ranks; r++) {
            const double *one = all + r * (2 * c + 1), both = count + one[0], d = one[1 + k] - mean;
            if (one[0] > 0) {
                m2 += one[1 + c + k] + d * d * (count * one[0] / both);
                mean += d * (one[0] / both);
            }
            count = both;
        }
        const double rstd = total > 0 ? 1 / sqrt(m2 / total + eps) : 0;
        if (running_mean && total > 0) {
            running_mean[k] = (W)((1 - momentum) * get(running_mean, k, 0) + momentum * mean);
            running_var[k] = (W)((1 - momentum) * get(running_var, k, 0) + momentum * m2 / (total - 1));
        }
        save[1 + k] = mean;
        save[1 + c + k] = rstd;
        const double f = get(w, k, 1) * rstd;
        factor[k] = f;
        term[k] = get(b, k, 0) - mean * f;
    }
}

template <class W>
static __global__ void __launch_bounds__(TD_THREADS) own_kernel(int64_t c, const double *sums, const double *save, double unit, W *gw, W *gb, bool add_w,
                                                                bool add_b, double *send)
{
    TD_GRID_STRIDE(k, c) {
        const double s = sums[k], p = sums[c + k];
        if (gw)
            gw[k] = (W)((add_w ? (double)gw[k] : 0) + p * save[1 + c + k]);
        if (gb)
            gb[k] = (W)((add_b ? (double)gb[k] : 0) + s);
        send[k] = s == 0 ? 0 : s * unit;
        send[c + k] = p == 0 ? 0 : p * unit;
    }
}

template <class W>
static __global__ void __launch_bounds__(TD_THREADS) grad_kernel(int ranks, int64_t c, const double *all, const double *save, double unit, const W *w,
                                                                 double *factor, double *slope, double *term)
{
    TD_GRID_STRIDE(k, c) {
        double sum = 0, product = 0;
        for (int r = 0; r < ranks; r++) {
            sum += all[r * 2 * c + k];
            product += all[r * 2 * c + c + k];
        }
        sum /= unit;
        product /= unit;
        const double mean = save[1 + k], rstd = save[1 + c + k], f = get(w, k, 1) * rstd, s = -f * rstd * rstd * product / save[0];
        factor[k] = f;
        slope[k] = s;
        term[k] = -f * sum / save[0] - s * mean;
    }
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
extern "C" void td__cuda_sync_norm(td_dtype t, int ranks, int64_t c, const double *all, const void *w, const void *b, void *running_mean, void *running_var,
                                   double momentum, double eps, double *save, double *factor, double *term)
{
    if (t == TD_F64)
        TD_LAUNCH("sync_norm", td_blocks(c), TD_THREADS, 0, (norm_kernel<double>), ranks, c, all, (const double *)w, (const double *)b,
                  (double *)running_mean, (double *)running_var, momentum, eps, save, factor, term);
    else
        TD_LAUNCH("sync_norm", td_blocks(c), TD_THREADS, 0, (norm_kernel<float>), ranks, c, all, (const float *)w, (const float *)b,
                  (float *)running_mean, (float *)running_var, momentum, eps, save, factor, term);
}

extern "C" void td__cuda_sync_norm_own(td_dtype t, int64_t c, const double *sums, const double *save, double unit, void *gw, void *gb, bool add_w,
                                       bool add_b, double *send)
{
    if (t == TD_F64)
        TD_LAUNCH("sync_norm_own", td_blocks(c), TD_THREADS, 0, (own_kernel<double>), c, sums, save, unit, (double *)gw, (double *)gb, add_w, add_b, send);
    else
        TD_LAUNCH("sync_norm_own", td_blocks(c), TD_THREADS, 0, (own_kernel<float>), c, sums, save, unit, (float *)gw, (float *)gb, add_w, add_b, send);
}

extern "C" void td__cuda_sync_norm_grad(td_dtype t, int ranks, int64_t c, const double *all, const double *save, double unit, const void *w,
                                        double *factor, double *slope, double *term)
{
    if (t == TD_F64)
        TD_LAUNCH("sync_norm_grad", td_blocks(c), TD_THREADS, 0, (grad_kernel<double>), ranks, c, all, save, unit, (const double *)w, factor, slope, term);
    else
        TD_LAUNCH("sync_norm_grad", td_blocks(c), TD_THREADS, 0, (grad_kernel<float>), ranks, c, all, save, unit, (const float *)w, factor, slope, term);
}
