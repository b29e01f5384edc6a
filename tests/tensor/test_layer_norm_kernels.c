/* tests/tensor/test_layer_norm_kernels.c: layer, RMS and group norm against their definitions in double precision, gradients against finite
 * differences of those, on every instruction set; and that neither threads nor places in memory show in the bits.
 */
#include "image_kernels.h"

/* n samples of c channels of inner elements; rows are samples (layer, RMS: groups 1, w and b per element) or groups of channels */
typedef enum { LAYER, RMS, GROUP } kind;
typedef struct { kind kind; int64_t n, c, inner, groups; bool affine; } problem;
#define EPS 0.01

static int64_t affine_size(const problem *p)
{
    return p->kind == GROUP ? p->c : p->c * p->inner;
}

static int64_t affine_at(const problem *p, int64_t i)
{
    return p->kind == GROUP ? i / p->inner % p->c : i % (p->c * p->inner);
}

static void define(const problem *p, const double *x, const double *w, const double *b, double *h, double *y)
{
    int64_t size = p->c / p->groups * p->inner, all = p->n * p->c * p->inner;
    for (int64_t begin = 0; begin < all; begin += size) {
        double mean = 0, square = 0;
        for (int64_t i = begin; i < begin + size && p->kind != RMS; i++)
            mean += x[i] / (double)size;
        for (int64_t i = begin; i < begin + size; i++)
            square += (x[i] - mean) * (x[i] - mean) / (double)size;
        for (int64_t i = begin; i < begin + size; i++) {
            h[i] = (x[i] - mean) / sqrt(square + EPS);
            y[i] = h[i] * (p->affine ? w[affine_at(p, i)] : 1) + (p->affine && p->kind != RMS ? b[affine_at(p, i)] : 0);
        }
    }
}

static void run(const td_kernels *k, td_dtype t, const problem *p, void *y, void *mean, void *rstd, const void *x, const void *w, const void *b)
{
    w = p->affine ? w : NULL, b = p->affine && p->kind != RMS ? b : NULL;
    if (p->kind == GROUP)
        k->group_norm(t, p->n, p->c, p->inner, p->groups, y, mean, rstd, x, w, b, EPS);
    else
        k->layer_norm(t, t, p->n, p->c * p->inner, y, p->kind == RMS ? NULL : mean, rstd, x, w, b, EPS);
}

static void run_grad(const td_kernels *k, td_dtype t, const problem *p, void *gx, void *gw, void *gb, const void *g, const void *x, const void *w,
                     const void *mean, const void *rstd, bool add)
{
    w = p->affine ? w : NULL;
    if (p->kind == GROUP)
        k->group_norm_grad(t, p->n, p->c, p->inner, p->groups, gx, gw, gb, g, x, w, mean, rstd, add, add, add);
    else
        k->layer_norm_grad(t, t, p->n, p->c * p->inner, gx, gw, gb, g, x, w, p->kind == RMS ? NULL : mean, rstd, add, add, add);
}

static double *wide(td_dtype t, const void *x, int64_t n, double factor)
{
    double *d = zeroes(n);
    for (int64_t i = 0; i < n; i++)
        d[i] = factor * get(t, x, i);
    return d;
}

