/* plugins/mpi/sums.c: all_reduce, reduce and reduce_scatter as calls of MPI.
 *
 * MPI knows neither f16 nor bf16: they are reduced in f32 and rounded once. Its minimum and maximum of floats may forget a NaN, and differ between
 * ranks in the sign of a zero, since ranks compare in different orders; and Open MPI's sum of u8 stops at 255 where it goes by vectors and wraps around
 * elsewhere. Those are operations of our own.
 */
#include "mpi_impl.h"
#include <convert.h>
#include <math.h>
#include <string.h>

enum { WIDE = 1 << 20 };                       /* elements that are widened at a time                                         */

/* ---- types and operations --------------------------------------------------------------------------------------------------------------- */

static bool is_half(td_dtype t)
{
    return t == TD_F16 || t == TD_BF16;
}

static MPI_Datatype type_of(td_dtype t)
{
    switch (t) {
    case TD_F64: return MPI_DOUBLE;
    case TD_I64: return MPI_INT64_T;
    case TD_I32: return MPI_INT32_T;
    case TD_U8:
    case TD_BOOL: return MPI_UINT8_T;
    default: return MPI_FLOAT;                 /* also f16 and bf16, widened                                                  */
    }
}

/* A total order of values that compare alike: NaN before all else, then by their bits. */
#define EXTREME(NAME, T, BITS, BETTER, SIGNED_BETTER)                                                                         \
    static T NAME(T a, T b)                                                                                                   \
    {                                                                                                                         \
        if (isnan(a) != isnan(b))                                                                                             \
            return isnan(a) ? a : b;                                                                                          \
        if (a BETTER b || b BETTER a)                                                                                         \
            return a BETTER b ? a : b;                                                                                        \
        BITS p, q;                                                                                                            \
        memcpy(&p, &a, sizeof p);                                                                                             \
        memcpy(&q, &b, sizeof q);                                                                                             \
        return p SIGNED_BETTER q ? a : b;                                                                                     \
    }
EXTREME(min_f32, float, int32_t, <, <)
EXTREME(max_f32, float, int32_t, >, >)
EXTREME(min_f64, double, int64_t, <, <)
EXTREME(max_f64, double, int64_t, >, >)

#define EXTREME_OP(NAME)                                                                                                      \
    static void NAME(void *in, void *inout, int *n, MPI_Datatype *type)                                                       \
    {                                                                                                                         \
        if (*type == MPI_DOUBLE) {                                                                                            \
            const double *x = in;                                                                                             \
            double *y = inout;                                                                                                \
            for (int i = 0; i < *n; i++)                                                                                      \
                y[i] = NAME##_f64(x[i], y[i]);                                                                                \
        } else {                                                                                                              \
            const float *x = in;                                                                                              \
            float *y = inout;                                                                                                 \
            for (int i = 0; i < *n; i++)                                                                                      \
                y[i] = NAME##_f32(x[i], y[i]);                                                                                \
        }                                                                                                                     \
    }
EXTREME_OP(min)
EXTREME_OP(max)

#define BYTE_OP(NAME, OP)                                                                                                     \
    static void NAME(void *in, void *inout, int *n, MPI_Datatype *type)                                                       \
    {                                                                                                                         \
        const uint8_t *x = in;                                                                                                \
        uint8_t *y = inout;                                                                                                   \
        (void)type;                                                                                                           \
        for (int i = 0; i < *n; i++)                                                                                          \
            y[i] = (uint8_t)(x[i] OP y[i]);                                                                                   \
    }
BYTE_OP(byte_sum, +)
BYTE_OP(byte_product, *)

int sums_open(mpi_state *s)
{
    if (MPI_Op_create(min, 1, &s->min) == MPI_SUCCESS && MPI_Op_create(max, 1, &s->max) == MPI_SUCCESS &&
        MPI_Op_create(byte_sum, 1, &s->byte_sum) == MPI_SUCCESS && MPI_Op_create(byte_product, 1, &s->byte_product) == MPI_SUCCESS)
        return 0;
    return s->host->base->fail(TD_ERR_LAUNCH, "td_init: MPI_Op_create failed");
}

