/* tensor/cpu/conv2d.c: 2-d convolution (cross-correlation) and its two gradients. In f32 and one group, many channels go to conv2d_winograd.c or
 * conv2d_blocks.c, whose lanes are channels. Everything else is computed here as direct products without a column buffer, lanes along the pixels.
 *
 * The frame. An image's channels are copied into zero-padded planes, so that no inner loop meets a border. For stride s a plane is
 * cut into its s*s phases (rows and columns with the same remainder), in which neighbouring outputs read neighbouring inputs
 * again. Output (r, c) is the virtual position r*row + c of the frame; term k = (channel, kernel row, kernel column) of its sum
 * lies at that position plus off[k]. All virtual positions of an image are computed as one line; the few between the rows (row -
 * cols of them) are thrown away. With stride 1 the zeroes right of a row are the ones left of the next, which keeps them few.
 *
 * The gradient of x is the same product for each phase of x: gout in the frame, and the kernel's elements of that phase as terms.
 *
 * Groups are images of their own, with their own weights: (n,groups) are the items over which the loops run. A group with few output
 * channels takes narrower tiles, down to one channel (depthwise), and its weights' gradient sums along the pixels (conv2d_weight.h).
 *
 * A result does not depend on the number of threads, nor on the other images of the batch.
 */
#include "cpu.h"
#include <omp.h>

/* Products: a*b+c may be fused here (it is elsewhere off, for the sake of element-wise results equal in all builds). Predictive commoning would
 * keep loaded values of x for the next pixel, and push the accumulators out of their registers. */
#pragma GCC optimize("fp-contract=fast", "no-predictive-commoning")

/* Register tiles: M*Q + Q + 1 and A*B + B + 1 vectors must fit the registers (32 of 64 bytes, 16 of 32, 16 of 16 with a temporary).
 * Q4, Q2, Q1: vectors beside 4, 2 and 1 channels; A1: terms beside one vector of output channels. */
#if defined(__AVX512F__)
enum { CONV_BYTES = 64, CONV_M = 8, CONV_Q = 3, CONV_Q4 = 5, CONV_Q2 = 8, CONV_Q1 = 8, CONV_A = 12, CONV_B = 2, CONV_A1 = 24 };
#elif defined(__AVX2__)
enum { CONV_BYTES = 32, CONV_M = 4, CONV_Q = 3, CONV_Q4 = 3, CONV_Q2 = 4, CONV_Q1 = 8, CONV_A = 6, CONV_B = 2, CONV_A1 = 12 };
#else
enum { CONV_BYTES = 16, CONV_M = 4, CONV_Q = 2, CONV_Q4 = 2, CONV_Q2 = 3, CONV_Q1 = 6, CONV_A = 6, CONV_B = 2, CONV_A1 = 12 };
#endif
enum {
    CONV_Q_MOST = 8,                 /* of all Q                                                                              */
    CONV_K = 9,                      /* terms whose sums along the pixels are held together: a window of 3x3                  */
    CONV_L2 = 512 * 1024,            /* bytes that may be held in a core's second cache                                      */
    CONV_TILE_ROW = 512,             /* virtual positions computed before they are spread: the tile stays in the first cache  */
    CONV_PARALLEL = 1 << 18,         /* multiplications below which threads cost more than they give                         */
};

typedef struct {
    int64_t channels, h, w;          /* of the images                                                                        */
    int64_t step, top, left;         /* image row i lies in padded row i + top; phases of `step`                               */
    int64_t phases_h, phases_w;      /* phases that some term reads                                                          */
    int64_t row, phase, plane, size; /* elements: of a row, a phase, a channel, all                                            */
} conv_frame;

typedef struct {
    int64_t channels, terms;
    int m;                           /* channels of a register tile                                                             */
    int64_t *off, *w_at, w_channel;  /* per term: place in the frame, place in the weights; per channel: place in the weights    */
    int64_t base, row, rows, cols;   /* virtual positions base + r*row + c                                                     */
    int64_t chunk, tile_ld;          /* rows per tile, elements between a tile's channels                                      */
    int64_t out_h, out_w, out_step, out_top, out_left;   /* (r, c) is pixel (r*out_step + out_top, c*out_step + out_left)          */
} conv_pass;

static inline int64_t floor_div(int64_t a, int64_t b)
{
    return a >= 0 ? a / b : -((-a + b - 1) / b);
}

static inline int64_t ceil_div(int64_t a, int64_t b)
{
    return -floor_div(-a, b);
}

static inline int64_t round_up(int64_t a, int64_t b)
{
    return (a + b - 1) / b * b;
}