static void check(td_dtype t, problem p)
{
    const int64_t n = p.n * p.c * p.inner, m = affine_size(&p), rows = p.n * p.groups;
    void *x = numbers(t, n, 1), *w = numbers(t, m, 2), *b = numbers(t, m, 3), *g = numbers(t, n, 4);
    double *xd = wide(t, x, n, 1), *wd = wide(t, w, m, 1), *bd = wide(t, b, m, 1), *gd = wide(t, g, n, 1);
    double *y = zeroes(n), *h = zeroes(n), *gx = zeroes(n), *gw = zeroes(m), *gb = zeroes(m), *y2 = zeroes(n), *h2 = zeroes(n), step = 1e-4;
    define(&p, xd, wd, bd, h, y);
    for (int64_t i = 0; i < n; i++) {
        gb[affine_at(&p, i)] += gd[i];
        gw[affine_at(&p, i)] += gd[i] * h[i];
    }
    for (int64_t i = 0; i < n; i++) {                          /* of L = sum g*y                                             */
        double side[2] = { 0 }, was = xd[i];
        for (int s = 0; s < 2; s++) {
            xd[i] = was + (s ? -step : step);
            define(&p, xd, wd, bd, h2, y2);
            for (int64_t j = 0; j < n; j++)
                side[s] += gd[j] * y2[j];
        }
        xd[i] = was;
        gx[i] = (side[0] - side[1]) / (2 * step);
    }
    EACH_TABLE(k) {
        void *out = array(t, n), *mean = array(t, rows), *rstd = array(t, rows), *kx = array(t, n), *kw = array(t, m), *kb = array(t, m);
        run(k, t, &p, out, mean, rstd, x, w, b);
        same(t, out, y, n, 32, "norm", k->name);
        run_grad(k, t, &p, kx, kw, kb, g, x, w, mean, rstd, false);
        for (int64_t i = 0; i < n; i++)
            if (!(fabs(get(t, kx, i) - gx[i]) <= (t == TD_F32 ? 3e-5 : 3e-6) * (1 + fabs(gx[i]))))
                fail_msg("norm %d gradient, %s: element %d is %.12g, expected %.12g", p.kind, k->name, (int)i, get(t, kx, i), gx[i]);
        same(t, kw, gw, m, 16 * (double)(n / m), "norm gradient w", k->name);
        same(t, kb, gb, m, 4, "norm gradient b", k->name);
        double *twice_x = wide(t, kx, n, 3), *twice_w = wide(t, kw, m, 2), *twice_b = wide(t, kb, m, 2);
        run_grad(k, t, &p, kx, kw, kb, g, x, w, mean, rstd, true);
        run_grad(k, t, &p, kx, NULL, NULL, g, x, w, mean, rstd, true);     /* x alone; b alone needs no x                    */
        same(t, kx, twice_x, n, 64, "norm gradient added", k->name);
        same(t, kw, twice_w, m, 32, "norm gradient w added", k->name);
        same(t, kb, twice_b, m, 4, "norm gradient b added", k->name);
        run_grad(k, t, &p, NULL, NULL, kb, g, NULL, NULL, mean, rstd, false);
        same(t, kb, gb, m, 4, "norm gradient b alone", k->name);
        free(out), free(mean), free(rstd), free(kx), free(kw), free(kb), free(twice_x), free(twice_w), free(twice_b);
    }
    free(x), free(w), free(b), free(g), free(xd), free(wd), free(bd), free(gd);
    free(y), free(h), free(gx), free(gw), free(gb), free(y2), free(h2);
}

static void shapes(void **state)
{
    (void)state;
    static const problem each[] = {
        { LAYER, 3, 7, 1, 1, true }, { LAYER, 2, 35, 1, 1, false }, { LAYER, 37, 3, 1, 1, true }, { LAYER, 1, 16, 1, 1, true },
        { RMS, 3, 7, 1, 1, true }, { RMS, 2, 35, 1, 1, false }, { RMS, 37, 3, 1, 1, true }, { LAYER, 2, 3, 5, 1, true },
        { GROUP, 2, 4, 5, 2, true }, { GROUP, 3, 6, 1, 3, true }, { GROUP, 1, 3, 19, 1, false }, { GROUP, 2, 3, 17, 3, true },
    };
    for (size_t i = 0; i < sizeof each / sizeof *each; i++) {
        check(TD_F32, each[i]);
        check(TD_F64, each[i]);
    }
    nothing_left();
}

