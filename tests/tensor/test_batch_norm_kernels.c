/* tests/tensor/test_batch_norm_kernels.c: batch norm against its definition in double precision, its gradient against finite differences of
 * that definition, running statistics against PyTorch's rule.
 */
#include "image_kernels.h"

typedef struct { int64_t n, c, inner; bool train, affine; double eps; } problem;

/* y of the definition; also mean and 1/std per channel */
static void define(const problem *p, const double *x, const double *w, const double *b, const double *run_mean, const double *run_var, double *y,
                   double *mean, double *rstd)
{
    for (int64_t c = 0; c < p->c; c++) {
        double m = 0, v = 0, count = (double)(p->n * p->inner);
        for (int64_t i = 0; i < p->n * p->inner; i++)
            m += x[(i / p->inner * p->c + c) * p->inner + i % p->inner] / count;
        for (int64_t i = 0; i < p->n * p->inner; i++) {
            double d = x[(i / p->inner * p->c + c) * p->inner + i % p->inner] - m;
            v += d * d / count;
        }
        mean[c] = p->train ? m : run_mean[c];
        rstd[c] = 1 / sqrt((p->train ? v : run_var[c]) + p->eps);
        for (int64_t i = 0; i < p->n * p->inner; i++) {
            int64_t at = (i / p->inner * p->c + c) * p->inner + i % p->inner;
            y[at] = (x[at] - mean[c]) * rstd[c] * (w ? w[c] : 1) + (b ? b[c] : 0);
        }
    }
}

static double *wide(td_dtype t, const void *x, int64_t n)
{
    double *d = zeroes(n);
    for (int64_t i = 0; i < n; i++)
        d[i] = get(t, x, i);
    return d;
}

