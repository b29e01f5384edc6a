/* tests/autograd/ops_rows_attention.c: rows for attention, rotary, swiglu. References are the definitions, element by element.
 */
#include "ops_list.h"
#include "ops_table.h"
#include <math.h>

/* ---- attention: p = N H T S D, causal, mask, layout, scale in percent (0: the default) ----------------------------------------------- */

enum { PLAIN_MASK, BOOL_TS, BOOL_KEYS, FLOAT_FULL, FLOAT_INF, BOOL_ROWS };   /* the last two leave rows that see nothing */
enum { DENSE, BY_ROWS, COLUMNS, SHARED_HEADS };       /* (N,T,H,D) transposed; (N,H,D,T) transposed; k and v (N,1,S,D) expanded     */

static td_shape kv_shape(const int *p, int rows, bool key)
{
    if (p[7] == BY_ROWS)
        return TD_SHAPE(p[0], rows, p[1], p[4]);
    if (p[7] == COLUMNS)
        return TD_SHAPE(p[0], p[1], p[4], rows);
    return TD_SHAPE(p[0], p[7] == SHARED_HEADS && key ? 1 : p[1], rows, p[4]);
}

/* where element (n,h,r,d) of the viewed tensor lies */
static int64_t kv_at(const int *p, int rows, bool key, int64_t n, int64_t h, int64_t r, int64_t d)
{
    const int64_t H = p[1], D = p[4];
    if (p[7] == BY_ROWS)
        return ((n * rows + r) * H + h) * D + d;
    if (p[7] == COLUMNS)
        return ((n * H + h) * D + d) * rows + r;
    return ((p[7] == SHARED_HEADS && key ? n : n * H + h) * rows + r) * D + d;
}

static td_tensor *kv_view(const int *p, td_tensor *x, int rows, bool key)
{
    if (p[7] == BY_ROWS)
        return td_transpose(x, 1, 2);
    if (p[7] == COLUMNS)
        return td_transpose(x, 2, 3);
    return p[7] == SHARED_HEADS && key ? td_expand(x, TD_SHAPE(p[0], p[1], rows, p[4])) : x;
}

static td_tensor *mask_of(const int *p, td_dtype t)
{
    static const int ndim[] = { 0, 2, 4, 4, 2, 2 };
    td_shape s = { ndim[p[6]], { p[2], p[3] } };
    if (p[6] == BOOL_KEYS || p[6] == FLOAT_FULL)
        s = p[6] == BOOL_KEYS ? TD_SHAPE(p[0], 1, 1, p[3]) : TD_SHAPE(p[0], p[1], p[2], p[3]);
    if (p[6] == BOOL_ROWS)
        s.dim[1] = 1;
    if (p[6] == FLOAT_FULL)
        return ops_fill(s, t, 34);
    double v[8192];
    for (int64_t i = 0; i < ops_count(s); i++) {
        const uint32_t bits = td__philox(35, 1, (uint64_t)i).v[0];
        const int64_t row = s.dim[s.ndim - 1] ? i / s.dim[s.ndim - 1] : 0;
        if (p[6] == FLOAT_INF)
            v[i] = row % 3 == 1 || bits % 4 == 0 ? -INFINITY : (bits % 64) / 32.0 - 1;
        else
            v[i] = p[6] == BOOL_ROWS ? i % 3 != 1 : bits % 3 != 0;
    }
    return td_cast(td_from(v, s, TD_F64), p[6] == FLOAT_INF ? t : TD_BOOL);
}

static size_t attention_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int *p = row->p;
    in[0] = ops_fill(kv_shape(p, p[2], false), t, 31);
    in[1] = ops_fill(kv_shape(p, p[3], true), t, 32);
    in[2] = ops_fill(kv_shape(p, p[3], true), t, 33);
    if (!p[6])
        return 3;
    in[3] = mask_of(p, t);
    return 4;
}

static td_tensor *attention_apply(td_tensor *const *in, size_t n, void *user)
{
    const int *p = ((const ops_row *)user)->p;
    const td_attention_opts o = { .causal = p[5], .scale = p[8] / 100.0, .mask = n > 3 ? in[3] : NULL };
    return td_attention(kv_view(p, in[0], p[2], false), kv_view(p, in[1], p[3], true), kv_view(p, in[2], p[3], true),
                        p[5] || p[6] || p[8] ? &o : NULL);
}