static inline int64_t larger(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int conv_max_threads(void)
{
    return omp_in_parallel() ? 1 : omp_get_max_threads();
}

static int conv_thread(void)
{
    return omp_get_thread_num();
}

static int conv_threads(int64_t n, const conv_pass *pass, int passes)
{
    int64_t work = 0;
    for (int i = 0; i < passes; i++)
        work += n * pass[i].channels * pass[i].terms * pass[i].rows * pass[i].cols;
    int most = work < CONV_PARALLEL ? 1 : conv_max_threads();
    return n < most ? (int)n : most;
}

/* The tile's channels; its rows, evenly cut, and room for the last vector's overrun. */
static void conv_chunks(conv_pass *p)
{
    p->m = p->channels > 4 || CONV_M == 4 ? CONV_M : 4;
    if (p->channels <= 2)
        p->m = p->channels == 2 ? 2 : 1;
    int64_t chunks = ceil_div(p->rows, larger(CONV_TILE_ROW / p->row, 1));
    p->chunk = ceil_div(p->rows, chunks);
    p->tile_ld = round_up(p->chunk * p->row, 16) + 16;
}

/* The frame of one group of x, and where each term of an output's sum lies in it. off: (c/groups)*kh*kw. */
static conv_frame conv_frame_x(const td_conv2d_shape *s, int64_t *off)
{
    const int64_t st = s->stride, p = s->padding, d = s->dilation, tall = d * (s->kh - 1) + 1, wide = d * (s->kw - 1) + 1;
    conv_frame f = { .channels = s->c / s->groups, .h = s->h, .w = s->w, .step = st, .top = p, .left = p };
    f.phases_h = st < tall ? st : tall;
    f.phases_w = st < wide ? st : wide;
    f.row = st == 1 ? s->w + p : ceil_div(s->w + 2 * p, st);
    f.phase = ceil_div(s->h + 2 * p, st) * f.row + (st == 1 ? p : 0);
    f.plane = f.phases_h * f.phases_w * f.phase;
    f.size = f.channels * f.plane;
    for (int64_t c = 0; c < f.channels; c++)
        for (int64_t i = 0; i < s->kh * d; i += d)
            for (int64_t j = 0; j < s->kw * d; j += d)
                *off++ = c * f.plane + (i % st * f.phases_w + j % st) * f.phase + i / st * f.row + j / st;
    return f;
}

#define T float
#define I int32_t
#define F(name) name##_f32
#include "conv2d_body.h"
#include "conv2d_weight.h"
#define T double
#define I int64_t
#define F(name) name##_f64
#include "conv2d_body.h"
#include "conv2d_weight.h"

static bool conv_empty(const td_conv2d_shape *s)
{
    return s->n <= 0 || s->o <= 0 || s->oh <= 0 || s->ow <= 0;
}

static int64_t conv_weights(const td_conv2d_shape *s)         /* of one group                                                    */
{
    return s->o / s->groups * (s->c / s->groups) * s->kh * s->kw;
}

void K(conv2d)(td_dtype t, const td_conv2d_shape *s, void *out, const void *x, const void *w, const void *bias, bool add)
{
    if (conv_empty(s))
        return;
    if (K(conv2d_by_tiles)(t, s)) {
        K(conv2d_tiles)(s, false, out, x, w, bias, add);
        return;
    }
    if (K(conv2d_by_blocks)(t, s)) {
        K(conv2d_blocks)(s, false, out, x, w, bias, add);
        return;
    }
    const int64_t terms = s->c / s->groups * s->kh * s->kw;
    int64_t *table = td__alloc(sizeof(int64_t) * (size_t)(2 * terms + 1));
    if (!table)
        return;
    conv_frame f = conv_frame_x(s, table);
    conv_pass pass = { .channels = s->o / s->groups, .terms = terms, .off = table, .w_at = table + terms, .w_channel = terms, .row = f.row,
                       .rows = s->oh, .cols = s->ow, .out_h = s->oh, .out_w = s->ow, .out_step = 1 };
    for (int64_t k = 0; k < terms; k++)
        pass.w_at[k] = k;
    conv_chunks(&pass);
    if (t == TD_F32)
        run_f32(s->n, s->groups, &f, &pass, 1, out, x, w, conv_weights(s), bias, add);
    else
        run_f64(s->n, s->groups, &f, &pass, 1, out, x, w, conv_weights(s), bias, add);
    td__free(table);
}

/* What is left of a gradient of x when gout is empty. */
static void conv_no_gout(td_dtype t, const td_conv2d_shape *s, void *gx, const void *bias, bool add)
{
    const int64_t pixels = s->h * s->w;
    for (int64_t i = 0; i < s->n * s->c; i++)
        for (int64_t j = i * pixels; j < (i + 1) * pixels; j++)
            if (t == TD_F32)
                ((float *)gx)[j] = (add ? ((float *)gx)[j] : 0) + (bias ? ((const float *)bias)[i % s->c] : 0);
            else
                ((double *)gx)[j] = (add ? ((double *)gx)[j] : 0) + (bias ? ((const double *)bias)[i % s->c] : 0);
}

/* Pixel h of x, in padded row h + padding = a*stride + phase, gets gout[a - q] * w[i] for all i with dilation*i = q*stride + phase: a product
 * with stride 1 per phase. */
void K(conv2d_grad_x)(td_dtype t, const td_conv2d_shape *s, void *gx, const void *gout, const void *w, const void *bias, bool add)
{
    const int64_t st = s->stride, p = s->padding, d = s->dilation, cg = s->c / s->groups, og = s->o / s->groups;
    if (s->n <= 0 || s->c <= 0 || s->h <= 0 || s->w <= 0)
        return;
    if (conv_empty(s)) {
        conv_no_gout(t, s, gx, bias, add);
        return;
    }
    if (K(conv2d_by_tiles)(t, s)) {
        K(conv2d_tiles)(s, true, gx, gout, w, bias, add);
        return;
    }
    if (K(conv2d_by_blocks)(t, s)) {
        K(conv2d_blocks)(s, true, gx, gout, w, bias, add);
        return;
    }
    /* zeroes that the terms reach before the first and after the last row and column of gout */
    int64_t top = larger(0, (s->kh - 1) * d / st - p / st), bottom = larger(0, (p + s->h - 1) / st - (s->oh - 1));
    int64_t left = larger(0, (s->kw - 1) * d / st - p / st), right = larger(0, (p + s->w - 1) / st - (s->ow - 1));
    conv_frame f = { .channels = og, .h = s->oh, .w = s->ow, .step = 1, .top = top, .left = left, .phases_h = 1, .phases_w = 1 };
    f.row = s->ow + larger(left, right);
    f.phase = f.plane = (top + s->oh + bottom) * f.row + left + right;
    f.size = f.channels * f.plane;

    const int64_t terms = og * s->kh * s->kw;
    int64_t *table = td__alloc((size_t)(2 * terms + 1) * sizeof(int64_t) + (size_t)(st * st) * sizeof(conv_pass));
    if (!table)
        return;
    conv_pass *pass = (conv_pass *)(table + 2 * terms + 1);
    int passes = 0;
    for (int64_t i = 0, at = 0; i < st; i++)
        for (int64_t j = 0; j < st; j++) {
            int64_t a0 = ceil_div(p - i, st), a1 = floor_div(p + s->h - 1 - i, st);
            int64_t b0 = ceil_div(p - j, st), b1 = floor_div(p + s->w - 1 - j, st);
            if (a1 < a0 || b1 < b0)
                continue;
            conv_pass *q = &pass[passes++];
            *q = (conv_pass){ .channels = cg, .off = table + at, .w_at = table + terms + at, .w_channel = s->kh * s->kw,
                              .row = f.row, .base = a0 * f.row + b0, .rows = a1 - a0 + 1, .cols = b1 - b0 + 1, .out_h = s->h,
                              .out_w = s->w, .out_step = st, .out_top = a0 * st + i - p, .out_left = b0 * st + j - p };
            for (int64_t o = 0; o < og; o++)
                for (int64_t kh = 0; kh < s->kh; kh++)
                    for (int64_t kw = 0; kw < s->kw; kw++) {
                        if (kh * d % st != i || kw * d % st != j)
                            continue;
                        q->off[q->terms] = o * f.plane + (top - kh * d / st) * f.row + left - kw * d / st;
                        q->w_at[q->terms++] = (o * cg * s->kh + kh) * s->kw + kw;
                    }
            at += q->terms;
            conv_chunks(q);
        }
    if (t == TD_F32)
        run_f32(s->n, s->groups, &f, pass, passes, gx, gout, w, conv_weights(s), bias, add);
    else
        run_f64(s->n, s->groups, &f, pass, passes, gx, gout, w, conv_weights(s), bias, add);
    td__free(table);
}

static void grad_zero(td_dtype t, int64_t n, void *g, bool add)
{
    if (g && !add && n > 0)
        memset(g, 0, (t == TD_F32 ? sizeof(float) : sizeof(double)) * (size_t)n);
}

void K(conv2d_grad_w)(td_dtype t, const td_conv2d_shape *s, void *gw, void *gbias, const void *gout, const void *x, bool add_w, bool add_b)
{
    if (conv_empty(s)) {
        grad_zero(t, conv_weights(s) * s->groups, gw, add_w);
        grad_zero(t, s->o, gbias, add_b);
        return;
    }
    if (gw && K(conv2d_by_tiles)(t, s)) {
        K(conv2d_tiles_weights)(s, gw, gout, x, add_w);
    } else if (gw && K(conv2d_by_blocks)(t, s)) {
        K(conv2d_blocks_weights)(s, gw, gout, x, add_w);
    } else if (gw && conv_weights(s) > 0) {
        int64_t *off = td__alloc(sizeof(int64_t) * (size_t)(s->c / s->groups * s->kh * s->kw));
        if (!off)
            return;
        conv_frame f = conv_frame_x(s, off);
        if (t == TD_F32)
            grad_w_f32(s, &f, off, gw, gout, x, add_w);
        else
            grad_w_f64(s, &f, off, gw, gout, x, add_w);
        td__free(off);
    }
    if (gbias && t == TD_F32)
        run_bias_f32(s->n, s->o, s->oh * s->ow, gbias, gout, add_b);
    else if (gbias)
        run_bias_f64(s->n, s->o, s->oh * s->ow, gbias, gout, add_b);
}
