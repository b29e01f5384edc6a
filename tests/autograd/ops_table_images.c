/* tests/autograd/ops_table_images.c: rows for the convolutions, the pools, batch_norm and dropout. References are the definitions, element by
 * element. With TEST_CHANNELS_LAST in the environment all images lie with the channels last.
 */
#include "ops_list.h"
#include "ops_table.h"
#include <math.h>
#include <stdlib.h>

static td_tensor *laid(td_tensor *x)
{
    return getenv("TEST_CHANNELS_LAST") && td_shape_of(x).ndim == 4 ? td_to_memory_format(x, TD_CHANNELS_LAST) : x;
}

/* Where the device keeps it, the result lies as the image did. Said by a result of no shape, which no row has. */
static td_tensor *as_laid(td_tensor *y, const td_tensor *x)
{
    return td__keeps_channels_last(x) && !td__channels_last(y) ? td_zeros(TD_SCALAR, TD_F32) : y;
}

/* ---- conv2d: p = n c h w  o kh kw  stride padding  strided-input dilation groups; with a bias where its gradient (bit 2) is asked for -- */

static size_t conv_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int *p = row->p;
    in[0] = p[9] ? ops_fill(TD_SHAPE(p[0], p[1], p[3], p[2]), t, 1) : ops_fill(TD_SHAPE(p[0], p[1], p[2], p[3]), t, 1);
    in[1] = ops_fill(TD_SHAPE(p[4], p[1] / p[11], p[5], p[6]), t, 2);
    in[2] = ops_fill(TD_SHAPE(p[4]), t, 3);
    return row->grad & 4 ? 3 : 2;
}

static td_tensor *conv_apply(td_tensor *const *in, size_t n, void *user)
{
    const int *p = ((const ops_row *)user)->p;
    td_tensor *x = laid(p[9] ? td_transpose(in[0], 2, 3) : in[0]);
    const td_conv2d_opts opts = { .stride = p[7], .padding = p[8], .dilation = p[10] > 1 ? p[10] : 0, .groups = p[11] > 1 ? p[11] : 0 };
    return as_laid(td_conv2d(x, in[1], n > 2 ? in[2] : NULL, &opts), x);
}

static void conv_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    const int *p = row->p, N = p[0], C = p[1], H = p[2], W = p[3], O = p[4], KH = p[5], KW = p[6], S = p[7], P = p[8], D = p[10], G = p[11];
    const int OH = (H + 2 * P - D * (KH - 1) - 1) / S + 1, OW = (W + 2 * P - D * (KW - 1) - 1) / S + 1;
    ops_out(out, TD_SHAPE(N, O, OH, OW));
    int64_t at = 0;
    for (int i = 0; i < N; i++)
        for (int o = 0; o < O; o++)
            for (int a = 0; a < OH; a++)
                for (int b = 0; b < OW; b++, at++) {
                    double sum = n > 2 ? in[2].v[o] : 0;
                    for (int c = 0; c < C / G; c++)
                        for (int k = 0; k < KH; k++)
                            for (int l = 0; l < KW; l++) {
                                int h = a * S + k * D - P, w = b * S + l * D - P, from = i * C + o / (O / G) * (C / G) + c;
                                if (h >= 0 && h < H && w >= 0 && w < W)
                                    sum += in[0].v[p[9] ? (from * W + w) * H + h : (from * H + h) * W + w] *
                                           in[1].v[((o * (C / G) + c) * KH + k) * KW + l];
                            }
                    out->v[at] = sum;
                }
}

/* ---- conv_transpose2d: p = n c h w  o kh kw  stride padding output_padding dilation groups; bias as above ---------------------------- */

static size_t transpose_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int *p = row->p;
    in[0] = ops_fill(TD_SHAPE(p[0], p[1], p[2], p[3]), t, 1);
    in[1] = ops_fill(TD_SHAPE(p[1], p[4] / p[11], p[5], p[6]), t, 2);
    in[2] = ops_fill(TD_SHAPE(p[4]), t, 3);
    return row->grad & 4 ? 3 : 2;
}