static void check(td_dtype t, problem p)
{
    int64_t n = p.n * p.c * p.inner;
    double count = (double)(p.n * p.inner);
    void *x = numbers(t, n, 1), *w = numbers(t, p.c, 2), *b = numbers(t, p.c, 3), *g = numbers(t, n, 4), *rm = numbers(t, p.c, 5), *rv = numbers(t, p.c, 6);
    for (int64_t i = 0; i < p.c; i++)
        put(t, rv, i, 1.5 + get(t, rv, i));
    double *xd = wide(t, x, n), *wd = wide(t, w, p.c), *bd = wide(t, b, p.c), *gd = wide(t, g, n), *rmd = wide(t, rm, p.c), *rvd = wide(t, rv, p.c);
    double *y = zeroes(n), *mean = zeroes(p.c), *rstd = zeroes(p.c), *gx = zeroes(n), *gw = zeroes(p.c), *gb = zeroes(p.c), *y2 = zeroes(n);
    define(&p, xd, p.affine ? wd : NULL, p.affine ? bd : NULL, rmd, rvd, y, mean, rstd);
    for (int64_t i = 0; i < n; i++) {
        int64_t c = i / p.inner % p.c;
        gb[c] += gd[i];
        gw[c] += gd[i] * (xd[i] - mean[c]) * rstd[c];
    }
    /* dL/dx by central differences of the definition, L = sum g*y */
    double *m2 = zeroes(p.c), *r2 = zeroes(p.c), h = 1e-4;
    for (int64_t i = 0; i < n; i++) {
        double side[2], was = xd[i];
        for (int s = 0; s < 2; s++) {
            xd[i] = was + (s ? -h : h);
            define(&p, xd, p.affine ? wd : NULL, p.affine ? bd : NULL, rmd, rvd, y2, m2, r2);
            side[s] = 0;
            for (int64_t j = 0; j < n; j++)
                side[s] += gd[j] * y2[j];
        }
        xd[i] = was;
        gx[i] = (side[0] - side[1]) / (2 * h);
    }
    EACH_TABLE(k) {
        void *out = array(t, n), *km = array(t, p.c), *kr = array(t, p.c), *kx = array(t, n), *kw = copy_of(t, w, p.c), *kb = copy_of(t, b, p.c);
        void *crm = copy_of(t, rm, p.c), *crv = copy_of(t, rv, p.c);
        k->batch_norm(t, p.n, p.c, p.inner, out, km, kr, x, p.affine ? w : NULL, p.affine ? b : NULL, crm, crv, p.train, 0.25, p.eps);
        same(t, out, y, n, 32, "batch_norm", k->name);
        same(t, km, mean, p.c, 4, "batch_norm mean", k->name);
        same(t, kr, rstd, p.c, 4, "batch_norm rstd", k->name);
        for (int64_t c = 0; c < p.c; c++) {
            double unbiased = (1 / (rstd[c] * rstd[c]) - p.eps) * count / (count - 1);
            m2[c] = p.train ? 0.75 * rmd[c] + 0.25 * mean[c] : rmd[c];
            r2[c] = p.train ? 0.75 * rvd[c] + 0.25 * unbiased : rvd[c];
        }
        same(t, crm, m2, p.c, 8, "batch_norm running mean", k->name);
        same(t, crv, r2, p.c, 8, "batch_norm running variance", k->name);
        k->batch_norm_grad(t, p.n, p.c, p.inner, kx, kw, kb, g, x, p.affine ? w : NULL, km, kr, p.train, false, false, false);
        double *kxd = wide(t, kx, n);
        for (int64_t i = 0; i < n; i++)
            if (!(fabs(kxd[i] - gx[i]) <= (t == TD_F32 ? 2e-5 : 2e-6) * (1 + fabs(gx[i]))))
                fail_msg("batch_norm_grad, %s: element %d is %.12g, expected %.12g", k->name, (int)i, kxd[i], gx[i]);
        same(t, kw, gw, p.c, 8 * count, "batch_norm_grad w", k->name);
        same(t, kb, gb, p.c, 8, "batch_norm_grad b", k->name);
        /* added, and x alone */
        k->batch_norm_grad(t, p.n, p.c, p.inner, kx, kw, kb, g, x, p.affine ? w : NULL, km, kr, p.train, true, true, true);
        k->batch_norm_grad(t, p.n, p.c, p.inner, kx, NULL, NULL, g, x, p.affine ? w : NULL, km, kr, p.train, true, false, false);
        for (int64_t i = 0; i < n; i++)
            kxd[i] *= 3;
        same(t, kx, kxd, n, 32, "batch_norm_grad added", k->name);
        for (int64_t c = 0; c < p.c; c++)
            m2[c] = 2 * gw[c], r2[c] = 2 * gb[c];
        same(t, kw, m2, p.c, 8 * count, "batch_norm_grad w added", k->name);
        same(t, kb, r2, p.c, 8, "batch_norm_grad b added", k->name);
        free(kxd), free(out), free(km), free(kr), free(kx), free(kw), free(kb), free(crm), free(crv);
    }
    free(x), free(w), free(b), free(g), free(rm), free(rv), free(xd), free(wd), free(bd), free(gd), free(rmd), free(rvd);
    free(y), free(mean), free(rstd), free(gx), free(gw), free(gb), free(y2), free(m2), free(r2);
}

static void shapes(void **state)
{
    (void)state;
    static const int64_t shape[][3] = { { 2, 1, 1 }, { 7, 19, 1 }, { 1, 3, 5 }, { 3, 5, 7 }, { 2, 2, 37 }, { 5, 33, 1 }, { 3, 2, 49 } };
    for (size_t i = 0; i < TD_COUNT(shape); i++)
        for (int mode = 0; mode < 4; mode++) {
            problem p = { shape[i][0], shape[i][1], shape[i][2], mode & 1, mode & 2, 1e-2 };
            check(TD_F32, p);
            check(TD_F64, p);
        }
    nothing_left();
}