static void no_rows(void **state)
{
    (void)state;
    static const problem each[] = { { LAYER, 0, 3, 1, 1, true }, { RMS, 0, 3, 1, 1, true }, { GROUP, 0, 3, 2, 3, true }, { GROUP, 2, 3, 0, 1, true } };
    for (size_t i = 0; i < sizeof each / sizeof *each; i++)
        EACH_TABLE(k) {
            float x[1] = { 5 }, w[3] = { 1, 1, 1 }, gw[3] = { 7, 7, 7 }, gb[3] = { 8, 8, 8 }, mean[6], rstd[6];
            run(k, TD_F32, &each[i], x, mean, rstd, x, w, w);
            run_grad(k, TD_F32, &each[i], x, gw, gb, x, x, w, mean, rstd, true);
            assert_true(x[0] == 5 && gw[2] == 7 && gb[0] == 8);
            run_grad(k, TD_F32, &each[i], x, gw, gb, x, x, w, mean, rstd, false);
            assert_true(x[0] == 5 && gw[0] == 0 && gw[2] == 0 && gb[0] == 0 && gb[2] == 0);
        }
}

/* A mean far from zero does not spoil the variance. */
static void far_from_zero(void **state)
{
    (void)state;
    enum { N = 4096 };
    static float x[N], y[N];
    for (int i = 0; i < N; i++)
        x[i] = 10000 + (float)(i % 2);
    EACH_TABLE(k) {
        float mean, rstd;
        k->layer_norm(TD_F32, TD_F32, 1, N, y, &mean, &rstd, x, NULL, NULL, 1e-12);
        assert_true(fabsf(mean - 10000.5f) < 1e-3f && fabsf(rstd - 2) < 1e-5f && fabsf(y[0] + 1) < 1e-3f && fabsf(y[1] - 1) < 1e-3f);
        k->group_norm(TD_F32, 1, 2, N / 2, 1, y, &mean, &rstd, x, NULL, NULL, 1e-12);
        assert_true(fabsf(mean - 10000.5f) < 1e-3f && fabsf(rstd - 2) < 1e-5f && fabsf(y[0] + 1) < 1e-3f && fabsf(y[1] - 1) < 1e-3f);
    }
}

/* The same bits with any number of threads, and wherever the arrays begin. */
static void threads(void **state)
{
    (void)state;
    int before = omp_get_max_threads();
    static const problem each[] = { { LAYER, 1037, 67, 1, 1, true }, { RMS, 1037, 67, 1, 1, true }, { GROUP, 5, 38, 301, 2, true } };
    for (int s = 0; s < 3; s++) {
        const problem *p = &each[s];
        int64_t all = p->n * p->c * p->inner, m = affine_size(p);
        EACH_TABLE(k) {
            float *y[2], *gx[2], *gw[2], *gb[2], *mean = array(TD_F32, p->n * p->groups), *rstd = array(TD_F32, p->n * p->groups);
            for (int i = 0; i < 2; i++) {
                omp_set_num_threads(2 * i + 1);
                float *x = numbers(TD_F32, all + i, 1), *g = numbers(TD_F32, all, 2), *w = numbers(TD_F32, m, 3);
                memmove(x + i, x, sizeof *x * (size_t)all);
                y[i] = array(TD_F32, all), gx[i] = array(TD_F32, all), gw[i] = array(TD_F32, m), gb[i] = array(TD_F32, m);
                run(k, TD_F32, p, y[i], mean, rstd, x + i, w, w);
                run_grad(k, TD_F32, p, gx[i], gw[i], gb[i], g, x + i, w, mean, rstd, false);
                free(x), free(g), free(w);
            }
            assert_memory_equal(y[0], y[1], sizeof(float) * (size_t)all);
            assert_memory_equal(gx[0], gx[1], sizeof(float) * (size_t)all);
            assert_memory_equal(gw[0], gw[1], sizeof(float) * (size_t)m);
            assert_memory_equal(gb[0], gb[1], sizeof(float) * (size_t)m);
            for (int i = 0; i < 2; i++)
                free(y[i]), free(gx[i]), free(gw[i]), free(gb[i]);
            free(mean), free(rstd);
        }
    }
    omp_set_num_threads(before);
    nothing_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes), cmocka_unit_test(no_rows), cmocka_unit_test(far_from_zero), cmocka_unit_test(threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