static td_tensor *transpose_apply(td_tensor *const *in, size_t n, void *user)
{
    const int *p = ((const ops_row *)user)->p;
    td_tensor *x = laid(in[0]);
    return td_conv_transpose2d(x, in[1], n > 2 ? in[2] : NULL, &(td_conv_transpose2d_opts){ .stride = p[7], .padding = p[8],
                               .output_padding = p[9], .dilation = p[10] > 1 ? p[10] : 0, .groups = p[11] > 1 ? p[11] : 0 });
}

/* every pixel of x is stamped into the output */
static void transpose_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    const int *p = row->p, N = p[0], C = p[1], H = p[2], W = p[3], O = p[4], KH = p[5], KW = p[6], S = p[7], P = p[8], D = p[10], G = p[11];
    const int OH = (H - 1) * S - 2 * P + D * (KH - 1) + p[9] + 1, OW = (W - 1) * S - 2 * P + D * (KW - 1) + p[9] + 1, OG = O / G;
    ops_out(out, TD_SHAPE(N, O, OH, OW));
    for (int64_t i = 0; n > 2 && i < out->n; i++)
        out->v[i] = in[2].v[i / (OH * OW) % O];
    for (int i = 0; i < N * C * H * W; i++) {
        const int w = i % W, h = i / W % H, c = i / W / H % C, b = i / W / H / C;
        for (int o = 0; o < OG; o++)
            for (int k = 0; k < KH; k++)
                for (int l = 0; l < KW; l++) {
                    int y = h * S + k * D - P, x = w * S + l * D - P;
                    if (y >= 0 && y < OH && x >= 0 && x < OW)
                        out->v[((b * O + c / (C / G) * OG + o) * OH + y) * OW + x] += in[0].v[i] * in[1].v[((c * OG + o) * KH + k) * KW + l];
                }
    }
}

/* ---- pools: p = n c h w  window stride padding  strided-input ------------------------------------------------------------------------ */

static size_t pool_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int *p = row->p;
    in[0] = ops_fill_distinct(p[7] ? TD_SHAPE(p[0], p[1], p[3], p[2]) : TD_SHAPE(p[0], p[1], p[2], p[3]), t, 4);
    return 1;
}

static td_tensor *pool_apply(td_tensor *const *in, size_t n, void *user)
{
    (void)n;
    const ops_row *row = user;
    const int *p = row->p;
    const td_pool2d_opts opts = { .stride = p[5], .padding = p[6] };
    td_tensor *x = laid(p[7] ? td_transpose(in[0], 2, 3) : in[0]);
    return as_laid(row->op == &td__op_max_pool2d ? td_max_pool2d(x, p[4], &opts) :
                   td_avg_pool2d(x, p[4], p[5] == p[4] && p[6] == 0 ? NULL : &opts), x);
}

static void pool_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    (void)n;
    const int *p = row->p, H = p[2], W = p[3], K = p[4], S = p[5], P = p[6], OH = (H + 2 * P - K) / S + 1, OW = (W + 2 * P - K) / S + 1;
    const bool max = row->op == &td__op_max_pool2d;
    ops_out(out, TD_SHAPE(p[0], p[1], OH, OW));
    int64_t at = 0;
    for (int i = 0; i < p[0] * p[1]; i++)
        for (int a = 0; a < OH; a++)
            for (int b = 0; b < OW; b++, at++) {
                double best = -INFINITY, sum = 0;
                for (int k = 0; k < K; k++)
                    for (int l = 0; l < K; l++) {
                        int h = a * S + k - P, w = b * S + l - P;
                        if (h < 0 || h >= H || w < 0 || w >= W)
                            continue;
                        double v = in[0].v[p[7] ? (i * W + w) * H + h : (i * H + h) * W + w];
                        best = v > best ? v : best;
                        sum += v;
                    }
                out->v[at] = max ? best : sum / (K * K);
            }
}

/* ---- adaptive pools: p = n c h w  out_h out_w  strided-input ---------------------------------------------------------------------------- */

static size_t adaptive_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int *p = row->p;
    in[0] = ops_fill_distinct(p[6] ? TD_SHAPE(p[0], p[1], p[3], p[2]) : TD_SHAPE(p[0], p[1], p[2], p[3]), t, 4);
    return 1;
}