/* The pieces for several ranks: sums of a share in double, and a function of two tensors per channel. */
static void pieces(void **state)
{
    (void)state;
    static const int64_t shape[][3] = { { 2, 1, 1 }, { 7, 19, 1 }, { 1, 3, 5 }, { 3, 5, 37 }, { 0, 3, 2 } };
    for (size_t s = 0; s < TD_COUNT(shape); s++)
        for (int wide_type = 0; wide_type < 2; wide_type++) {
            td_dtype t = wide_type ? TD_F64 : TD_F32;
            const int64_t n = shape[s][0], c = shape[s][1], inner = shape[s][2], all = n * c * inner;
            void *x = numbers(t, all, 1), *g = numbers(t, all, 2), *y = numbers(t, all, 3);
            double *xd = wide(t, x, all), *gd = wide(t, g, all), *yd = wide(t, y, all), *want = calloc((size_t)all + 1, sizeof *want);
            double first[19], second[19], mean[19], m2[19], sum[19] = { 0 }, product[19] = { 0 }, a[19], b[19], d[19];
            for (int64_t k = 0; k < c; k++) {
                mean[k] = m2[k] = 0;
                a[k] = 0.5 + (double)k, b[k] = 2 - (double)k, d[k] = (double)k / 4;
            }
            for (int pass = 0; pass < 2; pass++)
                for (int64_t i = 0; i < all; i++) {
                    int64_t k = i / inner % c;
                    if (pass == 0) {
                        mean[k] += xd[i] / (double)(n * inner);
                        continue;
                    }
                    m2[k] += (xd[i] - mean[k]) * (xd[i] - mean[k]);
                    sum[k] += gd[i];
                    product[k] += gd[i] * (xd[i] - mean[k]);
                    want[i] = a[k] * xd[i] + b[k] * gd[i] + d[k];
                }
            EACH_TABLE(k) {
                k->batch_norm_pair(t, n, c, inner, x, NULL, NULL, first, second);
                same(TD_F64, first, mean, c, 64, "batch_norm_pair mean", k->name);
                same(TD_F64, second, m2, c, 256, "batch_norm_pair squares", k->name);
                k->batch_norm_pair(t, n, c, inner, x, g, mean, first, second);
                same(TD_F64, first, sum, c, 256, "batch_norm_pair sum", k->name);
                same(TD_F64, second, product, c, 256, "batch_norm_pair products", k->name);
                void *out = copy_of(t, y, all);
                k->batch_norm_affine(t, n, c, inner, out, x, g, a, b, d, false);
                same(t, out, want, all, 64, "batch_norm_affine", k->name);
                memcpy(out, y, (size_t)all * td_dtype_size(t));
                k->batch_norm_affine(t, n, c, inner, out, x, g, a, b, d, true);
                double *more = calloc((size_t)all + 1, sizeof *more), *less = calloc((size_t)all + 1, sizeof *less);
                for (int64_t i = 0; i < all; i++) {
                    more[i] = yd[i] + want[i];
                    less[i] = want[i] - b[i / inner % c] * gd[i];
                }
                same(t, out, more, all, 64, "batch_norm_affine added", k->name);
                k->batch_norm_affine(t, n, c, inner, out, x, NULL, a, NULL, d, false);
                same(t, out, less, all, 64, "batch_norm_affine of one", k->name);
                free(out), free(more), free(less);
            }
            free(x), free(g), free(y), free(xd), free(gd), free(yd), free(want);
        }
    nothing_left();
}