static void attention_reference(const ops_row *row, const ops_array *in, size_t inputs, ops_array *out)
{
    const int *p = row->p, T = p[2], S = p[3], D = p[4];
    const double scale = p[8] ? p[8] / 100.0 : 1 / sqrt(D);
    const td_shape full = TD_SHAPE(p[0], p[1], T, S);
    double score[1024];
    ops_out(out, TD_SHAPE(p[0], p[1], T, D));
    for (int64_t i = 0; i < (int64_t)p[0] * p[1] * T; i++) {
        const int64_t n = i / T / p[1], h = i / T % p[1], t = i % T;
        double most = -INFINITY, sum = 0;
        for (int64_t s = 0; s < S; s++) {
            score[s] = 0;
            for (int d = 0; d < D; d++)
                score[s] += in[0].v[kv_at(p, T, false, n, h, t, d)] * in[1].v[kv_at(p, S, true, n, h, s, d)];
            score[s] *= scale;
            if (inputs > 3) {
                const double m = in[3].v[ops_broadcast_index(in[3].shape, full, i * S + s)];
                if (p[6] == FLOAT_FULL || p[6] == FLOAT_INF)
                    score[s] += m;
                else if (m == 0)
                    score[s] = -INFINITY;
            }
            if (p[5] && s > t)
                score[s] = -INFINITY;
            most = fmax(most, score[s]);
        }
        if (most == -INFINITY)
            continue;                                          /* zeros                                             */
        for (int64_t s = 0; s < S; s++)
            sum += score[s] = exp(score[s] - most);
        for (int64_t s = 0; s < S; s++)
            for (int d = 0; d < D; d++)
                out->v[i * D + d] += score[s] / sum * in[2].v[kv_at(p, S, true, n, h, s, d)];
    }
}

/* ---- rotary: p = ndim and three sizes before D, D, layout (1: the first two transposed, 2: D strided), first position, base ----------- */

static td_shape rotary_shape(const int *p)
{
    td_shape s = { p[0] + 1, { p[1], p[2], p[3] } };
    s.dim[p[0]] = p[4];
    return s;
}

static size_t rotary_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    td_shape s = rotary_shape(row->p);
    const int last = s.ndim - 1, a = row->p[5] == 1 ? 0 : last, b = row->p[5] == 1 ? 1 : last - 1;
    const int64_t swap = s.dim[a];
    if (row->p[5])
        s.dim[a] = s.dim[b], s.dim[b] = swap;
    in[0] = ops_fill(s, t, 36);
    return 1;
}

static td_tensor *rotary_apply(td_tensor *const *in, size_t n, void *user)
{
    (void)n;
    const int *p = ((const ops_row *)user)->p;
    const td_shape s = rotary_shape(p);
    td_tensor *x = p[5] == 1 ? td_transpose(in[0], 0, 1) : p[5] == 2 ? td_transpose(in[0], -2, -1) : in[0];
    const int64_t rows = s.dim[s.ndim - 2];
    td_tensor *table = td_rotary_table(p[6] + rows, p[4], p[7], td_dtype_of(in[0]));
    return td_rotary(x, p[6] ? td_narrow(table, 0, p[6], rows) : table);
}

static void rotary_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    (void)n;
    const int *p = row->p;
    const td_shape s = rotary_shape(p);
    const int64_t D = p[4], half = D / 2, rows = s.dim[s.ndim - 2];
    ops_out(out, s);
    for (int64_t i = 0; i < out->n; i++) {
        const int64_t d = i % D, t = i / D % rows, pair = d % half;
        const double angle = (double)(p[6] + t) * pow(p[7] ? p[7] : 10000, -2.0 * (double)pair / (double)D);
        int64_t at[2] = { i, d < half ? i + half : i - half };
        for (int k = 0; k < 2; k++) {
            if (p[5] == 1) {                                   /* x is (b, a, …): element (i0, i1, rest) lies at (i1, i0, rest)   */
                const int64_t rest = out->n / (s.dim[0] * s.dim[1]), i0 = at[k] / rest / s.dim[1], i1 = at[k] / rest % s.dim[1];
                at[k] = (i1 * s.dim[0] + i0) * rest + at[k] % rest;
            } else if (p[5] == 2) {
                at[k] = (at[k] / D / rows * D + at[k] % D) * rows + at[k] / D % rows;
            }
        }
        out->v[i] = in[0].v[at[0]] * cos(angle) + (d < half ? -1 : 1) * in[0].v[at[1]] * sin(angle);
    }
}

/* ---- swiglu: p = two sizes, layout (1: both are halves of one tensor's rows; 2: gate is transposed) ------------------------------------- */

static size_t swiglu_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int *p = row->p;
    const td_shape s = TD_SHAPE(p[0], p[1]);
    if (p[2] == 1) {
        in[0] = td_scale(ops_fill(TD_SHAPE(p[0], 2 * p[1]), t, 37), 4);
        return 1;
    }
    in[0] = td_scale(ops_fill(p[2] == 2 ? TD_SHAPE(p[1], p[0]) : s, t, 38), 4);
    in[1] = ops_fill(s, t, 39);
    return 2;
}

static td_tensor *swiglu_apply(td_tensor *const *in, size_t n, void *user)
{
    (void)n;
    const int *p = ((const ops_row *)user)->p;
    if (p[2] == 1)
        return td_swiglu(td_narrow(in[0], 1, 0, p[1]), td_narrow(in[0], 1, p[1], p[1]));
    return td_swiglu(p[2] == 2 ? td_transpose(in[0], 0, 1) : in[0], in[1]);
}