static td_tensor *adaptive_apply(td_tensor *const *in, size_t n, void *user)
{
    (void)n;
    const ops_row *row = user;
    const int *p = row->p;
    td_tensor *x = laid(p[6] ? td_transpose(in[0], 2, 3) : in[0]);
    return row->op == &td__op_adaptive_max_pool2d ? td_adaptive_max_pool2d(x, p[4], p[5]) : td_adaptive_avg_pool2d(x, p[4], p[5]);
}

static void adaptive_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    (void)n;
    const int *p = row->p, H = p[2], W = p[3], OH = p[4], OW = p[5];
    const bool max = row->op == &td__op_adaptive_max_pool2d;
    ops_out(out, TD_SHAPE(p[0], p[1], OH, OW));
    int64_t at = 0;
    for (int i = 0; i < p[0] * p[1]; i++)
        for (int a = 0; a < OH; a++)
            for (int b = 0; b < OW; b++, at++) {
                double best = -INFINITY, sum = 0, count = 0;
                for (int h = (int)floor((double)a * H / OH); h < (int)ceil((double)(a + 1) * H / OH); h++)
                    for (int w = (int)floor((double)b * W / OW); w < (int)ceil((double)(b + 1) * W / OW); w++, count++) {
                        double v = in[0].v[p[6] ? (i * W + w) * H + h : (i * H + h) * W + w];
                        best = v > best ? v : best;
                        sum += v;
                    }
                out->v[at] = max ? best : sum / count;
            }
}

/* ---- batch_norm and batch_norm_relu: p = dimensions (3: n c inner; inner 0: two dimensions), train, affine, running, something added ------- */

static td_shape norm_shape(const int *p)
{
    return p[2] ? TD_SHAPE(p[0], p[1], p[2] / 2, 2) : TD_SHAPE(p[0], p[1]);
}

static size_t norm_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    const int *p = row->p;
    in[0] = ops_fill(norm_shape(p), t, 5);
    in[1] = ops_fill(TD_SHAPE(p[1]), t, 6);
    in[2] = ops_fill(TD_SHAPE(p[1]), t, 7);
    in[3] = ops_fill(TD_SHAPE(p[1]), t, 8);
    in[4] = ops_fill_positive(TD_SHAPE(p[1]), t, 9);
    in[5] = ops_fill(norm_shape(p), t, 10);
    return p[6] ? 6 : 5;
}

static td_tensor *norm_apply(td_tensor *const *in, size_t n, void *user)
{
    (void)n;
    const ops_row *row = user;
    const int *p = row->p;
    td_tensor *mean = in[3], *var = in[4], *x = laid(in[0]);
    if (p[3]) {                      /* training changes them: fresh ones for every call                                          */
        mean = td_zeros(TD_SHAPE(p[1]), td_dtype_of(in[0]));
        var = td_ones(TD_SHAPE(p[1]), td_dtype_of(in[0]));
    }
    const td_batch_norm_opts opts = { .train = p[3], .eps = 0.125f };
    td_tensor *w = p[4] ? in[1] : NULL, *b = p[4] ? in[2] : NULL;
    mean = p[5] ? mean : NULL, var = p[5] ? var : NULL;
    if (row->op == &td__op_batch_norm_relu)
        return as_laid(td_batch_norm_relu(x, p[6] ? in[5] : NULL, w, b, mean, var, &opts), x);
    return as_laid(td_batch_norm(x, w, b, mean, var, &opts), x);
}

static void norm_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    (void)n;
    const int *p = row->p, inner = p[2] ? p[2] : 1, count = p[0] * inner;
    ops_out(out, norm_shape(p));
    for (int c = 0; c < p[1]; c++) {
        double mean = 0, var = 0;
#define X(i) ((int64_t)((i) / inner * p[1] + c) * inner + (i) % inner)
        for (int i = 0; i < count; i++)
            mean += in[0].v[X(i)] / count;
        for (int i = 0; i < count; i++)
            var += (in[0].v[X(i)] - mean) * (in[0].v[X(i)] - mean) / count;
        if (!p[3])
            mean = in[3].v[c], var = in[4].v[c];
        for (int i = 0; i < count; i++)
            out->v[X(i)] = (in[0].v[X(i)] - mean) / sqrt(var + 0.125) * (p[4] ? in[1].v[c] : 1) + (p[4] ? in[2].v[c] : 0);
        for (int i = 0; i < count && row->op == &td__op_batch_norm_relu; i++)
            out->v[X(i)] = fmax(out->v[X(i)] + (p[6] ? in[5].v[X(i)] : 0), 0);
#undef X
    }
}