void sums_close(mpi_state *s)
{
    MPI_Op_free(&s->min);
    MPI_Op_free(&s->max);
    MPI_Op_free(&s->byte_sum);
    MPI_Op_free(&s->byte_product);
}

static MPI_Op op_of(const mpi_state *s, const td_coll *coll)
{
    bool real = coll->dtype == TD_F64 || coll->dtype == TD_F32 || is_half(coll->dtype);
    switch (coll->op) {
    case TD_MIN: return real ? s->min : MPI_MIN;
    case TD_MAX: return real ? s->max : MPI_MAX;
    case TD_PRODUCT: return coll->dtype == TD_U8 ? s->byte_product : MPI_PROD;
    default: return coll->dtype == TD_U8 ? s->byte_sum : MPI_SUM;
    }
}

/* ---- factors and widths ------------------------------------------------------------------------------------------------------------------- */

static bool sums(const td_coll *coll)
{
    return coll->op == TD_SUM || coll->op == TD_MEAN;
}

static double pre_of(const td_coll *coll)
{
    return sums(coll) ? coll->pre : 1;
}

static double post_of(const mpi_state *s, const td_coll *coll)
{
    return !sums(coll) ? 1 : coll->op == TD_MEAN ? coll->post / s->size : coll->post;
}

static void scale(mpi_state *s, const td_coll *coll, const void *in, void *out, int64_t n, double pre, double post)
{
    s->host->combine(coll->dtype, 0, n, 1, &in, &pre, post, &out, 1);
}

/* What has the factor 0 is not read. */
static void widen(const td_coll *coll, const void *in, int64_t n, float *wide)
{
    const double pre = pre_of(coll);
    const td_f16 *f = in;
    const td_bf16 *b = in;
    for (int64_t i = 0; i < n; i++)
        wide[i] = pre == 0 ? 0 : (coll->dtype == TD_F16 ? td__f16_to_f32(f[i]) : td__bf16_to_f32(b[i])) * (float)pre;
}

static void narrow(const mpi_state *s, const td_coll *coll, const float *wide, int64_t n, void *out)
{
    const float post = (float)post_of(s, coll);
    for (int64_t i = 0; i < n; i++) {
        if (coll->dtype == TD_F16)
            ((td_f16 *)out)[i] = td__f32_to_f16(wide[i] * post);
        else
            ((td_bf16 *)out)[i] = td__f32_to_bf16(wide[i] * post);
    }
}

static void *room(mpi_state *s, const char *who, int64_t n, size_t size, int *code)
{
    void *memory = s->host->base->alloc((size_t)n * size);
    if (!memory)
        *code = s->host->fail(s->comm, TD_ERR_MEMORY, "%s: no memory for a copy of %lld elements", who, (long long)n);
    return memory;
}

/* ---- all_reduce, reduce --------------------------------------------------------------------------------------------------------------------- */

static int reduce_piece(mpi_state *s, const td_coll *coll, const void *in, void *out, int n)
{
    const void *from = in == out ? MPI_IN_PLACE : in;
    if (coll->kind == TD_COLL_ALL_REDUCE)
        return mpi_check(s, coll, "MPI_Allreduce", MPI_Allreduce(from, out, n, type_of(coll->dtype), op_of(s, coll), s->mpi));
    if (s->rank != coll->root)
        from = in, out = NULL;
    return mpi_check(s, coll, "MPI_Reduce", MPI_Reduce(from, out, n, type_of(coll->dtype), op_of(s, coll), coll->root, s->mpi));
}

static int reduce_half(mpi_state *s, td_coll *coll, bool takes)
{
    const size_t size = td_dtype_size(coll->dtype);
    int code = 0, n;
    float *wide = room(s, "reduce", coll->count < WIDE ? coll->count : WIDE, sizeof *wide, &code);
    for (int64_t at = 0; at < coll->count && !code; at += n) {
        n = mpi_next(coll->count - at < WIDE ? coll->count - at : WIDE);
        widen(coll, (const char *)coll->in + (size_t)at * size, n, wide);
        code = reduce_piece(s, coll, wide, wide, n);
        if (!code && takes)
            narrow(s, coll, wide, n, (char *)coll->out + (size_t)at * size);
    }
    s->host->base->free(wide);
    return code;
}

