/* tests/tensor/test_conv_kernels.c: conv2d and its gradients against the definition in double precision, on odd shapes, in every table.
 */
#include "image_kernels.h"

static void reference(td_dtype t, const td_conv2d_shape *s, const void *x, const void *w, const void *bias, const void *gout, double *out, double *gx,
                      double *gw, double *gb)
{
    const int64_t cg = s->c / s->groups, og = s->o / s->groups;
    for (int64_t n = 0; n < s->n; n++)
        for (int64_t o = 0; o < s->o; o++)
            for (int64_t a = 0; a < s->oh; a++)
                for (int64_t b = 0; b < s->ow; b++) {
                    int64_t at = ((n * s->o + o) * s->oh + a) * s->ow + b;
                    double g = get(t, gout, at), sum = bias ? get(t, bias, o) : 0;
                    gb[o] += g;
                    for (int64_t c = 0; c < cg; c++)
                        for (int64_t i = 0; i < s->kh; i++)
                            for (int64_t j = 0; j < s->kw; j++) {
                                int64_t h = a * s->stride + i * s->dilation - s->padding, v = b * s->stride + j * s->dilation - s->padding;
                                if (h < 0 || h >= s->h || v < 0 || v >= s->w)
                                    continue;
                                int64_t xi = ((n * s->c + o / og * cg + c) * s->h + h) * s->w + v, wi = ((o * cg + c) * s->kh + i) * s->kw + j;
                                sum += get(t, x, xi) * get(t, w, wi);
                                gx[xi] += g * get(t, w, wi);
                                gw[wi] += g * get(t, x, xi);
                            }
                    out[at] = sum;
                }
}

/* Half of what was added to itself, and half of x + bias + x: the halves of sums are exact. */
static void halve(td_dtype t, void *p, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        put(t, p, i, get(t, p, i) / 2);
}

/* `more`: rows and columns of x that no window reaches, as a transposed convolution's output padding makes them */
static void check(td_dtype t, int64_t n, int64_t c, int64_t h, int64_t w, int64_t o, int64_t kh, int64_t kw, int stride, int padding,
                  int dilation, int groups, int more)
{
    td_conv2d_shape s = { .n = n, .c = c, .h = h, .w = w, .o = o, .kh = kh, .kw = kw, .stride = stride, .padding = padding,
                          .dilation = dilation, .groups = groups };
    s.oh = (h - more + 2 * padding - dilation * (kh - 1) - 1) / stride + 1;
    s.ow = (w - more + 2 * padding - dilation * (kw - 1) - 1) / stride + 1;
    int64_t nx = n * c * h * w, nw = o * c / groups * kh * kw, ny = n * o * s.oh * s.ow;
    void *x = numbers(t, nx, 1), *wt = numbers(t, nw, 2), *bias = numbers(t, o, 3), *gout = numbers(t, ny, 4), *shift = numbers(t, c, 5);
    double *ref[6] = { zeroes(ny), zeroes(nx), zeroes(nw), zeroes(o), zeroes(ny), zeroes(nx) };
    char what[200];
    reference(t, &s, x, wt, bias, gout, ref[0], ref[1], ref[2], ref[3]);
    for (int64_t i = 0; i < ny; i++)
        ref[4][i] = ref[0][i] - get(t, bias, i / (s.oh * s.ow) % o);
    for (int64_t i = 0; i < nx; i++)
        ref[5][i] = ref[1][i] + get(t, shift, i / (h * w) % c);
    double terms = (double)(c / groups * kh * kw), grad_terms = (double)(o / groups * kh * kw), pixels = (double)(n * s.oh * s.ow);
    EACH_TABLE(k) {
        void *y = array(t, ny), *gx = array(t, nx), *gw = array(t, nw), *gb = array(t, o);
#define SAY(name) (snprintf(what, sizeof what, name " x(%d,%d,%d,%d) w(%d,%d,%d) s%d p%d d%d g%d", (int)n, (int)c, (int)h, (int)w, (int)o, (int)kh, \
                            (int)kw, stride, padding, dilation, groups), what)
        k->conv2d(t, &s, y, x, wt, bias, false);
        same(t, y, ref[0], ny, 2 + terms, SAY("conv2d"), k->name);
        k->conv2d(t, &s, y, x, wt, NULL, false);
        same(t, y, ref[4], ny, 2 + terms, SAY("conv2d without bias"), k->name);
        k->conv2d(t, &s, y, x, wt, NULL, true);
        halve(t, y, ny);
        same(t, y, ref[4], ny, 3 + terms, SAY("conv2d added"), k->name);
        k->conv2d_grad_x(t, &s, gx, gout, wt, shift, false);
        same(t, gx, ref[5], nx, 3 + grad_terms, SAY("conv2d_grad_x with bias"), k->name);
        k->conv2d_grad_x(t, &s, gx, gout, wt, NULL, false);
        same(t, gx, ref[1], nx, 2 + grad_terms, SAY("conv2d_grad_x"), k->name);
        k->conv2d_grad_w(t, &s, gw, gb, gout, x, false, false);
        same(t, gw, ref[2], nw, 2 + pixels, SAY("conv2d_grad_w"), k->name);
        same(t, gb, ref[3], o, 2, SAY("conv2d_grad_w bias"), k->name);
        /* added: twice the gradient; each destination on its own */
        k->conv2d_grad_x(t, &s, gx, gout, wt, NULL, true);
        k->conv2d_grad_w(t, &s, gw, NULL, gout, x, true, false);
        k->conv2d_grad_w(t, &s, NULL, gb, gout, NULL, false, true);
        halve(t, gx, nx);
        halve(t, gw, nw);
        halve(t, gb, o);
        same(t, gx, ref[1], nx, 3 + grad_terms, SAY("conv2d_grad_x added"), k->name);
        same(t, gw, ref[2], nw, 3 + pixels, SAY("conv2d_grad_w added"), k->name);
        same(t, gb, ref[3], o, 3, SAY("conv2d_grad_w bias added"), k->name);
        free(y), free(gx), free(gw), free(gb);
    }
    for (int i = 0; i < 6; i++)
        free(ref[i]);
    free(x), free(wt), free(bias), free(gout), free(shift);
}