/* ---- dropout: p = rows, per row, percent, samples (0: default numbers) -------------------------------------------------------------------- */

static int64_t dropout_id(int i)
{
    return 17 * i * i + 3;
}

static size_t dropout_inputs(const ops_row *row, td_dtype t, td_tensor **in)
{
    in[0] = ops_fill(TD_SHAPE(row->p[0], row->p[1]), t, 10);
    return 1;
}

static td_tensor *dropout_apply(td_tensor *const *in, size_t n, void *user)
{
    (void)n;
    const int *p = ((const ops_row *)user)->p;
    int64_t ids[16];
    for (int i = 0; i < p[3]; i++)
        ids[i] = dropout_id(i);
    td_samples(p[3] ? td_from(ids, TD_SHAPE(p[3]), TD_I64) : NULL);      /* the call's index is 0 again                               */
    td_tensor *y = td_dropout(in[0], p[2] / 100.0, true);
    td_samples(NULL);
    return y;
}

/* the layout of tensor/cpu/dropout.c, from the scalar generator */
static void dropout_reference(const ops_row *row, const ops_array *in, size_t n, ops_array *out)
{
    (void)n;
    const int *p = row->p, samples = p[3] ? p[3] : p[0];
    const double rate = p[2] / 100.0;
    ops_out(out, TD_SHAPE(p[0], p[1]));
    td_philox k = td__philox(td_seed_get(), (uint64_t)td_step_get(), UINT64_C(0x64726f70) << 32);
    for (int64_t i = 0; i < out->n; i++) {
        int64_t size = out->n / samples, s = i / size, at = i % size, id = p[3] ? dropout_id((int)s) : s;
        td_philox bits = td__philox(k.v[0] | (uint64_t)k.v[1] << 32, (uint64_t)id, (uint64_t)(at / 64 * 16 + at % 16));
        out->v[i] = bits.v[at / 16 % 4] >= rate * 4294967296.0 ? in[0].v[i] / (1 - rate) : 0;
    }
}

#define CONV(text, g, ...) \
    { .op = &td__op_conv2d, .name = "conv2d: " text, .dtypes = OPS_F, .inputs = conv_inputs, .apply = conv_apply, .reference = conv_reference, \
      .abs = 4, .rel = 1, .grad = g, .p = { __VA_ARGS__ } }
#define TRANSPOSE(text, g, ...) \
    { .op = &td__op_conv_transpose2d, .name = "conv_transpose2d: " text, .dtypes = OPS_F, .inputs = transpose_inputs, .apply = transpose_apply, \
      .reference = transpose_reference, .abs = 4, .rel = 1, .grad = g, .p = { __VA_ARGS__ } }
#define ADAPTIVE(kind, text, ...) \
    { .op = &td__op_adaptive_##kind##_pool2d, .name = "adaptive_" #kind "_pool2d: " text, .dtypes = OPS_F, .inputs = adaptive_inputs, \
      .apply = adaptive_apply, .reference = adaptive_reference, .abs = 1, .rel = 1, .grad = 1, .p = { __VA_ARGS__ } }
#define POOL(kind, text, ...) \
    { .op = &td__op_##kind##_pool2d, .name = #kind "_pool2d: " text, .dtypes = OPS_F, .inputs = pool_inputs, .apply = pool_apply, \
      .reference = pool_reference, .abs = 1, .rel = 1, .grad = 1, .p = { __VA_ARGS__ } }
#define NORM(text, g, ...) \
    { .op = &td__op_batch_norm, .name = "batch_norm: " text, .dtypes = OPS_F, .inputs = norm_inputs, .apply = norm_apply, .reference = norm_reference, \
      .abs = 8, .rel = 2, .grad = g, .p = { __VA_ARGS__ } }
