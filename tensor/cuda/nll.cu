/* tensor/cuda/nll.cu: negative log-likelihood of classes, and binary cross-entropy of logits, each with its gradients.
 *
 * Twin of ../cpu/nll.c, which has the formulas. Sums are made in f64 in two launches (parts.h). No row or element kept: the mean is 0/0, NaN,
 * and gradients are exactly zero.
 */
#include "parts.h"

/* ---- nll ----------------------------------------------------------------------------------------------------------------------------------- */
template <class T> struct nll_of {
    const T *logp;
    const int64_t *target;
    int64_t n, ignore;
    bool has_ignore;
    __device__ __forceinline__ void operator()(int64_t r, td_part &p) const
    {
        const int64_t t = target[r];
        if (has_ignore && t == ignore)
            return;
        if (t < 0 || t >= n) {
            p.bad = r < p.bad ? r : p.bad;
            return;
        }
        p.sum -= (double)td_load<T>(logp + r * n + t);
        p.kept++;
    }
};

/* gx = -gloss/kept at the target, 0 elsewhere; adding needs the targets alone */
template <class T> __global__ void __launch_bounds__(TD_THREADS) nll_zero_kernel(int64_t n, T *gx)
{
    TD_GRID_STRIDE(i, n)
        td_store<T>(gx + i, 0);
}
template <class T>
__global__ void __launch_bounds__(TD_THREADS) nll_grad_kernel(int64_t rows, int64_t n, T *gx, const T *gloss, const int64_t *target,
                                                              const td_stat<T> *kept, bool has_ignore, int64_t ignore)
{
    const td_wide<T> each = *kept > 0 ? -td_load<T>(gloss) / *kept : 0;
    TD_GRID_STRIDE(r, rows)
        if (!(has_ignore && target[r] == ignore) && target[r] >= 0 && target[r] < n)
            td_put<T>(gx + r * n + target[r], each, true);
}

extern "C" void td__cuda_nll(td_dtype t, int64_t rows, int64_t n, const void *logp, const int64_t *target, bool has_ignore, int64_t ignore,
                             void *loss, void *kept, int64_t *bad)
{
    const td_trap trap = td_trap_of(bad);
    TD_CUDA_FLOAT(t, T, {
        const nll_of<T> f = { (const T *)logp, target, n, ignore, has_ignore };
        td_mean_of<T>("nll", rows, f, (T *)loss, (td_stat<T> *)kept, trap, target);
    })
}

extern "C" void td__cuda_nll_grad(td_dtype t, int64_t rows, int64_t n, void *gx, const void *gloss, const int64_t *target, const void *kept,
                                  bool has_ignore, int64_t ignore, bool add)
{
    if (rows <= 0 || n <= 0)
        return;
    TD_CUDA_FLOAT(t, T, {
        if (!add)
            TD_LAUNCH("nll_grad", td_blocks(rows * n), TD_THREADS, 0, (nll_zero_kernel<T>), rows * n, (T *)gx);
        TD_LAUNCH("nll_grad", td_blocks(rows), TD_THREADS, 0, (nll_grad_kernel<T>), rows, n, (T *)gx, (const T *)gloss, target,
                  (const td_stat<T> *)kept, has_ignore, ignore);
    })
}

/* ---- binary cross-entropy with logits ------------------------------------------------------------------------------------------------------- */
template <class W> __device__ __forceinline__ W decay(W x)             /* exp(-|x|)                                                  */
{
    return exp(x > 0 ? -x : x);
}

template <class T> struct bce_of {
    const T *x, *y, *w;
    __device__ __forceinline__ void operator()(int64_t i, td_part &p) const
    {
        typedef td_wide<T> W;
        const W v = td_load<T>(x + i);
        const double hot = (double)td_load<T>(y + i), weight = w ? (double)td_load<T>(w + i) : 1, rest = (double)(W)log1p(decay(v));
        const double up = v > 0 ? (double)v : 0, down = v < 0 ? -(double)v : 0;
        p.sum += (1 - hot) * (up + rest) + weight * hot * (down + rest);
        p.kept++;
    }
};

template <class T>
__global__ void __launch_bounds__(TD_THREADS) bce_grad_kernel(int64_t n, T *g, const T *gloss, const T *x, const T *y, const T *w, bool of_target,
                                                              bool add)
{
    typedef td_wide<T> W;
    const W scale = (W)(1 / (double)n) * td_load<T>(gloss);
    TD_GRID_STRIDE(i, n) {
        const W v = td_load<T>(x + i), weight = w ? td_load<T>(w + i) : (W)1, e = decay(v);
        W d;
        if (of_target) {
            const W rest = log1p(e);
            d = w ? weight * ((v < 0 ? -v : 0) + rest) - ((v > 0 ? v : 0) + rest) : -v;
        } else {
            const W hot = td_load<T>(y + i), large = 1 / (1 + e), small = e / (1 + e);
            d = (1 - hot) * (v < 0 ? small : large) - weight * hot * (v < 0 ? large : small);
        }
        td_put<T>(g + i, scale * d, add);
    }
}

extern "C" void td__cuda_bce(td_dtype t, int64_t n, const void *x, const void *y, const void *w, void *loss)
{
    TD_CUDA_FLOAT(t, T, {
        const bce_of<T> f = { (const T *)x, (const T *)y, (const T *)w };
        td_mean_of<T>("bce", n, f, (T *)loss, NULL, td_trap(), NULL);
    })
}

extern "C" void td__cuda_bce_grad(td_dtype t, int64_t n, void *g, const void *gloss, const void *x, const void *y, const void *w, bool of_target,
                                  bool add)
{
    if (n <= 0)
        return;
    TD_CUDA_FLOAT(t, T, TD_LAUNCH("bce_grad", td_blocks(n), TD_THREADS, 0, (bce_grad_kernel<T>), n, (T *)g, (const T *)gloss, (const T *)x,
                                  (const T *)y, (const T *)w, of_target, add))
}