static void shapes(void **state)
{
    (void)state;
    static const int shape[][9] = {   /* n c h w  o kh kw  stride padding */
        { 1, 1, 1, 1, 1, 1, 1, 1, 0 },     { 2, 1, 28, 28, 32, 3, 3, 1, 1 },  { 2, 5, 14, 14, 7, 3, 3, 1, 1 },  { 3, 2, 7, 11, 3, 3, 3, 2, 1 },
        { 1, 3, 13, 5, 17, 5, 3, 1, 2 },   { 2, 3, 9, 9, 5, 1, 1, 1, 0 },     { 2, 3, 9, 8, 5, 1, 1, 2, 0 },    { 1, 2, 11, 13, 9, 2, 2, 3, 0 },
        { 2, 1, 5, 5, 2, 5, 5, 1, 0 },     { 1, 4, 6, 7, 33, 4, 2, 2, 2 },    { 1, 1, 3, 3, 1, 3, 3, 1, 2 },    { 1, 2, 2, 3, 2, 2, 3, 3, 0 },
        { 2, 3, 17, 19, 4, 7, 7, 2, 3 },   { 1, 2, 5, 6, 3, 2, 2, 1, 3 },     { 3, 17, 4, 4, 13, 3, 3, 1, 1 },  { 1, 1, 40, 601, 2, 3, 3, 1, 1 },
        { 1, 2, 61, 47, 5, 3, 3, 3, 2 },   { 1, 1, 1, 37, 3, 1, 5, 1, 0 },    { 1, 1, 29, 1, 3, 3, 1, 2, 0 },   { 2, 2, 5, 5, 2, 1, 2, 3, 1 },
        { 5, 3, 6, 6, 65, 3, 3, 1, 0 },    { 2, 2, 8, 8, 3, 3, 3, 4, 1 },
    };
    for (size_t i = 0; i < TD_COUNT(shape); i++) {
        const int *p = shape[i];
        check(TD_F32, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], 1, 1, 0);
        check(TD_F64, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], 1, 1, 0);
    }
    nothing_left();
}