static void no_rows(void **state)
{
    (void)state;
    EACH_TABLE(k) {
        float x[1] = { 3 }, mean[2], rstd[2], w[2] = { 1, 1 }, rm[2] = { 4, 5 }, rv[2] = { 6, 7 }, gw[2] = { 8, 8 }, gb[2] = { 9, 9 };
        k->batch_norm(TD_F32, 0, 2, 3, x, mean, rstd, x, w, w, rm, rv, true, 0.1, 1e-5);
        assert_true(x[0] == 3 && rm[0] == 4 && rm[1] == 5 && rv[0] == 6 && rv[1] == 7);
        k->batch_norm_grad(TD_F32, 0, 2, 3, x, gw, gb, x, x, w, mean, rstd, true, false, true, true);
        assert_true(x[0] == 3 && gw[0] == 8 && gb[1] == 9);
        k->batch_norm_grad(TD_F32, 0, 2, 3, x, gw, gb, x, x, w, mean, rstd, true, false, false, false);
        assert_true(gw[0] == 0 && gw[1] == 0 && gb[0] == 0 && gb[1] == 0);
    }
}

/* A mean far from zero does not spoil the variance (sums are in double, of deviations). */
static void far_from_zero(void **state)
{
    (void)state;
    enum { N = 4096 };
    static float x[N], y[N];
    for (int i = 0; i < N; i++)
        x[i] = 10000 + (float)(i % 2);
    EACH_TABLE(k) {
        float mean, rstd;
        k->batch_norm(TD_F32, 1, 1, N, y, &mean, &rstd, x, NULL, NULL, NULL, NULL, true, 0.1, 1e-12);
        assert_true(fabsf(mean - 10000.5f) < 1e-3f && fabsf(rstd - 2) < 1e-5f);
    }
}

/* The gradients of batch_norm in long double, of what relu left of g, with mean and rstd as they were saved. */
static void exact_gradient(td_dtype t, int64_t n, int64_t c, int64_t inner, const void *g, const void *x, const void *w, const void *mean, const void *rstd,
                           double *gx, double *gw, double *gb)
{
    for (int64_t k = 0; k < c; k++) {
        const long double m = get(t, mean, k), r = get(t, rstd, k), f = r * get(t, w, k), count = (long double)(n * inner);
        long double sum = 0, product = 0;
        for (int64_t i = 0; i < n * inner; i++) {
            const int64_t at = (i / inner * c + k) * inner + i % inner;
            sum += get(t, g, at);
            product += get(t, g, at) * (get(t, x, at) - m);
        }
        gw[k] = (double)(product * r), gb[k] = (double)sum;
        for (int64_t i = 0; i < n * inner; i++) {
            const int64_t at = (i / inner * c + k) * inner + i % inner;
            gx[at] = (double)(f * (get(t, g, at) - sum / count - (get(t, x, at) - m) * r * r * product / count));
        }
    }
}

/* The gradients of relu(batch_norm(x) + z): with and without z, added and not, gx over gy, on any threads.
 *
 * The bound in f64: sums of n doubles in 16 lanes. Each of the n additions rounds a partial sum, of n/16 terms of random sign: about sqrt(n)/4 terms large.
 * n such errors of random sign are n/4 half roundings of a term, and terms here are about 1/4. So n/32, and what few roundings the rest takes. */
