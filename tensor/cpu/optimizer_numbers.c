/* tensor/cpu/optimizer_numbers.c: the single numbers between gradients and step (clipping, loss scaling), and multiplying by one of them.
 *
 * On the CPU the host might as well work them out; here they are so that optim/ is written once, for devices that no host waits for.
 */
#include <float.h>
#include "steps.h"

void K(times)(td_dtype t, int64_t n, void *x, td_number by)
{
    const double f = td__number_get(by);
    const td_loop l = { .ndim = 1, .dim = { n }, .stride = { { 1 }, { 1 } } };
    if (!half(t)) {
        K(scale)(&l, t, x, x, f, 0, false);
        return;
    }
    BLOCKS(n, {
        float wide[TD_BLOCK];
        widen(t, count, wide, (const uint16_t *)x + b);
        for (int64_t i = 0; i < count; i++)
            wide[i] *= (float)f;
        narrow(t, count, (uint16_t *)x + b, wide);
    })
}

void K(clip_factor)(const double *squares, double max, double *factor, double *norm)
{
    *norm = sqrt(*squares) * fabs(*factor);
    if (isfinite(*norm) && *norm > max)
        *factor *= max / *norm;
}

void K(mark_not_finite)(const double *squares, double *mark)
{
    if (!isfinite(*squares))
        *mark = 1;
}

void K(scale_update)(double *scale, const double *found, double growth, double backoff, int64_t interval)
{
    if (*found != 0) {
        scale[0] *= backoff;
        scale[1] = 0;
    } else if (++scale[1] >= (double)interval) {
        if (scale[0] * growth <= (double)FLT_MAX)
            scale[0] *= growth;
        scale[1] = 0;
    }
    scale[2] = 1 / scale[0];
}