/* Groups of every width of tile, depthwise with and without a multiplier, dilation with every remainder of the stride, and both. */
static void groups_and_dilation(void **state)
{
    (void)state;
    static const int shape[][12] = {   /* n c h w  o kh kw  stride padding dilation groups more */
        { 2, 6, 7, 9, 6, 3, 3, 1, 1, 1, 6, 0 },     { 2, 5, 28, 28, 5, 3, 3, 1, 1, 1, 5, 0 },    { 1, 3, 9, 8, 6, 3, 3, 2, 1, 1, 3, 0 },
        { 2, 4, 11, 13, 12, 5, 5, 1, 2, 1, 4, 0 },  { 1, 4, 10, 7, 16, 3, 3, 1, 0, 1, 4, 0 },    { 2, 4, 6, 6, 20, 3, 3, 1, 1, 1, 4, 0 },
        { 1, 6, 7, 7, 14, 3, 3, 1, 1, 1, 2, 0 },    { 1, 4, 9, 9, 34, 3, 2, 1, 1, 1, 2, 0 },     { 1, 12, 8, 9, 36, 1, 1, 1, 0, 1, 2, 0 },
        { 2, 6, 5, 4, 4, 1, 1, 1, 0, 1, 2, 0 },     { 3, 6, 13, 12, 8, 3, 3, 3, 2, 1, 2, 0 },    { 1, 2, 4, 4, 2, 4, 4, 1, 0, 1, 2, 0 },
        { 2, 3, 12, 13, 4, 3, 3, 1, 2, 2, 1, 0 },   { 1, 2, 15, 9, 3, 3, 2, 1, 0, 3, 1, 0 },     { 2, 2, 13, 14, 5, 3, 3, 2, 2, 2, 1, 0 },
        { 1, 3, 17, 16, 3, 3, 3, 2, 3, 3, 1, 0 },   { 1, 2, 14, 17, 9, 2, 3, 3, 1, 2, 1, 0 },    { 1, 1, 16, 16, 1, 2, 2, 4, 0, 6, 1, 0 },
        { 1, 2, 12, 11, 2, 3, 3, 3, 3, 3, 1, 0 },   { 2, 4, 14, 11, 8, 3, 3, 1, 2, 2, 4, 0 },    { 2, 4, 15, 12, 4, 3, 3, 2, 2, 2, 4, 0 },
        { 1, 6, 16, 13, 9, 3, 3, 2, 4, 3, 3, 0 },   { 1, 3, 5, 5, 3, 1, 3, 1, 5, 4, 3, 0 },      { 2, 4, 21, 70, 4, 3, 3, 1, 1, 1, 4, 0 },
        { 1, 8, 9, 9, 4, 3, 3, 1, 1, 1, 4, 0 },     { 1, 6, 33, 33, 33, 3, 3, 1, 1, 1, 3, 0 },
        /* with rows and columns that no window reaches */
        { 2, 3, 10, 12, 4, 3, 3, 2, 1, 1, 1, 1 },   { 1, 2, 9, 11, 2, 2, 2, 3, 0, 1, 2, 2 },     { 1, 4, 12, 9, 6, 2, 2, 2, 1, 3, 2, 2 },
        { 1, 2, 9, 9, 3, 1, 1, 1, 0, 2, 1, 1 },
    };
    for (size_t i = 0; i < TD_COUNT(shape); i++) {
        const int *p = shape[i];
        check(TD_F32, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11]);
        check(TD_F64, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11]);
    }
    nothing_left();
}

/* By tiles, cut off at every side, with blocks of channels that are not full, and in several chunks; the last two with weights so large that they are made in
 * pieces. Run once more with TANDEM_CONV=direct. */
