/* tensor/print.c: tensors as text.
 *
 * "tensor (2,3) f32 [[1, 2, 3], [4, 5, 6]]" when that fits a line of 100 columns; else the rows under the header, aligned, wrapped at 100
 * columns. More than 1000 elements: three at each end of every dimension. Floats share one notation per tensor: whole numbers
 * without a point, else up to 4 decimals (no more than needed), else powers of ten.
 */
#include "tensor_impl.h"
#include "convert.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { EDGE = 3, THRESHOLD = 1000, COLUMNS = 100 };

typedef struct {
    char *into;
    size_t size, used;                 /* used: the full length, also beyond size                */
    int column;
} sink;

typedef struct {
    const td_tensor *x;
    const char *data;                  /* host memory of the first element                       */
    const int64_t *stride;
    bool abbreviate, lines;
    int decimals, width;               /* decimals -1: powers of ten                             */
} view;

static void put(sink *s, const char *text)
{
    for (; *text; text++) {
        if (s->used + 1 < s->size)
            s->into[s->used] = *text;
        s->used++;
        s->column = *text == '\n' ? 0 : s->column + 1;
    }
}

static void put_spaces(sink *s, int n)
{
    while (n-- > 0)
        put(s, " ");
}

static void element_text(const view *v, int64_t at, char into[static 40])
{
    td_dtype t = v->x->dtype;
    const char *p = v->data + at * (int64_t)td_dtype_size(t);
    double value = td__element_get(t, p);
    if (t == TD_BOOL) {
        snprintf(into, 40, "%s", value != 0 ? "true" : "false");
    } else if (t == TD_I64) {
        int64_t exact;
        memcpy(&exact, p, sizeof exact);
        snprintf(into, 40, "%lld", (long long)exact);
    } else if (isnan(value)) {
        snprintf(into, 40, "nan");
    } else if (isinf(value)) {
        snprintf(into, 40, value < 0 ? "-inf" : "inf");
    } else if (v->decimals < 0) {
        snprintf(into, 40, "%.4e", value);
    } else {
        snprintf(into, 40, "%.*f", v->decimals, value);
    }
}

/* ---- the elements that are shown ----------------------------------------------------------------------------------------------- */
static int64_t skip_to(const view *v, int dim, int64_t i)   /* the index after i along dim */
{
    int64_t n = v->x->shape.dim[dim];
    return v->abbreviate && i == EDGE - 1 && n > 2 * EDGE ? n - EDGE : i + 1;
}

typedef struct { double largest, smallest; bool fraction; int decimals, width; } survey;

static void survey_element(const view *v, int64_t at, survey *s)
{
    double a = fabs(td__element_get(v->x->dtype, v->data + at * (int64_t)td_dtype_size(v->x->dtype)));
    if (!isfinite(a))
        return;
    s->largest = a > s->largest ? a : s->largest;
    s->smallest = a > 0 && a < s->smallest ? a : s->smallest;
    s->fraction = s->fraction || a != floor(a);
    if (a >= 1e8)
        return;
    char text[40];
    int n = snprintf(text, sizeof text, "%.4f", a), zeros = 0;
    while (zeros < 4 && text[n - 1 - zeros] == '0')
        zeros++;
    s->decimals = 4 - zeros > s->decimals ? 4 - zeros : s->decimals;
}

static void survey_width(const view *v, int64_t at, survey *s)
{
    char text[40];
    element_text(v, at, text);
    int n = (int)strlen(text);
    s->width = n > s->width ? n : s->width;
}

static void each_shown(const view *v, int dim, int64_t at, survey *s, void (*see)(const view *, int64_t, survey *))
{
    if (dim == v->x->shape.ndim) {
        see(v, at, s);
        return;
    }
    for (int64_t i = 0; i < v->x->shape.dim[dim]; i = skip_to(v, dim, i))
        each_shown(v, dim + 1, at + i * v->stride[dim], s, see);
}

