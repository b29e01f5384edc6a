/* tensor/cuda/flats.h: one fused pass of an optimizer's rule over a flat run of elements. Internal to tensor/cuda/optimizer*.cu.
 *
 * A rule is a struct of constants (in the type of the arithmetic, worked out in double and rounded once, as on the CPU) with
 * operator()(p, g, a, b, c): new values of one element and of up to three numbers kept with it. It depends on nothing but the element's own
 * numbers, in the CPU's order of operations, so that the bits are the CPU's. Packs of 16 bytes where all pointers are aligned.
 */
#ifndef TD_CUDA_FLATS_H
#define TD_CUDA_FLATS_H
#include "packs.h"

/* V elements at a time, n of them; a state that is NULL is 0 and stays unwritten */
template <class T, int V, class R>
__global__ void __launch_bounds__(TD_THREADS, 3) td_rule_kernel(int64_t n, T *p, const T *g, T *a, T *b, T *c, R rule)
{
    typedef td_wide<T> W;
    struct __align__(V * sizeof(T)) group { T v[V]; };
    TD_GRID_STRIDE(i, n / V) {
        group vp = ((const group *)p)[i], va = vp, vb = vp, vc = vp;
        const group vg = ((const group *)g)[i];
        if (a)
            va = ((const group *)a)[i];
        if (b)
            vb = ((const group *)b)[i];
        if (c)
            vc = ((const group *)c)[i];
        TD_UNROLL for (int k = 0; k < V; k++) {
            W wp = td_load<T>(vp.v + k), wa = a ? td_load<T>(va.v + k) : 0, wb = b ? td_load<T>(vb.v + k) : 0, wc = c ? td_load<T>(vc.v + k) : 0;
            rule(wp, td_load<T>(vg.v + k), wa, wb, wc);
            td_store<T>(vp.v + k, wp);
            td_store<T>(va.v + k, wa);
            td_store<T>(vb.v + k, wb);
            td_store<T>(vc.v + k, wc);
        }
        ((group *)p)[i] = vp;
        if (a)
            ((group *)a)[i] = va;
        if (b)
            ((group *)b)[i] = vb;
        if (c)
            ((group *)c)[i] = vc;
    }
}

template <class T, class R> static void td_rule(const char *row, int64_t n, void *p_, const void *g_, void *a_, void *b_, void *c_, const R &rule)
{
    enum { V = td_pack<T>::N };
    T *p = (T *)p_, *a = (T *)a_, *b = (T *)b_, *c = (T *)c_;
    const T *g = (const T *)g_;
    int64_t done = 0;
    if (n <= 0)
        return;
    if (n >= V && td_packed(p) && td_packed(g) && td_packed(a) && td_packed(b) && td_packed(c)) {
        done = n / V * V;
        TD_LAUNCH(row, td_blocks(n / V), TD_THREADS, 0, (td_rule_kernel<T, V, R>), done, p, g, a, b, c, rule);
    }
    if (done < n)                /* the last few, or all where something is not aligned */
        TD_LAUNCH(row, td_blocks(n - done), TD_THREADS, 0, (td_rule_kernel<T, 1, R>), n - done, p + done, g + done, a ? a + done : a, b ? b + done : b,
                  c ? c + done : c, rule);
}

/* ---- sums of squares over a flat: the number of blocks, and with it the order, depends on n alone ---------------------------------------------- */
enum { TD_SQUARE_BLOCKS = 1024, TD_SQUARE_EACH = 8192 };          /* at most so many; a block has at least so many elements */

static inline unsigned td_square_blocks(int64_t n)
{
    const int64_t blocks = (n + TD_SQUARE_EACH - 1) / TD_SQUARE_EACH;
    return (unsigned)(blocks < 1 ? 1 : blocks < TD_SQUARE_BLOCKS ? blocks : (int64_t)TD_SQUARE_BLOCKS);
}

/* into[k] = the sum over i of part[k * blocks + i]; one block for each k */
static __global__ void __launch_bounds__(TD_THREADS) td_squares_kernel(int blocks, const double *part, double *into)
{
    double s = 0;
    for (int i = threadIdx.x; i < blocks; i += TD_THREADS)
        s += part[(int64_t)blockIdx.x * blocks + i];
    s = td_block_all(s, td_op_sum());
    if (threadIdx.x == 0)
        into[blockIdx.x] = s;
}
#endif
