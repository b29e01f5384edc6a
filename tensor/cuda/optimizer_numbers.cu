/* tensor/cuda/optimizer_numbers.cu: the single numbers between gradients and step (clipping, loss scaling), and multiplying by one of them.
 *
 * Twin of ../cpu/optimizer_numbers.c. One thread works each out on the device, where the next kernel reads it: the host neither knows nor waits.
 */
#include "flats.h"
#include <float.h>

template <class W> struct times_rule {
    enum { WRITES = 0 };
    W by;
    __device__ __forceinline__ void operator()(W &x, W, W &, W &, W &) const { x *= by; }
};
template <class W> struct times_numbers {
    td_number by;
    __device__ __forceinline__ times_rule<W> rule() const { return { (W)td_value(by) }; }
};

static __global__ void clip_kernel(const double *squares, double max, double *factor, double *norm)
{
    if (threadIdx.x != 0)
        return;
    const double n = sqrt(*squares) * fabs(*factor);
    *norm = n;
    if (isfinite(n) && n > max)
        *factor *= max / n;
}

static __global__ void mark_kernel(const double *squares, double *mark)
{
    if (threadIdx.x == 0 && !isfinite(*squares))
        *mark = 1;
}

static __global__ void update_kernel(double *scale, const double *found, double growth, double backoff, int64_t interval)
{
    if (threadIdx.x != 0)
        return;
    double s = scale[0], good = scale[1];
    if (*found != 0) {
        s *= backoff;
        good = 0;
    } else if (++good >= (double)interval) {
        if (s * growth <= (double)FLT_MAX)
            s *= growth;
        good = 0;
    }
    scale[0] = s;
    scale[1] = good;
    scale[2] = 1 / s;
}

/* ---- rows ------------------------------------------------------------------------------------------------------------------------------- */
extern "C" void td__cuda_times(td_dtype t, int64_t n, void *x, td_number by)
{
    const td_step s = { x, NULL, NULL, { 1, NULL }, { 0, NULL }, NULL };
    TD_CUDA_FLOAT(t, T, {
        const times_numbers<td_wide<T>> numbers = { by };
        td_rule<T>("times", n, s, NULL, NULL, NULL, numbers, NULL);
    })
}

extern "C" void td__cuda_clip_factor(const double *squares, double max, double *factor, double *norm)
{
    TD_LAUNCH("clip_factor", 1, 32, 0, (clip_kernel), squares, max, factor, norm);
}

extern "C" void td__cuda_mark_not_finite(const double *squares, double *mark)
{
    TD_LAUNCH("mark_not_finite", 1, 32, 0, (mark_kernel), squares, mark);
}

extern "C" void td__cuda_scale_update(double *scale, const double *found, double growth, double backoff, int64_t interval)
{
    TD_LAUNCH("scale_update", 1, 32, 0, (update_kernel), scale, found, growth, backoff, interval);
}