static void choose_notation(view *v)
{
    survey s = { .smallest = INFINITY };
    v->decimals = 0;
    td_dtype t = v->x->dtype;
    if (td__is_float(t) || t == TD_F16 || t == TD_BF16) {
        each_shown(v, 0, 0, &s, survey_element);
        bool powers = s.largest >= 1e8 || (s.fraction && (s.smallest < 1e-4 || s.largest / s.smallest > 1e6));
        v->decimals = powers ? -1 : s.decimals;
    }
    each_shown(v, 0, 0, &s, survey_width);
    v->width = s.width;
}

/* ---- writing ------------------------------------------------------------------------------------------------------------------------ */
/* An element of a row, with the comma and the space or new line before it. */
static void put_item(const view *v, sink *out, const char *text, int indent, bool first)
{
    if (!first && v->lines && out->column + v->width + 3 > COLUMNS) {
        put(out, ",\n");
        put_spaces(out, indent);
    } else if (!first) {
        put(out, ", ");
    }
    if (v->lines)
        put_spaces(out, v->width - (int)strlen(text));
    put(out, text);
}

static void put_level(const view *v, sink *out, int dim, int64_t at)
{
    const td_shape *shape = &v->x->shape;
    char text[40];
    if (dim == shape->ndim) {
        element_text(v, at, text);
        put(out, text);
        return;
    }
    bool inner = dim == shape->ndim - 1;
    int64_t n = shape->dim[dim];
    put(out, "[");
    for (int64_t i = 0; i < n;) {
        int64_t next = skip_to(v, dim, i);
        if (inner) {
            element_text(v, at + i * v->stride[dim], text);
            put_item(v, out, text, dim + 1, i == 0);
            if (next > i + 1)
                put_item(v, out, "...", dim + 1, false);
        } else {
            put_level(v, out, dim + 1, at + i * v->stride[dim]);
            for (int k = 0; next < n && k < (next > i + 1 ? 2 : 1); k++) {
                put(out, k ? "..." : ",");
                if (v->lines) {
                    put(out, "\n");
                    put_spaces(out, dim + 1);
                } else {
                    put(out, k ? ", " : " ");
                }
            }
        }
        i = next;
    }
    put(out, "]");
}

static void put_tensor(const view *v, sink *out)
{
    char shape[128];
    put(out, "tensor ");
    put(out, td__shape_text(v->x->shape, shape));
    put(out, " ");
    put(out, td_dtype_name(v->x->dtype));
    put(out, v->lines ? "\n" : " ");
    if (td__shape_numel(v->x->shape))
        put_level(v, out, 0, 0);
    else
        put(out, "[]");
}

size_t td_format(const td_tensor *x, char *into, size_t size)
{
    TD_ENTER();
    td__record_read("td_format");
    sink out = { .into = into, .size = size };
    int64_t stride[TD_MAX_DIMS];
    void *host = NULL;
    if (!x || x->poisoned) {
        put(&out, x ? "tensor (poisoned by an earlier error)" : "tensor (NULL)");
    } else {
        view v = { .x = x, .stride = x->stride, .abbreviate = td__shape_numel(x->shape) > THRESHOLD };
        v.data = td__ptr(x);
        if (!x->storage->ops->host_memory) {
            size_t bytes = (size_t)td__shape_numel(x->shape) * td_dtype_size(x->dtype);
            host = td__alloc(bytes);
            if (!host || td_copy_out(x, host, bytes)) {
                td__free(host);
                if (size)
                    into[0] = 0;
                return 0;
            }
            td__shape_strides(x->shape, stride);
            v.data = host;
            v.stride = stride;
        }
        choose_notation(&v);
        sink measure = { 0 };
        put_tensor(&v, &measure);
        v.lines = measure.used > COLUMNS;
        put_tensor(&v, &out);
        td__free(host);
    }
    if (size)
        into[out.used < size ? out.used : size - 1] = 0;
    return out.used;
}

void td_print(const td_tensor *x)
{
    TD_ENTER();
    td__record_read("td_print");
    size_t size = td_format(x, NULL, 0) + 1;
    char *text = td__alloc(size);
    if (!text)
        return;
    td_format(x, text, size);
    puts(text);
    fflush(stdout);
    td__free(text);
}