static void tiles(void **state)
{
    (void)state;
    static const int shape[][6] = {   /* n c h w o padding */
        { 2, 16, 8, 8, 16, 1 },   { 1, 16, 9, 13, 35, 0 },  { 3, 37, 3, 3, 18, 1 },   { 2, 20, 5, 4, 33, 2 },  { 1, 16, 1, 9, 17, 2 },
        { 7, 64, 4, 4, 48, 1 },   { 3, 130, 7, 7, 70, 1 },  { 1, 32, 61, 30, 16, 1 }, { 9, 24, 6, 10, 40, 0 }, { 70, 16, 4, 5, 16, 1 },
        { 2, 200, 6, 9, 150, 2 }, { 160, 150, 3, 3, 200, 1 },
    };
    for (size_t i = 0; i < TD_COUNT(shape); i++) {
        const int *p = shape[i];
        check(TD_F32, p[0], p[1], p[2], p[3], p[4], 3, 3, 1, p[5], 1, 1, 0);
    }
    nothing_left();
}

/* By blocks of channels: every stride and phase, windows of one element and of even size, full and not quite full blocks, pieces of several images and several
 * pieces of one, rows that no window reaches. */
static void blocks(void **state)
{
    (void)state;
    static const int shape[][11] = {   /* n c h w  o kh kw  stride padding dilation more */
        { 2, 16, 9, 9, 32, 3, 3, 2, 1, 1, 0 },    { 2, 32, 14, 14, 64, 1, 1, 2, 0, 1, 0 },  { 1, 64, 28, 28, 64, 1, 1, 1, 0, 1, 0 },
        { 3, 30, 7, 11, 60, 3, 3, 2, 1, 1, 0 },   { 2, 32, 5, 6, 30, 5, 5, 1, 2, 1, 0 },    { 1, 64, 15, 14, 96, 3, 3, 3, 0, 1, 0 },
        { 2, 48, 4, 4, 32, 2, 2, 2, 0, 1, 0 },    { 9, 16, 3, 3, 32, 3, 3, 1, 1, 2, 0 },    { 1, 16, 25, 25, 32, 7, 7, 2, 3, 1, 0 },
        { 1, 32, 31, 17, 32, 3, 2, 2, 2, 2, 0 },  { 5, 128, 7, 7, 64, 3, 3, 2, 1, 1, 0 },   { 2, 16, 6, 6, 32, 1, 1, 3, 1, 1, 0 },
        { 70, 16, 2, 2, 32, 1, 1, 1, 0, 1, 0 },   { 3, 16, 2, 2, 32, 3, 3, 1, 1, 1, 0 },    { 2, 16, 10, 12, 32, 3, 3, 2, 1, 1, 1 },
        { 1, 32, 13, 1, 32, 1, 9, 1, 4, 1, 0 },
    };
    for (size_t i = 0; i < TD_COUNT(shape); i++) {
        const int *p = shape[i];
        check(TD_F32, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], 1, p[10]);
    }
    nothing_left();
}

/* The forward, the gradient of x or that of w, from x, w and the output's gradient */
static void any_of(const td_kernels *k, td_dtype t, const td_conv2d_shape *s, int which, void *to, void *const *from)
{
    if (which == 0)
        k->conv2d(t, s, to, from[0], from[1], NULL, false);
    else if (which == 1)
        k->conv2d_grad_x(t, s, to, from[2], from[1], NULL, false);
    else
        k->conv2d_grad_w(t, s, to, NULL, from[2], from[0], false, false);
}

/* What the saved products cost: root mean square of the errors against double, over that of the results, at most 2.5 roundings of f32, which sums of
 * this many terms also make one by one. docs/design/conv.md names the figures; TANDEM_TEST_SHOW=1 prints them. */
