/* autograd/ops_rotary.c: td_rotary and the table of its angles.
 *
 * The table is an ordinary tensor: computed once for all layers and steps (a sine costs more than all else here), and a position is a
 * row of it, so that an offset, as with a key/value cache, is td_narrow. It has no gradient.
 */
#include "ops_shared.h"
#include <math.h>

static int rotary_infer(td_call *c)
{
    td_tensor *x = td_call_input(c, 0), *table = td_call_input(c, 1);
    const td_shape s = x->shape, p = table->shape;
    char xt[128], pt[128];
    int code = td__op_float(c, 0, "x");
    if (!code)
        code = td__op_same_dtype(c, 0, 1);
    if (code)
        return code;
    if (s.ndim < 2)
        return td_call_error(c, TD_ERR_SHAPE, "x has shape %s, expected at least 2 dimensions (…,T,D)", td__shape_text(s, xt));
    if (s.dim[s.ndim - 1] % 2 != 0)
        return td_call_error(c, TD_ERR_SHAPE, "x has shape %s: its rows of %lld do not divide into pairs", td__shape_text(s, xt),
                             (long long)s.dim[s.ndim - 1]);
    if (p.ndim != 2 || p.dim[0] != s.dim[s.ndim - 2] || p.dim[1] != s.dim[s.ndim - 1])
        return td_call_error(c, TD_ERR_SHAPE, "the table has shape %s, expected (%lld,%lld), the last two dimensions of x %s (td_narrow takes rows)",
                             td__shape_text(p, pt), (long long)s.dim[s.ndim - 2], (long long)s.dim[s.ndim - 1], td__shape_text(s, xt));
    if (td_call_needs_grad(c, 1))
        return td_call_error(c, TD_ERR_ARGUMENT, "the table asks for a gradient, and has none");
    return td_call_infer(c, 0, s, x->dtype);
}

/* x as rows whose elements are neighbours. The caller unrefs. */
static td_tensor *with_rows(td_tensor *x)
{
    const int last = x->shape.ndim - 1;
    if (x->shape.dim[last] > 1 && x->stride[last] != 1)
        return td__op_dense(x);
    td__tensor_ref(x);
    return x;
}

/* One element per row: what the loop walks. The caller unrefs. */
static td_tensor *row_starts(td_tensor *x)
{
    td_shape s = x->shape;
    s.dim[s.ndim - 1] = 1;
    return td__tensor_view(x, s, x->stride, x->offset);
}

/* into (=|+=) x rotated; into is contiguous */
static int rotate(td_tensor *into, td_tensor *x, td_tensor *table, bool inverse, bool add)
{
    const int64_t d = x->shape.dim[x->shape.ndim - 1];
    if (td__shape_numel(x->shape) == 0)
        return 0;
    td_tensor *dense[2] = { with_rows(x), with_rows(table) }, *start[3] = { 0 };
    int code = dense[0]->poisoned || dense[1]->poisoned ? td__pending() : 0;
    for (int i = 0; !code && i < 3; i++) {
        start[i] = row_starts(i ? dense[i - 1] : into);
        code = start[i]->poisoned ? td__pending() : 0;
    }
    if (!code) {
        const td_loop rows = td__loop(start[0]->shape, start[0], start[1], start[2], NULL);
        td__kernels(into)->rotary(&rows, into->dtype, d, td__ptr(into), td__ptr(dense[0]), td__ptr(dense[1]), inverse, add);
    }
    for (int i = 0; i < 3; i++)
        if (start[i])
            td__tensor_unref(start[i]);
    td__tensor_unref(dense[0]);
    td__tensor_unref(dense[1]);
    return code;
}

static int rotary_run(td_call *c)
{
    td_tensor *out = td_call_output(c, 0), *table = td_call_input(c, 1);
    int code = td__need("td_rotary", out, rotary);
    if (!code)
        code = rotate(out, td_call_input(c, 0), table, false, false);
    td_call_save(c, table);
    return code;
}

static int rotary_grad(td_call *c, td_tensor *const *g, td_grad_slot *slot)
{
    int code = td__need("td_rotary", g[0], rotary);
    return code || !slot[0].into ? code : rotate(slot[0].into, g[0], td_call_saved(c, 0), true, slot[0].add);
}

const td_op td__op_rotary = { .name = "rotary", .infer = rotary_infer, .run = rotary_run, .grad = rotary_grad };

td_tensor *td_rotary(td_tensor *x, td_tensor *table)
{
    TD_ENTER();
    return td_apply(&td__op_rotary, (td_tensor *[]){ x, table }, 2, NULL);
}

td_tensor *td_rotary_table(int64_t positions, int64_t d, double base, td_dtype dtype)
{
    TD_ENTER();
    const td_shape shape = { 2, { positions, d } };
    base = base == 0 ? 10000 : base;
    if (positions < 0 || d < 0 || d % 2 != 0) {
        td__fail(TD_ERR_SHAPE, "td_rotary_table: %lld positions of %lld elements, expected at least 0 of an even number", (long long)positions,
                 (long long)d);
        return td__poison();
    }
    if (!(base > 0) || !isfinite(base)) {
        td__fail(TD_ERR_ARGUMENT, "td_rotary_table: base is %g, expected a positive number (0 means 10000)", base);
        return td__poison();
    }
    if (!td__is_real(dtype)) {
        td__fail(TD_ERR_DTYPE, "td_rotary_table: dtype is %s, expected a float", td_dtype_name(dtype));
        return td__poison();
    }
    if (td__shape_check("td_rotary_table", shape))
        return td__poison();
    const size_t size = td_dtype_size(dtype);
    char *data = td__alloc((size_t)(positions * d) * size);
    if (!data)
        return td__poison();
    for (int64_t i = 0; i < d / 2; i++) {
        const double speed = pow(base, -2.0 * (double)i / (double)d);
        for (int64_t p = 0; p < positions; p++) {
            td__element_put(dtype, data + (size_t)(p * d + i) * size, cos((double)p * speed));
            td__element_put(dtype, data + (size_t)(p * d + d / 2 + i) * size, sin((double)p * speed));
        }
    }
    td_tensor *table = td_from(data, shape, dtype);
    td__free(data);
    return table;
}