#define NORM_RELU(text, g, ...) \
    { .op = &td__op_batch_norm_relu, .name = "batch_norm_relu: " text, .dtypes = OPS_F, .inputs = norm_inputs, .apply = norm_apply, \
      .reference = norm_reference, .abs = 10, .rel = 3, .grad = g, .p = { __VA_ARGS__ } }
#define DROPOUT(text, ...) \
    { .op = &td__op_dropout, .name = "dropout: " text, .dtypes = OPS_F, .inputs = dropout_inputs, .apply = dropout_apply, \
      .reference = dropout_reference, .abs = 0, .rel = 2, .grad = 1, .p = { __VA_ARGS__ } }

const ops_row ops_rows_images[] = {
    CONV("3x3, padded", 7, 2, 3, 7, 5, 4, 3, 3, 1, 1, 0, 1, 1),
    CONV("no bias, no padding", 3, 1, 2, 5, 6, 3, 3, 2, 1, 0, 0, 1, 1),
    CONV("stride 2", 7, 2, 2, 7, 8, 3, 3, 3, 2, 1, 0, 1, 1),
    CONV("stride 3, window 2", 7, 1, 2, 8, 7, 3, 2, 2, 3, 0, 0, 1, 1),
    CONV("1x1", 7, 2, 5, 3, 3, 3, 1, 1, 1, 0, 0, 1, 1),
    CONV("window as large as the image", 7, 3, 2, 5, 3, 2, 5, 3, 1, 0, 0, 1, 1),
    CONV("padding wider than the window", 7, 1, 1, 2, 2, 2, 2, 2, 1, 3, 0, 1, 1),
    CONV("one element", 7, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1),
    CONV("transposed input", 7, 2, 2, 6, 5, 3, 3, 3, 1, 1, 1, 1, 1),
    CONV("no rows", 7, 0, 2, 5, 5, 3, 3, 3, 1, 1, 0, 1, 1),
    CONV("dilation 2", 7, 2, 2, 7, 6, 3, 3, 2, 1, 2, 0, 2, 1),
    CONV("dilation 3, stride 2", 3, 1, 2, 9, 8, 2, 3, 3, 2, 3, 0, 3, 1),
    CONV("2 groups", 7, 2, 4, 5, 6, 6, 3, 3, 1, 1, 0, 1, 2),
    CONV("depthwise", 7, 2, 3, 6, 5, 3, 3, 3, 1, 1, 0, 1, 3),
    CONV("depthwise with a multiplier, stride 2", 7, 1, 3, 7, 6, 6, 3, 3, 2, 1, 0, 1, 3),
    CONV("3 groups, dilation 2, transposed input", 3, 2, 6, 8, 7, 3, 3, 2, 1, 1, 1, 2, 3),
    CONV("no rows, groups", 7, 0, 4, 5, 5, 4, 3, 3, 1, 1, 0, 2, 2),
    TRANSPOSE("3x3", 7, 2, 3, 4, 5, 2, 3, 3, 1, 0, 0, 1, 1),
    TRANSPOSE("stride 2, padded", 7, 2, 2, 4, 3, 3, 3, 3, 2, 1, 0, 1, 1),
    TRANSPOSE("stride 2, output padding", 7, 1, 3, 3, 4, 2, 3, 3, 2, 1, 1, 1, 1),
    TRANSPOSE("stride 3, window 2: pixels that nothing reaches", 7, 1, 2, 3, 3, 2, 2, 2, 3, 0, 2, 1, 1),
    TRANSPOSE("dilation 2, output padding beyond the stride, no bias", 3, 2, 2, 3, 4, 3, 2, 3, 1, 1, 1, 2, 1),
    TRANSPOSE("2 groups", 7, 2, 4, 3, 4, 6, 3, 3, 2, 1, 1, 1, 2),
    TRANSPOSE("depthwise, dilation 2, stride 2", 7, 1, 3, 4, 3, 3, 3, 3, 2, 2, 0, 2, 3),
    TRANSPOSE("no rows", 7, 0, 2, 3, 3, 2, 3, 3, 2, 1, 0, 1, 1),
    ADAPTIVE(max, "to 1x1", 2, 3, 7, 9, 1, 1, 0),
    ADAPTIVE(max, "overlapping", 2, 2, 7, 8, 3, 5, 0),
    ADAPTIVE(max, "larger than the image", 1, 2, 3, 4, 5, 4, 0),
    ADAPTIVE(max, "transposed input", 1, 2, 8, 5, 2, 2, 1),
    ADAPTIVE(max, "no rows", 0, 2, 4, 4, 2, 3, 0),
    ADAPTIVE(avg, "to 1x1", 2, 3, 7, 9, 1, 1, 0),
    ADAPTIVE(avg, "whole rows, overlapping", 2, 2, 9, 5, 4, 1, 0),
    ADAPTIVE(avg, "overlapping", 2, 2, 7, 8, 3, 5, 0),
    ADAPTIVE(avg, "larger than the image", 1, 2, 3, 4, 5, 6, 0),
    ADAPTIVE(avg, "transposed input", 1, 2, 8, 5, 2, 2, 1),
    ADAPTIVE(avg, "no rows", 0, 2, 4, 4, 2, 3, 0),
    POOL(max, "2, stride 2", 2, 3, 7, 9, 2, 2, 0, 0),
    POOL(max, "2, rows too short for vectors", 1, 2, 4, 5, 2, 2, 0, 0),
    POOL(max, "3, stride 2, padded", 2, 1, 7, 8, 3, 2, 1, 0),
    POOL(max, "overlapping", 1, 2, 5, 5, 3, 1, 0, 0),
    POOL(max, "gaps between windows", 1, 1, 7, 8, 2, 3, 0, 0),
    POOL(max, "transposed input", 1, 2, 8, 9, 2, 2, 0, 1),
    POOL(max, "no rows", 0, 2, 4, 4, 2, 2, 0, 0),
    POOL(avg, "2, stride 2", 2, 3, 7, 9, 2, 2, 0, 0),
    POOL(avg, "3, stride 2, padding counts", 2, 1, 7, 8, 3, 2, 1, 0),
    POOL(avg, "overlapping, transposed input", 1, 2, 5, 4, 3, 1, 1, 1),
    POOL(avg, "no rows", 0, 2, 4, 4, 2, 2, 0, 0),
    NORM("train, images", 7, 3, 5, 6, 1, 1, 1),
    NORM("train, rows of features", 7, 7, 3, 0, 1, 1, 0),
    NORM("train, neither weight nor bias", 1, 2, 19, 2, 1, 0, 0),
    NORM("eval, images", 7, 2, 3, 4, 0, 1, 1),
    NORM("eval, one value per channel", 7, 1, 3, 0, 0, 1, 1),
    NORM("eval, neither weight nor bias", 1, 3, 2, 0, 0, 0, 1),
    NORM("no rows", 7, 0, 3, 4, 1, 1, 1),
    NORM("train, wide images", 0, 5, 40, 18, 1, 1, 1),         /* so many that finite differences of each would take minutes on the emulated device */
    NORM("train, many channels", 1, 2, 40, 4, 1, 1, 1),
    NORM_RELU("train, images", 7, 3, 5, 6, 1, 1, 1, 0),
    NORM_RELU("train, something added", 39, 3, 5, 6, 1, 1, 1, 1),
    NORM_RELU("train, rows of features", 39, 7, 3, 0, 1, 1, 0, 1),
    NORM_RELU("train, neither weight nor bias", 1, 2, 19, 2, 1, 0, 0, 0),
    NORM_RELU("train, wide images, something added", 0, 5, 40, 18, 1, 1, 1, 1),
    NORM_RELU("train, many channels, something added", 32, 2, 40, 4, 1, 1, 1, 1),
    NORM_RELU("eval, images", 7, 2, 3, 4, 0, 1, 1, 0),
    NORM_RELU("eval, something added", 39, 2, 3, 4, 0, 1, 1, 1),
    NORM_RELU("no rows", 39, 0, 3, 4, 1, 1, 1, 1),
    DROPOUT("half, default samples", 5, 37, 50, 0),
    DROPOUT("samples of three rows", 6, 41, 30, 2),
    DROPOUT("p is 0", 3, 7, 0, 3),
    DROPOUT("no rows", 0, 7, 50, 0),
    { .op = NULL },
};