int mpi_reduce(mpi_state *s, td_coll *coll)
{
    const size_t size = td_dtype_size(coll->dtype);
    const bool takes = coll->kind == TD_COLL_ALL_REDUCE || s->rank == coll->root;
    const char *in = coll->in;
    void *copy = NULL;
    int code = 0, n;
    if (is_half(coll->dtype))
        return reduce_half(s, coll, takes);
    if (pre_of(coll) != 1) {
        char *scaled = takes ? coll->out : (copy = room(s, "reduce", coll->count, size, &code));
        if (!code)
            scale(s, coll, in, scaled, coll->count, coll->pre, 1);
        in = scaled;
    }
    for (int64_t at = 0; at < coll->count && !code; at += n) {
        n = mpi_next(coll->count - at);
        code = reduce_piece(s, coll, in + (size_t)at * size, takes ? (char *)coll->out + (size_t)at * size : NULL, n);
    }
    s->host->base->free(copy);
    if (!code && takes && post_of(s, coll) != 1)
        scale(s, coll, coll->out, coll->out, coll->count, 1, post_of(s, coll));
    return code;
}

/* ---- reduce_scatter ------------------------------------------------------------------------------------------------------------------------- */

static int scatter_parts(mpi_state *s, const td_coll *coll, const char *in, char *out, size_t size)
{
    int code = 0, n;
    if (coll->count <= TD_MPI_MOST)
        return mpi_check(s, coll, "MPI_Reduce_scatter_block",
                         MPI_Reduce_scatter_block(in, out, (int)coll->count, type_of(coll->dtype), op_of(s, coll), s->mpi));
    for (int r = 0; r < s->size; r++)
        for (int64_t at = 0; at < coll->count && !code; at += n) {
            n = mpi_next(coll->count - at);
            code = mpi_check(s, coll, "MPI_Reduce", MPI_Reduce(in + (size_t)(r * coll->count + at) * size, out + (size_t)at * size, n,
                                                               type_of(coll->dtype), op_of(s, coll), r, s->mpi));
        }
    return code;
}

static int reduce_scatter_half(mpi_state *s, td_coll *coll)
{
    const int64_t total = coll->count * s->size;
    int code = 0;
    float *wide = room(s, "reduce_scatter", total + coll->count, sizeof *wide, &code);
    if (!code) {
        widen(coll, coll->in, total, wide);
        code = scatter_parts(s, coll, (const char *)wide, (char *)(wide + total), sizeof *wide);
    }
    if (!code)
        narrow(s, coll, wide + total, coll->count, coll->out);
    s->host->base->free(wide);
    return code;
}

/* MPI wants in and out apart, and in must not be scaled in place. */
int mpi_reduce_scatter(mpi_state *s, td_coll *coll)
{
    const int64_t total = coll->count * s->size;
    const size_t size = td_dtype_size(coll->dtype), bytes = (size_t)total * size;
    const char *in = coll->in, *out = coll->out;
    bool scales = pre_of(coll) != 1, apart = out >= in + bytes || in >= out + bytes / (size_t)s->size;
    void *copy = NULL;
    int code = 0;
    if (is_half(coll->dtype))
        return reduce_scatter_half(s, coll);
    if (scales || !apart) {
        copy = room(s, "reduce_scatter", total, size, &code);
        if (code)
            return code;
        if (scales)
            scale(s, coll, in, copy, total, coll->pre, 1);
        else
            memcpy(copy, in, bytes);
        in = copy;
    }
    code = scatter_parts(s, coll, in, coll->out, size);
    s->host->base->free(copy);
    if (!code && post_of(s, coll) != 1)
        scale(s, coll, coll->out, coll->out, coll->count, 1, post_of(s, coll));
    return code;
}