static void relu_gradient(void **state)
{
    (void)state;
    const int before = omp_get_max_threads();
    static const int64_t shape[][3] = { { 3, 5, 7 }, { 1, 2, 35 }, { 5, 37, 301 }, { 9, 4, 1 }, { 2, 3, 2500 } };
    for (size_t s = 0; s < TD_COUNT(shape); s++)
        for (td_dtype t = TD_F32; t <= TD_F64; t++) {
            const int64_t n = shape[s][0], c = shape[s][1], inner = shape[s][2], all = n * c * inner;
            const double bound = t == TD_F32 ? 8 : 8 + (double)(n * inner) / 32;
            void *x = numbers(t, all, 1), *z = numbers(t, all, 2), *g = numbers(t, all, 3), *w = numbers(t, c, 4), *b = numbers(t, c, 5);
            EACH_TABLE(k)
                for (int with_z = 0; with_z < 2; with_z++) {
                    void *y = array(t, all), *mean = array(t, c), *rstd = array(t, c), *kept = array(t, all);
                    double *wide[4] = { zeroes(all), zeroes(c), zeroes(c), zeroes(all) };
                    k->batch_norm_relu(t, n, c, inner, y, mean, rstd, x, with_z ? z : NULL, w, b, NULL, NULL, true, 0.1, 1e-5);
                    for (int64_t i = 0; i < all; i++)
                        put(t, kept, i, get(t, y, i) > 0 ? get(t, g, i) : 0);
                    exact_gradient(t, n, c, inner, kept, x, w, mean, rstd, wide[0], wide[1], wide[2]);
                    for (int64_t i = 0; i < all; i++)
                        wide[3][i] = get(t, kept, i);
                    void *first = NULL;
                    for (int threads = 1; threads <= 3; threads++) {
                        omp_set_num_threads(threads);
                        void *gx = copy_of(t, g, all), *gz = array(t, all), *gw = array(t, c), *gb = array(t, c);
                        k->batch_norm_relu_grad(t, n, c, inner, gx, with_z ? gz : NULL, gw, gb, gx, with_z ? y : NULL, x, w, b, mean, rstd, true, false, false, false,
                                                false);
                        same(t, gx, wide[0], all, bound, "gradient of x, in place", k->name);
                        same(t, gw, wide[1], c, bound, "gradient of w", k->name);
                        same(t, gb, wide[2], c, bound, "gradient of b", k->name);
                        if (with_z)
                            same(t, gz, wide[3], all, 0, "gradient of z", k->name);
                        if (first)
                            assert_memory_equal(gx, first, size_of(t) * (size_t)all);
                        else
                            first = copy_of(t, gx, all);
                        /* added: twice, of which half is exact to a rounding */
                        k->batch_norm_relu_grad(t, n, c, inner, gx, with_z ? gz : NULL, gw, gb, g, with_z ? y : NULL, x, w, b, mean, rstd, true, true, true, true,
                                                true);
                        for (int64_t i = 0; i < all; i++) {
                            put(t, gx, i, get(t, gx, i) / 2);
                            put(t, gz, i, with_z ? get(t, gz, i) / 2 : 0);
                        }
                        for (int64_t i = 0; i < c; i++)
                            put(t, gw, i, get(t, gw, i) / 2), put(t, gb, i, get(t, gb, i) / 2);
                        same(t, gx, wide[0], all, bound + 1, "gradient of x added", k->name);
                        same(t, gw, wide[1], c, bound + 1, "gradient of w added", k->name);
                        same(t, gb, wide[2], c, bound + 1, "gradient of b added", k->name);
                        if (with_z)
                            same(t, gz, wide[3], all, 0, "gradient of z added", k->name);
                        free(gx), free(gz), free(gw), free(gb);
                    }
                    free(first), free(y), free(mean), free(rstd), free(kept);
                    for (int i = 0; i < 4; i++)
                        free(wide[i]);
                }
            free(x), free(z), free(g), free(w), free(b);
        }
    omp_set_num_threads(before);
    nothing_left();
}

static void threads(void **state)
{
    (void)state;
    int before = omp_get_max_threads();
    static const int64_t shape[][3] = { { 5, 37, 301 }, { 1001, 37, 1 } };
    for (int s = 0; s < 2; s++) {
        int64_t n = shape[s][0], c = shape[s][1], inner = shape[s][2], all = n * c * inner;
        float *x = numbers(TD_F32, all, 1), *g = numbers(TD_F32, all, 2), *w = numbers(TD_F32, c, 3);
        EACH_TABLE(k) {
            float *y[2], *gx[2], *gw[2], *mean = array(TD_F32, c), *rstd = array(TD_F32, c);
            for (int i = 0; i < 2; i++) {
                omp_set_num_threads(i + 1);
                y[i] = array(TD_F32, all), gx[i] = array(TD_F32, all), gw[i] = array(TD_F32, c);
                k->batch_norm(TD_F32, n, c, inner, y[i], mean, rstd, x, w, w, NULL, NULL, true, 0.1, 1e-5);
                k->batch_norm_grad(TD_F32, n, c, inner, gx[i], gw[i], NULL, g, x, w, mean, rstd, true, false, false, false);
            }
            assert_memory_equal(y[0], y[1], sizeof(float) * (size_t)all);
            assert_memory_equal(gx[0], gx[1], sizeof(float) * (size_t)all);
            assert_memory_equal(gw[0], gw[1], sizeof(float) * (size_t)c);
            free(y[0]), free(y[1]), free(gx[0]), free(gx[1]), free(gw[0]), free(gw[1]), free(mean), free(rstd);
        }
        free(x), free(g), free(w);
    }
    omp_set_num_threads(before);
}

