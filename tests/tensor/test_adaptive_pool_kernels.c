/* tests/tensor/test_adaptive_pool_kernels.c: adaptive pools against the definition in double precision, in every table: places, ties, NaN, and
 * the same bits on any number of threads; equal windows bit for bit.
 */
#include "image_kernels.h"

static td_conv2d_shape shape_of(int n, int c, int h, int w, int oh, int ow)
{
    return (td_conv2d_shape){ .n = n, .c = c, .h = h, .w = w, .o = c, .oh = oh, .ow = ow };
}

static void check(td_dtype t, td_conv2d_shape s)
{
    int64_t planes = s.n * s.c, in = s.h * s.w, out = s.oh * s.ow, nx = planes * in, ny = planes * out;
    void *x = numbers(t, nx, 5), *g = numbers(t, ny, 6);
    double *max = zeroes(ny), *avg = zeroes(ny), *gmax = zeroes(nx), *gavg = zeroes(nx), *twice = zeroes(nx);
    int32_t *place = malloc(sizeof *place * (size_t)(ny + 1));
    for (int64_t i = 0; i < nx; i++)     /* many ties */
        put(t, x, i, floor(get(t, x, i) * 4));
    for (int64_t p = 0; p < planes; p++)
        for (int64_t a = 0; a < s.oh; a++)
            for (int64_t b = 0; b < s.ow; b++) {
                int64_t at = p * out + a * s.ow + b, best = -1;
                int h0 = (int)floor((double)a * (double)s.h / (double)s.oh), h1 = (int)ceil((double)(a + 1) * (double)s.h / (double)s.oh);
                int w0 = (int)floor((double)b * (double)s.w / (double)s.ow), w1 = (int)ceil((double)(b + 1) * (double)s.w / (double)s.ow);
                double count = (h1 - h0) * (w1 - w0);
                for (int64_t h = h0; h < h1; h++)
                    for (int64_t w = w0; w < w1; w++) {
                        int64_t k = h * s.w + w;
                        if (best < 0 || get(t, x, p * in + k) > get(t, x, p * in + best))
                            best = k;
                        avg[at] += get(t, x, p * in + k);     /* whole numbers: exact */
                        gavg[p * in + k] += get(t, g, at) / count;
                    }
                avg[at] /= count;
                max[at] = get(t, x, p * in + best);
                place[at] = (int32_t)best;
                gmax[p * in + best] += get(t, g, at);
            }
    EACH_TABLE(k) {
        void *y = array(t, ny), *gx = array(t, nx);
        int32_t *where = malloc(sizeof *where * (size_t)(ny + 1));
        k->adaptive_max_pool2d(t, &s, y, where, x);
        same(t, y, max, ny, 0, "adaptive_max_pool2d", k->name);
        assert_memory_equal(where, place, sizeof *where * (size_t)ny);
        k->max_pool2d_grad(t, &s, gx, g, where, false);
        same(t, gx, gmax, nx, 16, "its gradient", k->name);
        k->adaptive_avg_pool2d(t, &s, y, x);
        same(t, y, avg, ny, 2, "adaptive_avg_pool2d", k->name);
        k->adaptive_avg_pool2d_grad(t, &s, gx, g, false);
        same(t, gx, gavg, nx, 16, "adaptive_avg_pool2d_grad", k->name);
        k->adaptive_avg_pool2d_grad(t, &s, gx, g, true);
        for (int64_t i = 0; i < nx; i++)
            twice[i] = 2 * gavg[i];
        same(t, gx, twice, nx, 32, "adaptive_avg_pool2d_grad added", k->name);
        free(y), free(gx), free(where);
    }
    free(x), free(g), free(max), free(avg), free(gmax), free(gavg), free(twice), free(place);
}

static void shapes(void **state)
{
    (void)state;
    static const int shape[][6] = {   /* n c h w  out_h out_w */
        { 2, 3, 7, 7, 1, 1 },   { 1, 2, 28, 28, 1, 1 }, { 1, 5, 11, 13, 3, 4 }, { 2, 1, 9, 5, 4, 1 },  { 1, 2, 8, 8, 4, 4 },
        { 1, 2, 3, 4, 7, 9 },   { 1, 1, 1, 1, 3, 2 },   { 3, 2, 5, 6, 5, 6 },   { 1, 1, 10, 7, 6, 7 }, { 0, 2, 4, 4, 2, 2 },
        { 31, 9, 14, 15, 2, 3 }, { 1, 1, 3, 1500, 2, 2 }, { 1, 2, 4, 1100, 3, 5 }, { 1, 1, 2, 700, 2, 700 }, { 2, 2, 32, 32, 8, 8 },
    };
    for (size_t i = 0; i < TD_COUNT(shape); i++) {
        const int *p = shape[i];
        check(TD_F32, shape_of(p[0], p[1], p[2], p[3], p[4], p[5]));
        check(TD_F64, shape_of(p[0], p[1], p[2], p[3], p[4], p[5]));
    }
    nothing_left();
}