static void swiglu_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    (void)n;
    const int *p = row->p;
    ops_out(out, TD_SHAPE(p[0], p[1]));
    for (int64_t i = 0; i < out->n; i++) {
        const int64_t r = i / p[1], c = i % p[1];
        const double gate = in[0].v[p[2] == 1 ? r * 2 * p[1] + c : p[2] == 2 ? c * p[0] + r : i];
        out->v[i] = gate / (1 + exp(-gate)) * (p[2] == 1 ? in[0].v[r * 2 * p[1] + p[1] + c] : in[1].v[i]);
    }
}

/* Tolerances. attention: |q|, |k|, |v| <= 2, so a score of D products is off by at most a few D*4*scale roundings; that is the relative
 * error of a probability, whose weighted mean of v is the result. rotary: angles are the same doubles, then two products and a sum.
 * swiglu: exp's 4 units, a division and two products. */
#define ATTENTION(g, ...)                                                                                    \
    { .op = &td__op_attention, .name = "attention {" #__VA_ARGS__ "}", .dtypes = OPS_F, .inputs = attention_inputs, .apply = attention_apply, \
      .reference = attention_reference, .abs = 64, .rel = 8, .grad = g, .p = { __VA_ARGS__ } }
#define ROTARY(g, ...)                                                                                       \
    { .op = &td__op_rotary, .name = "rotary {" #__VA_ARGS__ "}", .dtypes = OPS_F, .inputs = rotary_inputs, .apply = rotary_apply, \
      .reference = rotary_reference, .abs = 8, .rel = 2, .grad = g, .p = { __VA_ARGS__ } }
#define SWIGLU(g, ...)                                                                                       \
    { .op = &td__op_swiglu, .name = "swiglu {" #__VA_ARGS__ "}", .dtypes = OPS_F, .inputs = swiglu_inputs, .apply = swiglu_apply, \
      .reference = swiglu_reference, .abs = 2, .rel = 12, .grad = g, .p = { __VA_ARGS__ } }
const ops_row ops_rows_attention[] = {
    ATTENTION(7, 2, 3, 5, 5, 4), ATTENTION(7, 1, 2, 7, 3, 5, 1), ATTENTION(7, 1, 2, 3, 7, 5, 1), ATTENTION(7, 1, 1, 1, 1, 1),
    ATTENTION(7, 1, 2, 5, 7, 3, 0, BOOL_TS), ATTENTION(7, 2, 2, 5, 7, 3, 0, BOOL_KEYS), ATTENTION(7, 2, 2, 5, 7, 3, 0, FLOAT_FULL),
    ATTENTION(7, 2, 2, 7, 5, 3, 0, FLOAT_INF), ATTENTION(7, 1, 2, 7, 5, 3, 0, BOOL_ROWS), ATTENTION(7, 1, 2, 7, 5, 3, 1, BOOL_TS),
    ATTENTION(7, 1, 2, 7, 7, 3, 1, FLOAT_FULL, BY_ROWS), ATTENTION(7, 2, 3, 5, 7, 4, 1, 0, BY_ROWS), ATTENTION(7, 2, 3, 5, 7, 4, 0, 0, COLUMNS),
    ATTENTION(7, 2, 3, 5, 7, 4, 1, 0, SHARED_HEADS), ATTENTION(7, 1, 2, 5, 5, 3, 0, 0, DENSE, 37), ATTENTION(7, 0, 2, 5, 5, 3, 1),
    ATTENTION(7, 2, 2, 0, 5, 3), ATTENTION(7, 2, 2, 5, 0, 3), ATTENTION(7, 1, 2, 5, 5, 0),
    ATTENTION(0, 1, 2, 131, 67, 13, 1), ATTENTION(0, 1, 3, 67, 263, 17, 1), ATTENTION(0, 1, 2, 197, 293, 64), ATTENTION(0, 2, 1, 131, 61, 7, 0, FLOAT_INF),
    ATTENTION(0, 1, 2, 61, 131, 7, 1, BOOL_TS, BY_ROWS), ATTENTION(0, 3, 3, 129, 129, 5, 1, 0, COLUMNS), ATTENTION(0, 1, 2, 1, 521, 31),
    ROTARY(1, 3, 2, 3, 5, 6), ROTARY(1, 1, 7, 0, 0, 2), ROTARY(1, 3, 2, 3, 5, 4, 0, 11), ROTARY(1, 3, 3, 2, 5, 6, 1), ROTARY(1, 2, 3, 5, 0, 4, 2, 2),
    ROTARY(1, 2, 0, 5, 0, 4), ROTARY(1, 2, 3, 0, 0, 4), ROTARY(1, 2, 3, 5, 0, 0), ROTARY(1, 2, 3, 5, 0, 6, 0, 0, 500), ROTARY(0, 3, 3, 7, 67, 34, 1),
    SWIGLU(3, 3, 7), SWIGLU(1, 5, 3, 1), SWIGLU(3, 5, 3, 2), SWIGLU(1, 5, 3), SWIGLU(2, 5, 3), SWIGLU(3, 0, 7), SWIGLU(0, 131, 293), SWIGLU(0, 131, 293, 1),
    { 0 },
};
