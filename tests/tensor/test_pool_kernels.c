/* tests/tensor/test_pool_kernels.c: pooling against the definition in double precision; NaN, ties and places; the gradient's overlaps. */
#include "image_kernels.h"

static td_conv2d_shape shape_of(int n, int c, int h, int w, int window, int stride, int padding)
{
    td_conv2d_shape s = { .n = n, .c = c, .h = h, .w = w, .o = c, .kh = window, .kw = window, .stride = stride, .padding = padding };
    s.oh = (h + 2 * padding - window) / stride + 1;
    s.ow = (w + 2 * padding - window) / stride + 1;
    return s;
}

static void check(td_dtype t, td_conv2d_shape s)
{
    int64_t planes = s.n * s.c, in = s.h * s.w, out = s.oh * s.ow, nx = planes * in, ny = planes * out;
    void *x = numbers(t, nx, 5), *g = numbers(t, ny, 6);
    for (int64_t i = 0; i < nx; i++)     /* many ties */
        put(t, x, i, floor(get(t, x, i) * 4));
    double *max = zeroes(ny), *avg = zeroes(ny), *gmax = zeroes(nx), *gavg = zeroes(nx);
    int32_t *place = malloc(sizeof *place * (size_t)(ny + 1));
    for (int64_t p = 0; p < planes; p++)
        for (int64_t a = 0; a < s.oh; a++)
            for (int64_t b = 0; b < s.ow; b++) {
                int64_t at = p * out + a * s.ow + b, best = -1;
                for (int64_t i = 0; i < s.kh; i++)
                    for (int64_t j = 0; j < s.kw; j++) {
                        int64_t h = a * s.stride + i - s.padding, w = b * s.stride + j - s.padding;
                        if (h < 0 || h >= s.h || w < 0 || w >= s.w)
                            continue;
                        int64_t k = h * s.w + w;
                        if (best < 0 || get(t, x, p * in + k) > get(t, x, p * in + best))
                            best = k;
                        avg[at] += get(t, x, p * in + k) / (double)(s.kh * s.kw);
                        gavg[p * in + k] += get(t, g, at) / (double)(s.kh * s.kw);
                    }
                max[at] = get(t, x, p * in + best);
                place[at] = (int32_t)best;
                gmax[p * in + best] += get(t, g, at);
            }
    EACH_TABLE(k) {
        void *y = array(t, ny), *gx = array(t, nx);
        int32_t *where = malloc(sizeof *where * (size_t)(ny + 1));
        double *twice = zeroes(nx);
        k->max_pool2d(t, &s, y, where, x);
        same(t, y, max, ny, 0, "max_pool2d", k->name);
        assert_memory_equal(where, place, sizeof *where * (size_t)ny);
        k->max_pool2d_grad(t, &s, gx, g, where, false);
        same(t, gx, gmax, nx, 16, "max_pool2d_grad", k->name);
        k->max_pool2d_grad(t, &s, gx, g, where, true);
        for (int64_t i = 0; i < nx; i++)
            twice[i] = 2 * gmax[i];
        same(t, gx, twice, nx, 32, "max_pool2d_grad added", k->name);
        k->avg_pool2d(t, &s, y, x);
        same(t, y, avg, ny, 16, "avg_pool2d", k->name);
        k->avg_pool2d_grad(t, &s, gx, g, false);
        same(t, gx, gavg, nx, 16, "avg_pool2d_grad", k->name);
        k->avg_pool2d_grad(t, &s, gx, g, true);
        for (int64_t i = 0; i < nx; i++)
            twice[i] = 2 * gavg[i];
        same(t, gx, twice, nx, 32, "avg_pool2d_grad added", k->name);
        free(y), free(gx), free(where), free(twice);
    }
    free(x), free(g), free(max), free(avg), free(gmax), free(gavg), free(place);
}

static void shapes(void **state)
{
    (void)state;
    static const int shape[][7] = {   /* n c h w  window stride padding */
        { 2, 3, 28, 28, 2, 2, 0 }, { 1, 2, 7, 5, 2, 2, 0 },  { 1, 1, 2, 2, 2, 2, 0 },   { 2, 1, 3, 35, 2, 2, 0 }, { 1, 3, 11, 13, 3, 2, 1 },
        { 2, 2, 9, 7, 3, 3, 0 },   { 1, 2, 13, 11, 3, 1, 1 }, { 1, 1, 5, 7, 5, 4, 2 },  { 1, 2, 10, 9, 2, 3, 0 }, { 1, 1, 1, 1, 1, 1, 0 },
        { 1, 2, 7, 7, 2, 2, 1 },   { 0, 3, 4, 4, 2, 2, 0 },  { 31, 5, 17, 19, 2, 2, 0 }, { 1, 1, 5, 4, 2, 1, 0 },
    };
    for (size_t i = 0; i < TD_COUNT(shape); i++) {
        const int *p = shape[i];
        check(TD_F32, shape_of(p[0], p[1], p[2], p[3], p[4], p[5], p[6]));
        check(TD_F64, shape_of(p[0], p[1], p[2], p[3], p[4], p[5], p[6]));
    }
    nothing_left();
}

/* A NaN anywhere in the window is the result, and its place gets the gradient; -inf alone is a proper maximum. */
static void not_a_number(void **state)
{
    (void)state;
    for (int general = 0; general < 2; general++)
        EACH_TABLE(k)
            for (int at = 0; at < 5; at++) {
                td_conv2d_shape s = general ? shape_of(1, 1, 4, 3, 2, 1, 0) : shape_of(1, 1, 2, 3, 2, 2, 0);
                float x[12], y[6];
                int32_t where[6];
                static const int cell[] = { 0, 1, 3, 4 };
                for (int i = 0; i < 12; i++)
                    x[i] = at == 4 ? -INFINITY : (float)i;
                if (at < 4)
                    x[cell[at]] = NAN;
                k->max_pool2d(TD_F32, &s, y, where, x);
                if (at < 4) {
                    assert_true(isnan(y[0]));
                    assert_int_equal(where[0], cell[at]);
                } else {
                    assert_true(isinf(y[0]) && y[0] < 0);
                    assert_int_equal(where[0], 0);
                }
            }
}

static void threads(void **state)
{
    (void)state;
    int before = omp_get_max_threads();
    td_conv2d_shape s = shape_of(9, 13, 31, 29, 2, 2, 0);
    int64_t nx = s.n * s.c * s.h * s.w, ny = s.n * s.c * s.oh * s.ow;
    float *x = numbers(TD_F32, nx, 1), *g = numbers(TD_F32, ny, 2);
    EACH_TABLE(k) {
        float *y[2], *gx[2];
        for (int i = 0; i < 2; i++) {
            omp_set_num_threads(i + 1);
            int32_t *where = malloc(sizeof *where * (size_t)ny);
            y[i] = array(TD_F32, ny), gx[i] = array(TD_F32, nx);
            k->max_pool2d(TD_F32, &s, y[i], where, x);
            k->max_pool2d_grad(TD_F32, &s, gx[i], g, where, false);
            k->avg_pool2d_grad(TD_F32, &s, gx[i], g, true);
            free(where);
        }
        assert_memory_equal(y[0], y[1], sizeof(float) * (size_t)ny);
        assert_memory_equal(gx[0], gx[1], sizeof(float) * (size_t)nx);
        free(y[0]), free(y[1]), free(gx[0]), free(gx[1]);
    }
    free(x), free(g);
    omp_set_num_threads(before);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(shapes), cmocka_unit_test(not_a_number), cmocka_unit_test(threads) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