/* A NaN in the window is its maximum and its mean and has the place; -inf alone is a proper maximum. */
static void not_a_number(void **state)
{
    (void)state;
    td_conv2d_shape s = shape_of(1, 1, 2, 4, 1, 2);      /* columns 0, 1 and 2, 3 */
    EACH_TABLE(k)
        for (int at = 0; at < 4; at++) {
            float x[8], y[2];
            int32_t where[2];
            static const int cell[] = { 0, 1, 4, 5 };
            for (int i = 0; i < 8; i++)
                x[i] = -INFINITY;
            x[cell[at]] = NAN;
            k->adaptive_max_pool2d(TD_F32, &s, y, where, x);
            assert_true(isnan(y[0]) && isinf(y[1]) && y[1] < 0);
            assert_int_equal(where[0], cell[at]);
            assert_int_equal(where[1], 2);
            k->adaptive_avg_pool2d(TD_F32, &s, y, x);
            assert_true(isnan(y[0]) && isinf(y[1]));
            for (int other = 0; other < at; other++) {           /* of several the last in reading order, as td_max_pool2d says       */
                x[cell[other]] = NAN;
                k->adaptive_max_pool2d(TD_F32, &s, y, where, x);
                assert_true(isnan(y[0]));
                assert_int_equal(where[0], cell[at]);
                x[cell[other]] = 1;
                k->adaptive_max_pool2d(TD_F32, &s, y, where, x);
                assert_int_equal(where[0], cell[at]);
            }
        }
}

/* ---- equal windows, bit for bit: sums line by line, then column by column, in double; places by the rule; gradients added to zeros --- */

static uint32_t drawn = 1;

static int draw(int from, int to)
{
    drawn = drawn * 1664525u + 1013904223u;
    return from + (int)((drawn >> 8) % (uint32_t)(to - from + 1));
}

/* Every few elements a tie, now and then a zero of either sign; special: infinities and NaN, too, one in so many */
static void *mixed(td_dtype t, int64_t n, int special)
{
    static const double rare[] = { INFINITY, -INFINITY, NAN, NAN };
    void *x = array(t, n);
    for (int64_t i = 0; i < n; i++) {
        double v = draw(-1000000, 1000000) / 999983.0;
        if (draw(0, 2) == 0)
            v = draw(-1, 1);
        if (draw(0, 9) == 0)
            v = draw(0, 1) ? 0.0 : -0.0;
        if (special && draw(1, special) == 1)
            v = rare[draw(0, 3)];
        put(t, x, i, v);
    }
    return x;
}

static void same_bits(td_dtype t, const void *got, const void *want, int64_t n, const char *what, const char *table, const td_conv2d_shape *s)
{
    const size_t size = size_of(t);
    for (int64_t i = 0; i < n; i++) {
        const double a = get(t, got, i), b = get(t, want, i);
        if (memcmp((const char *)got + (size_t)i * size, (const char *)want + (size_t)i * size, size) && !(isnan(a) && isnan(b)))
            fail_msg("%s, %s, %s, %lldx%lld to %lldx%lld: element %lld is %.17g, expected %.17g", what, table, t == TD_F32 ? "f32" : "f64",
                     (long long)s->h, (long long)s->w, (long long)s->oh, (long long)s->ow, (long long)i, a, b);
    }
}

/* g/count in the dtype, and 0 + or old + that */
static void put_sum(td_dtype t, void *into, int64_t i, double old, double g, int64_t count)
{
    if (t == TD_F32) {
        const float each = (float)g / (float)count, sum = (float)old + each;
        ((float *)into)[i] = sum;
    } else {
        ((double *)into)[i] = old + g / (double)count;
    }
}

