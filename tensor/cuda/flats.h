/* tensor/cuda/flats.h: one fused pass of an optimizer's rule over a flat run of elements. Internal to tensor/cuda/optimizer*.cu.
 *
 * A rule is a struct of constants (in the type of the arithmetic) with operator()(p, g, a, b, c): new values of one element and of up to
 * three numbers kept with it, of which it writes the first WRITES. It depends on nothing but the element's own numbers, in the CPU's order of
 * operations, so that the bits are the CPU's. The constants are worked out in double and rounded once, as on the CPU, but by the kernel (numbers.rule()):
 * some of the numbers that they come from (td_number) are known only on the device. 16 bits: state and master copy are f32.
 * Where an index check has failed on the device (trap.h) nothing is stepped. Packs of 16 bytes of state where all pointers are aligned.
 */
#ifndef TD_CUDA_FLATS_H
#define TD_CUDA_FLATS_H
#include "packs.h"
#include "trap_record.h"

/* The master where it rounds to the parameter, else the parameter, which was written to since. */
template <class T, class W> static __device__ __forceinline__ W td_renewed(W p, W master)
{
    T rounded;
    td_store<T>(&rounded, master);
    return td_load<T>(&rounded) == p ? master : p;
}

static __device__ __forceinline__ double td_value(td_number x) { return x.at ? x.by * *x.at : x.by; }

template <class T, int V> struct __align__(V * sizeof(T) < 16 ? V * sizeof(T) : 16) td_few { T v[V]; };

/* V elements at a time, n of them; a state that is NULL is 0 and stays unwritten */
template <class T, int V, class S>
__global__ void __launch_bounds__(TD_THREADS, 3) td_rule_kernel(int64_t n, T *p, td_wide<T> *master, const T *g, td_wide<T> *a, td_wide<T> *b,
                                                                td_wide<T> *c, S numbers, const double *stop, const int32_t *trap)
{
    typedef td_wide<T> W;
    typedef td_few<T, V> group;
    typedef td_few<W, V> wide;
    if ((stop && *stop != 0) || (trap && *trap != 0))
        return;
    const auto rule = numbers.rule();
    TD_GRID_STRIDE(i, n / V) {
        wide vp, vg, va = {}, vb = {}, vc = {};
        const group low = ((const group *)p)[i];
        if (g) {
            const group gradient = ((const group *)g)[i];
            TD_UNROLL for (int k = 0; k < V; k++)
                vg.v[k] = td_load<T>(gradient.v + k);
        } else {
            vg = va;
        }
        if (a)
            va = ((const wide *)a)[i];
        if (b)
            vb = ((const wide *)b)[i];
        if (c)
            vc = ((const wide *)c)[i];
        TD_UNROLL for (int k = 0; k < V; k++)
            vp.v[k] = td_load<T>(low.v + k);
        if (master) {
            const wide vm = ((const wide *)master)[i];
            TD_UNROLL for (int k = 0; k < V; k++)
                vp.v[k] = td_renewed<T>(vp.v[k], vm.v[k]);
        }
        group out;
        TD_UNROLL for (int k = 0; k < V; k++) {
            rule(vp.v[k], vg.v[k], va.v[k], vb.v[k], vc.v[k]);
            td_store<T>(out.v + k, vp.v[k]);
        }
        ((group *)p)[i] = out;
        if (master)
            ((wide *)master)[i] = vp;
        if (decltype(rule)::WRITES > 0 && a)
            ((wide *)a)[i] = va;
        if (decltype(rule)::WRITES > 1 && b)
            ((wide *)b)[i] = vb;
        if (decltype(rule)::WRITES > 2 && c)
            ((wide *)c)[i] = vc;
    }
}

template <class T, class S>
static void td_rule(const char *row, int64_t n, const td_step &s, void *a_, void *b_, void *c_, const S &numbers, const int32_t *trap = td__cuda_trap_word())
{
    typedef td_wide<T> W;
    enum { V = td_pack<W>::N };
    T *p = (T *)s.p;
    W *master = (W *)s.master, *a = (W *)a_, *b = (W *)b_, *c = (W *)c_;
    const T *g = (const T *)s.g;
    int64_t done = 0;
    if (n <= 0)
        return;
    if (n >= V && ((uintptr_t)p | (uintptr_t)g) % sizeof(td_few<T, V>) == 0 && td_packed(master) && td_packed(a) && td_packed(b) && td_packed(c)) {
        done = n / V * V;
        TD_LAUNCH(row, td_blocks(n / V), TD_THREADS, 0, (td_rule_kernel<T, V, S>), done, p, master, g, a, b, c, numbers, s.stop, trap);
    }
    if (done < n)                /* the last few, or all where something is not aligned */
        TD_LAUNCH(row, td_blocks(n - done), TD_THREADS, 0, (td_rule_kernel<T, 1, S>), n - done, p + done, master ? master + done : master,
                  g ? g + done : g, a ? a + done : a, b ? b + done : b, c ? c + done : c, numbers, s.stop, trap);
}

/* ---- sums of squares over a flat: the number of blocks, and with it the order, depends on n alone ---------------------------------------------- */
enum { TD_SQUARE_BLOCKS = 1024, TD_SQUARE_EACH = 8192 };          /* at most so many; a block has at least so many elements */

static inline unsigned td_square_blocks(int64_t n)
{
    const int64_t blocks = (n + TD_SQUARE_EACH - 1) / TD_SQUARE_EACH;
    return (unsigned)(blocks < 1 ? 1 : blocks < TD_SQUARE_BLOCKS ? blocks : (int64_t)TD_SQUARE_BLOCKS);
}

/* into[k] (+)= the sum over i of part[k * blocks + i]; one block for each k. stop: as in td_step. */
static __global__ void __launch_bounds__(TD_THREADS) td_squares_kernel(int blocks, const double *part, double *into, bool add, const double *stop)
{
    double s = 0;
    if (stop && *stop != 0)
        return;
    for (int i = threadIdx.x; i < blocks; i += TD_THREADS)
        s += part[(int64_t)blockIdx.x * blocks + i];
    s = td_block_all(s, td_op_sum());
    if (threadIdx.x == 0)
        into[blockIdx.x] = (add ? into[blockIdx.x] : 0) + s;
}
#endif
