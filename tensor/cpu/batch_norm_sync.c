/* tensor/cpu/batch_norm_sync.c: what lies between the pieces of a batch_norm over several ranks: their statistics joined, and the three numbers per
 * channel that the last pass takes.
 *
 * All in f64, channel by channel; ranks are taken in order, so every rank gets the same bits. Joining: Chan, Golub and LeVeque 1983.
 */
#include "cpu.h"

static double get(td_dtype t, const void *x, int64_t i, double standard)
{
    return !x ? standard : t == TD_F32 ? (double)((const float *)x)[i] : ((const double *)x)[i];
}

static void put(td_dtype t, void *x, int64_t i, double value)
{
    if (t == TD_F32)
        ((float *)x)[i] = (float)value;
    else
        ((double *)x)[i] = value;
}

void K(sync_norm)(td_dtype t, int ranks, int64_t c, const double *all, const void *w, const void *b, void *running_mean, void *running_var,
                  double momentum, double eps, double *save, double *factor, double *term)
{
    double total = 0;
    for (int r = 0; r < ranks; r++)
        total += all[r * (2 * c + 1)];
    save[0] = total;
    for (int64_t k = 0; k < c; k++) {
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
            put(t, running_mean, k, (1 - momentum) * get(t, running_mean, k, 0) + momentum * mean);
            put(t, running_var, k, (1 - momentum) * get(t, running_var, k, 0) + momentum * m2 / (total - 1));
        }
        save[1 + k] = mean;
        save[1 + c + k] = rstd;
        factor[k] = get(t, w, k, 1) * rstd;
        term[k] = get(t, b, k, 0) - mean * factor[k];
    }
}

void K(sync_norm_own)(td_dtype t, int64_t c, const double *sums, const double *save, double unit, void *gw, void *gb, bool add_w, bool add_b,
                      double *send)
{
    for (int64_t k = 0; k < c; k++) {
        if (gw)
            put(t, gw, k, (add_w ? get(t, gw, k, 0) : 0) + sums[c + k] * save[1 + c + k]);
        if (gb)
            put(t, gb, k, (add_b ? get(t, gb, k, 0) : 0) + sums[k]);
    }
    for (int64_t i = 0; i < 2 * c; i++)
        send[i] = sums[i] == 0 ? 0 : sums[i] * unit;
}

void K(sync_norm_grad)(td_dtype t, int ranks, int64_t c, const double *all, const double *save, double unit, const void *w, double *factor,
                       double *slope, double *term)
{
    for (int64_t k = 0; k < c; k++) {
        double sum = 0, product = 0;
        for (int r = 0; r < ranks; r++) {
            sum += all[r * 2 * c + k];
            product += all[r * 2 * c + c + k];
        }
        sum /= unit;
        product /= unit;
        const double mean = save[1 + k], rstd = save[1 + c + k], f = get(t, w, k, 1) * rstd;
        factor[k] = f;
        slope[k] = -f * rstd * rstd * product / save[0];
        term[k] = -f * sum / save[0] - slope[k] * mean;
    }
}