static void tiles_error(void **state)
{
    (void)state;
    static const int shape[][3] = { { 64, 28, 64 }, { 128, 14, 128 }, { 256, 7, 64 }, { 256, 4, 64 } };   /* c h o */
    for (size_t i = 0; i < TD_COUNT(shape); i++) {
        const int64_t c = shape[i][0], h = shape[i][1], o = shape[i][2], nx = 2 * c * h * h, nw = o * c * 9, ny = 2 * o * h * h;
        td_conv2d_shape s = { .n = 2, .c = c, .h = h, .w = h, .o = o, .kh = 3, .kw = 3, .oh = h, .ow = h, .stride = 1, .padding = 1, .dilation = 1, .groups = 1 };
        void *in[3] = { numbers(TD_F32, nx, 1), numbers(TD_F32, nw, 2), numbers(TD_F32, ny, 4) }, *wide[3];
        int64_t size[3] = { ny, nx, nw }, from[3] = { nx, nw, ny };
        for (int j = 0; j < 3; j++) {
            wide[j] = array(TD_F64, from[j]);
            for (int64_t at = 0; at < from[j]; at++)
                put(TD_F64, wide[j], at, get(TD_F32, in[j], at));
        }
        const td_kernels *best = tables()[0];
        EACH_TABLE(k)
            best = k;
        for (int j = 0; j < 3; j++) {
            float *got = array(TD_F32, size[j]);
            double *want = array(TD_F64, size[j]);
            any_of(best, TD_F64, &s, j, want, wide);
            EACH_TABLE(k) {
                double wrong = 0, all = 0;
                any_of(k, TD_F32, &s, j, got, in);
                for (int64_t at = 0; at < size[j]; at++)
                    wrong += ((double)got[at] - want[at]) * ((double)got[at] - want[at]), all += want[at] * want[at];
                const double error = sqrt(wrong / all);
                if (getenv("TANDEM_TEST_SHOW"))
                    printf("%s %s of %dx%dx%d, %d outputs: %.2g\n", k->name, j == 0 ? "out" : j == 1 ? "gradient of x" : "gradient of w", (int)c, (int)h,
                           (int)h, (int)o, error);
                if (!(error < 2.5e-6))
                    fail_msg("%s: error %g in %d of shape %d", k->name, error, j, (int)i);
            }
            free(got), free(want);
        }
        for (int j = 0; j < 3; j++)
            free(in[j]), free(wide[j]);
    }
    nothing_left();
}

/* Only the terms of a sum are multiplied: an infinity at a corner of x reaches the one weight that meets it, in both ways of summing. */
static void infinite_corner(void **state)
{
    (void)state;
    for (int groups = 1; groups <= 2; groups++)
        for (td_dtype t = TD_F32; t <= TD_F64; t++) {
            td_conv2d_shape s = { .n = 1, .c = 2, .h = 7, .w = 9, .o = 2, .kh = 3, .kw = 3, .oh = 5, .ow = 7, .stride = 1, .dilation = 1,
                                  .groups = groups };
            void *x = numbers(t, 126, 1), *g = numbers(t, 70, 2), *gw = array(t, 36);
            for (int i = 0; i < 70; i++)     /* no zero, which would make a NaN of the one */
                put(t, g, i, fabs(get(t, g, i)) + 1);
            put(t, x, 62, INFINITY);         /* the last pixel of channel 0: element (2,2) of its kernels */
            EACH_TABLE(k) {
                k->conv2d_grad_w(t, &s, gw, NULL, g, x, false, false);
                for (int i = 0; i < 36 / groups; i++)
                    assert_int_equal(isfinite(get(t, gw, i)) != 0, !(i % (18 / groups) == 8 && (groups == 1 || i < 9)));
            }
            free(x), free(g), free(gw);
        }
    nothing_left();
}

static void no_rows(void **state)
{
    (void)state;
    td_conv2d_shape s = { .n = 0, .c = 2, .h = 5, .w = 5, .o = 3, .kh = 3, .kw = 3, .oh = 3, .ow = 3, .stride = 1, .dilation = 1, .groups = 1 };
    EACH_TABLE(k) {
        float gw[54], gb[3], none[1] = { 7 };
        for (int i = 0; i < 54; i++)
            gw[i] = 5;
        gb[0] = gb[1] = gb[2] = 5;
        k->conv2d(TD_F32, &s, none, none, gw, gb, false);
        k->conv2d_grad_x(TD_F32, &s, none, none, gw, gb, false);
        assert_true(none[0] == 7);
        k->conv2d_grad_w(TD_F32, &s, gw, gb, none, none, true, true);
        assert_true(gw[0] == 5 && gb[2] == 5);
        k->conv2d_grad_w(TD_F32, &s, gw, gb, none, none, false, false);
        for (int i = 0; i < 54; i++)
            assert_true(gw[i] == 0);
        assert_true(gb[0] == 0 && gb[1] == 0 && gb[2] == 0);
    }
    nothing_left();
}