/* Images so large that results are written around the caches: the same bits as channel by channel, which are not. */
static void large(void **state)
{
    (void)state;
    enum { C = 6, INNER = 1100003, ALL = C * INNER };
    float *x = numbers(TD_F32, ALL, 1), *g = numbers(TD_F32, ALL, 2), *y = array(TD_F32, ALL), *gx = array(TD_F32, ALL), *gz = array(TD_F32, ALL);
    float *one = array(TD_F32, INNER), *two = array(TD_F32, INNER), w[C] = { 1, 2, 3, 4, 5, 6 }, mean[C], rstd[C], gw[C], gb[C], m, r;
    EACH_TABLE(k)
        for (int relu = 0; relu < 2; relu++) {
            if (relu) {
                k->batch_norm_relu(TD_F32, 1, C, INNER, y, mean, rstd, x, g, w, w, NULL, NULL, true, 0.1, 1e-5);
                k->batch_norm_relu_grad(TD_F32, 1, C, INNER, gx, gz, gw, gb, g, y, x, w, w, mean, rstd, true, false, false, false, false);
            } else {
                k->batch_norm(TD_F32, 1, C, INNER, y, mean, rstd, x, w, w, NULL, NULL, true, 0.1, 1e-5);
                k->batch_norm_grad(TD_F32, 1, C, INNER, gx, gw, gb, g, x, w, mean, rstd, true, false, false, false);
            }
            for (int c = 0; c < C; c++) {
                const float *xc = x + c * INNER, *gc = g + c * INNER;
                if (relu)
                    k->batch_norm_relu(TD_F32, 1, 1, INNER, one, &m, &r, xc, gc, w + c, w + c, NULL, NULL, true, 0.1, 1e-5);
                else
                    k->batch_norm(TD_F32, 1, 1, INNER, one, &m, &r, xc, w + c, w + c, NULL, NULL, true, 0.1, 1e-5);
                assert_true(m == mean[c] && r == rstd[c]);
                assert_memory_equal(one, y + c * INNER, sizeof(float) * INNER);
                float ow, ob;
                if (relu)
                    k->batch_norm_relu_grad(TD_F32, 1, 1, INNER, one, two, &ow, &ob, gc, y + c * INNER, xc, w + c, w + c, &m, &r, true, false, false, false, false);
                else
                    k->batch_norm_grad(TD_F32, 1, 1, INNER, one, &ow, &ob, gc, xc, w + c, &m, &r, true, false, false, false);
                assert_true(ow == gw[c] && ob == gb[c]);
                assert_memory_equal(one, gx + c * INNER, sizeof(float) * INNER);
                if (relu)
                    assert_memory_equal(two, gz + c * INNER, sizeof(float) * INNER);
            }
        }
    free(x), free(g), free(y), free(gx), free(gz), free(one), free(two);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(shapes), cmocka_unit_test(pieces), cmocka_unit_test(no_rows), cmocka_unit_test(far_from_zero),
                                        cmocka_unit_test(relu_gradient), cmocka_unit_test(large), cmocka_unit_test(threads) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