static void equal(td_dtype t, td_conv2d_shape s, int special)
{
    const int64_t planes = s.n * s.c, in = s.h * s.w, out = s.oh * s.ow, nx = planes * in, ny = planes * out, kh = s.h / s.oh, kw = s.w / s.ow;
    void *x = mixed(t, nx, special), *g = mixed(t, ny, special), *old = mixed(t, nx, 0);
    void *max = array(t, ny), *avg = array(t, ny), *gmax = array(t, nx), *gavg = array(t, nx), *added = array(t, nx);
    int32_t *place = malloc(sizeof *place * (size_t)(ny + 1));
    for (int64_t i = 0; i < nx; i++)
        put(t, gmax, i, 0);
    for (int64_t p = 0; p < planes; p++)
        for (int64_t o = 0; o < out; o++) {
            const int64_t corner = o / s.ow * kh * s.w + o % s.ow * kw, at = p * out + o;
            int64_t best = corner;
            double sum = 0;
            for (int64_t w = 0; w < kw; w++) {
                double column = 0;
                for (int64_t h = 0; h < kh; h++)
                    column += get(t, x, p * in + corner + h * s.w + w);
                sum += column;
            }
            put(t, avg, at, sum / (double)(kh * kw));
            for (int64_t h = 0; h < kh; h++)
                for (int64_t w = 0; w < kw; w++) {
                    const int64_t k = corner + h * s.w + w;
                    const double v = get(t, x, p * in + k);
                    if (v > get(t, x, p * in + best) || isnan(v))
                        best = k;
                    put_sum(t, gavg, p * in + k, 0, get(t, g, at), kh * kw);
                    put_sum(t, added, p * in + k, get(t, old, p * in + k), get(t, g, at), kh * kw);
                }
            put(t, max, at, get(t, x, p * in + best));
            place[at] = (int32_t)best;
            put_sum(t, gmax, p * in + best, 0, get(t, g, at), 1);
        }
    EACH_TABLE(k) {
        void *y = array(t, ny), *gx = array(t, nx);
        int32_t *where = malloc(sizeof *where * (size_t)(ny + 1));
        k->adaptive_max_pool2d(t, &s, y, where, x);
        same_bits(t, y, max, ny, "adaptive_max_pool2d", k->name, &s);
        assert_memory_equal(where, place, sizeof *where * (size_t)ny);
        k->max_pool2d_grad(t, &s, gx, g, where, false);
        same_bits(t, gx, gmax, nx, "its gradient", k->name, &s);
        if (s.ow > 1) {                      /* windows of whole lines are summed in lanes                                 */
            k->adaptive_avg_pool2d(t, &s, y, x);
            same_bits(t, y, avg, ny, "adaptive_avg_pool2d", k->name, &s);
        }
        memset(gx, 0xff, size_of(t) * (size_t)nx);
        k->adaptive_avg_pool2d_grad(t, &s, gx, g, false);
        same_bits(t, gx, gavg, nx, "adaptive_avg_pool2d_grad", k->name, &s);
        memcpy(gx, old, size_of(t) * (size_t)nx);
        k->adaptive_avg_pool2d_grad(t, &s, gx, g, true);
        same_bits(t, gx, added, nx, "adaptive_avg_pool2d_grad added", k->name, &s);
        free(y), free(gx), free(where);
    }
    free(x), free(g), free(old), free(max), free(avg), free(gmax), free(gavg), free(added), free(place);
}

/* Widths for vectors (1, 2, 4, 8) and others, outputs that fill vectors and others */
static void equal_windows(void **state)
{
    (void)state;
    static const int wide[] = { 1, 2, 2, 4, 4, 8, 8, 3, 7 }, many[] = { 1, 2, 4, 8, 16, 8, 4, 3, 7 };
    for (int i = 0; i < 400; i++) {
        const int kh = draw(1, 9), kw = wide[draw(0, 8)], oh = draw(1, 9), ow = many[draw(0, 8)];
        equal(i & 1 ? TD_F32 : TD_F64, shape_of(draw(1, 2), draw(1, 3), oh * kh, ow * kw, oh, ow), i % 3 ? 0 : draw(2, 200));
    }
    for (int i = 0; i < 2; i++) {                              /* the shapes of bench/ops, and one of ImageNet's */
        equal(i ? TD_F32 : TD_F64, shape_of(2, 3, 32, 32, 8, 8), 0);
        equal(i ? TD_F32 : TD_F64, shape_of(1, 2, 224, 224, 28, 28), 5000);
    }
}

/* Gradients too large for the caches are written around them, by any number of threads. */
static void large(void **state)
{
    (void)state;
    const int before = omp_get_max_threads();
    for (int n = 1; n <= 3; n += 2) {
        omp_set_num_threads(n);
        equal(n > 1 ? TD_F32 : TD_F64, shape_of(n > 1 ? 65 : 33, 97, 32, 32, 8, 8), 0);
    }
    omp_set_num_threads(before);
}

static void threads(void **state)
{
    (void)state;
    int before = omp_get_max_threads();
    td_conv2d_shape s = shape_of(9, 13, 31, 29, 5, 4);
    int64_t nx = s.n * s.c * s.h * s.w, ny = s.n * s.c * s.oh * s.ow;
    float *x = numbers(TD_F32, nx, 1), *g = numbers(TD_F32, ny, 2);
    EACH_TABLE(k) {
        float *y[3], *gx[3];
        for (int i = 0; i < 3; i++) {
            omp_set_num_threads(i + 1);
            int32_t *where = malloc(sizeof *where * (size_t)ny);
            y[i] = array(TD_F32, 2 * ny), gx[i] = array(TD_F32, nx);
            k->adaptive_max_pool2d(TD_F32, &s, y[i], where, x);
            k->adaptive_avg_pool2d(TD_F32, &s, y[i] + ny, x);
            k->max_pool2d_grad(TD_F32, &s, gx[i], g, where, false);
            k->adaptive_avg_pool2d_grad(TD_F32, &s, gx[i], g, true);
            free(where);
        }
        for (int i = 1; i < 3; i++) {
            assert_memory_equal(y[0], y[i], sizeof(float) * 2 * (size_t)ny);
            assert_memory_equal(gx[0], gx[i], sizeof(float) * (size_t)nx);
        }
        for (int i = 0; i < 3; i++)
            free(y[i]), free(gx[i]);
    }
    free(x), free(g);
    omp_set_num_threads(before);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(shapes), cmocka_unit_test(not_a_number), cmocka_unit_test(equal_windows),
                                         cmocka_unit_test(large), cmocka_unit_test(threads) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