/* Bit for bit the same on 1, 3 and 8 threads, and an image's result does not depend on its batch. */
static void threads_of(int64_t c, int64_t o, int groups, int stride, int dilation)
{
    int before = omp_get_max_threads();
    td_conv2d_shape s = { .n = 23, .c = c, .h = 14, .w = 14, .o = o, .kh = 3, .kw = 3, .oh = 13 / stride + 1, .ow = 13 / stride + 1, .stride = stride,
                          .padding = dilation, .dilation = dilation, .groups = groups };
    int64_t nx = s.n * s.c * s.h * s.w, nw = s.o * s.c / groups * 9, ny = s.n * s.o * s.oh * s.ow;
    for (td_dtype t = TD_F32; t <= (c < 100 ? TD_F64 : TD_F32); t++) {
        void *x = numbers(t, nx, 1), *w = numbers(t, nw, 2), *b = numbers(t, s.o, 3), *g = numbers(t, ny, 4);
        EACH_TABLE(k) {
            void *got[3][4];
            for (int i = 0; i < 3; i++) {
                omp_set_num_threads((int[]){ 1, 3, 8 }[i]);
                got[i][0] = array(t, ny), got[i][1] = array(t, nx), got[i][2] = array(t, nw), got[i][3] = array(t, s.o);
                k->conv2d(t, &s, got[i][0], x, w, b, false);
                k->conv2d_grad_x(t, &s, got[i][1], g, w, NULL, false);
                k->conv2d_grad_w(t, &s, got[i][2], got[i][3], g, x, false, false);
            }
            for (int i = 1; i < 3; i++) {
                assert_memory_equal(got[0][0], got[i][0], size_of(t) * (size_t)ny);
                assert_memory_equal(got[0][1], got[i][1], size_of(t) * (size_t)nx);
                assert_memory_equal(got[0][2], got[i][2], size_of(t) * (size_t)nw);
                assert_memory_equal(got[0][3], got[i][3], size_of(t) * (size_t)s.o);
            }
            td_conv2d_shape one = s;
            one.n = 1;
            int64_t at = 5, from = at * s.c * s.h * s.w, to = at * s.o * s.oh * s.ow;
            void *alone = array(t, s.o * s.oh * s.ow);
            k->conv2d(t, &one, alone, (char *)x + size_of(t) * (size_t)from, w, b, false);
            assert_memory_equal(alone, (char *)got[0][0] + size_of(t) * (size_t)to, size_of(t) * (size_t)(s.o * s.oh * s.ow));
            free(alone);
            alone = array(t, s.c * s.h * s.w);
            k->conv2d_grad_x(t, &one, alone, (char *)g + size_of(t) * (size_t)to, w, NULL, false);
            assert_memory_equal(alone, (char *)got[0][1] + size_of(t) * (size_t)from, size_of(t) * (size_t)(s.c * s.h * s.w));
            free(alone);
            for (int i = 0; i < 3; i++)
                for (int j = 0; j < 4; j++)
                    free(got[i][j]);
        }
        free(x), free(w), free(b), free(g);
    }
    omp_set_num_threads(before);
    nothing_left();
}

static void threads(void **state)
{
    (void)state;
    threads_of(7, 21, 1, 1, 1);
    threads_of(8, 40, 2, 1, 1);
    threads_of(18, 18, 18, 1, 2);
    threads_of(20, 37, 1, 1, 1);     /* by tiles                                                                               */
    threads_of(150, 200, 1, 1, 1);   /* by tiles, in strips of channels: fewer than 8, where vectors are widest               */
    threads_of(32, 64, 1, 2, 1);     /* by blocks                                                                              */
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(shapes), cmocka_unit_test(groups_and_dilation), cmocka_unit_test(tiles),
                                        cmocka_unit_test(tiles_error), cmocka_unit_test(blocks),
                                        cmocka_unit_test(infinite_corner),
                                        cmocka_unit_test(no_rows), cmocka_unit_test(threads) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
