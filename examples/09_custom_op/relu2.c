/* 09_custom_op/relu2.c: the operation: kernels, then the record with infer, run and grad. Nothing is registered and the library is not rebuilt.
 *
 * Written with td_add, td_relu and td_mul this would be four passes over memory, and the graph would keep two tensors of x's size; here it is one
 * pass, and x alone is kept. Rows are given to threads; loops over a row are left to the compiler's vectoriser. The gradient of the bias is a
 * sum over rows: it is made in parts of a fixed number of rows, added in order, so that its bits do not depend on the number of threads.
 */
#include "relu2.h"

enum { PART_ROWS = 64, PARALLEL = 32768 };   /* fewer elements than that are not worth waking threads for */

/* ---- kernels: pointers and sizes --------------------------------------------------------------------------------------------- */

#define KERNELS(T, name)                                                                                     \
    static void forward_##name(int64_t rows, int64_t c, T *y, const T *x, const T *bias, const T *residual)  \
    {                                                                                                        \
        _Pragma("omp parallel for schedule(static) if (rows * c >= PARALLEL)")                               \
        for (int64_t r = 0; r < rows; r++) {                                                                 \
            const T *restrict xr = x + r * c, *restrict from = residual + r * c;                             \
            T *restrict to = y + r * c;                                                                      \
            _Pragma("omp simd")                                                                              \
            for (int64_t i = 0; i < c; i++) {                                                                \
                const T v = xr[i] + bias[i], p = v < 0 ? 0 : v;   /* NaN stays */                            \
                to[i] = from[i] + p * p;                                                                     \
            }                                                                                                \
        }                                                                                                    \
    }                                                                                                        \
    /* gx may be NULL; part (parts,c), zeroed, or NULL: the sums of gx over PART_ROWS rows each */           \
    static void gradient_##name(int64_t rows, int64_t c, T *gx, double *part, const T *g, const T *x, const T *bias, bool add) \
    {                                                                                                        \
        const int64_t parts = (rows + PART_ROWS - 1) / PART_ROWS;                                            \
        _Pragma("omp parallel for schedule(static) if (rows * c >= PARALLEL)")                               \
        for (int64_t p = 0; p < parts; p++)                                                                  \
            for (int64_t r = p * PART_ROWS; r < rows && r < (p + 1) * PART_ROWS; r++) {                      \
                const T *restrict xr = x + r * c, *restrict gr = g + r * c;                                  \
                T *restrict to = gx ? gx + r * c : NULL;                                                     \
                double *restrict sum = part ? part + p * c : NULL;                                           \
                for (int64_t i = 0; i < c; i++) {                                                            \
                    const T v = xr[i] + bias[i], d = 2 * (v < 0 ? 0 : v) * gr[i];                            \
                    if (to)                                                                                  \
                        to[i] = add ? to[i] + d : d;                                                         \
                    if (sum)                                                                                 \
                        sum[i] += (double)d;                                                                 \
                }                                                                                            \
            }                                                                                                \
    }                                                                                                        \
    static void add_up_##name(int64_t parts, int64_t c, T *into, const double *part, bool add)               \
    {                                                                                                        \
        for (int64_t i = 0; i < c; i++) {                                                                    \
            double sum = add ? (double)into[i] : 0;                                                          \
            for (int64_t p = 0; p < parts; p++)                                                              \
                sum += part[p * c + i];                                                                      \
            into[i] = (T)sum;                                                                                \
        }                                                                                                    \
    }
KERNELS(float, f32)
KERNELS(double, f64)

/* ---- the record ---------------------------------------------------------------------------------------------------------------- */

static bool same_shape(td_shape a, td_shape b)
{
    bool same = a.ndim == b.ndim;
    for (int i = 0; same && i < a.ndim; i++)
        same = a.dim[i] == b.dim[i];
    return same;
}

static int infer(td_call *call)
{
    const td_dtype t = td_dtype_of(td_call_input(call, 0));
    const td_shape x = td_call_input_shape(call, 0), b = td_call_input_shape(call, 1), r = td_call_input_shape(call, 2);
    if (t != TD_F32 && t != TD_F64)
        return td_call_error(call, TD_ERR_DTYPE, "x is %s, expected f32 or f64", td_dtype_name(t));
    for (int i = 1; i < 3; i++)
        if (td_dtype_of(td_call_input(call, i)) != t)
            return td_call_error(call, TD_ERR_DTYPE, "%s is %s, expected %s as x", i == 1 ? "bias" : "residual",
                                 td_dtype_name(td_dtype_of(td_call_input(call, i))), td_dtype_name(t));
    if (x.ndim < 1 || b.ndim != 1 || b.dim[0] != x.dim[x.ndim - 1])
        return td_call_error(call, TD_ERR_SHAPE, "bias has %d dimensions and %lld elements, expected one of the size of x's last dimension", b.ndim,
                             (long long)td_numel(td_call_input(call, 1)));
    if (!same_shape(x, r))
        return td_call_error(call, TD_ERR_SHAPE, "the residual's shape differs from x's, expected the same");
    return td_call_infer(call, 0, x, t);
}

static int run(td_call *call)
{
    td_tensor *x = td_contiguous(td_call_input(call, 0)), *bias = td_contiguous(td_call_input(call, 1)),
              *residual = td_contiguous(td_call_input(call, 2)), *y = td_call_output(call, 0);
    const int64_t c = td_numel(bias), rows = c ? td_numel(y) / c : 0;
    void *to = td_data(y), *px = td_data(x), *pb = td_data(bias), *pr = td_data(residual);   /* host memory: a CPU operation */
    if (!to || !px || !pb || !pr)
        return td_error_pending();
    if (td_dtype_of(y) == TD_F32)
        forward_f32(rows, c, to, px, pb, pr);
    else
        forward_f64(rows, c, to, px, pb, pr);
    td_call_save(call, x);                   /* kept only where a gradient will be asked for */
    td_call_save(call, bias);
    return 0;
}

static int grad(td_call *call, td_tensor *const *grad_out, td_grad_slot *in)
{
    td_tensor *g = grad_out[0], *x = td_call_saved(call, 0), *bias = td_call_saved(call, 1);
    const int64_t c = td_numel(bias), rows = c ? td_numel(x) / c : 0, parts = (rows + PART_ROWS - 1) / PART_ROWS;
    void *gx = in[0].into ? td_data(in[0].into) : NULL, *gb = in[1].into ? td_data(in[1].into) : NULL;
    double *part = gb ? td_data(td_zeros(TD_SHAPE(parts, c), TD_F64)) : NULL;                  /* dies with this call          */
    if (td_error_pending())
        return td_error_pending();
    if ((gx || gb) && td_dtype_of(g) == TD_F32)
        gradient_f32(rows, c, gx, part, td_data(g), td_data(x), td_data(bias), in[0].add);
    else if (gx || gb)
        gradient_f64(rows, c, gx, part, td_data(g), td_data(x), td_data(bias), in[0].add);
    if (gb && td_dtype_of(g) == TD_F32)
        add_up_f32(parts, c, gb, part, in[1].add);
    else if (gb)
        add_up_f64(parts, c, gb, part, in[1].add);
    return td_call_pass(call, 2, g);         /* the residual's gradient is g itself: no copy where that is possible */
}

static const td_op relu2_op = { .name = "relu2", .infer = infer, .run = run, .grad = grad };

td_tensor *relu2(td_tensor *x, td_tensor *bias, td_tensor *residual)
{
    return td_apply(&relu2_op, (td_tensor *[]){ x, bias, residual }, 3, NULL);
}
