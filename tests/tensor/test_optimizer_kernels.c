/* tests/tensor/test_optimizer_kernels.c: 100 steps of SGD and AdamW against PyTorch's formulas in double precision; the sum of squares. */
#include "image_kernels.h"

enum { N = 1237, STEPS = 100 };

/* What a step takes, of numbers that the host knows. */
#define STEP_OF(P, G, SCALE, LR) (&(td_step){ .p = (P), .g = (G), .gscale = td__number(SCALE), .lr = td__number(LR) })

/* a gradient that changes with the step and pulls towards a point */
static double slope(int64_t i, int step, double p)
{
    return p - sin((double)i) + 0.125 * (double)((i * 7 + step * 13) % 17 - 8);
}

/* the largest |p - q| over the norm of q per element */
static void close_to(td_dtype t, const void *p, const double *q, double bound, const char *what, const char *table)
{
    double diff = 0, norm = 0;
    for (int i = 0; i < N; i++) {
        diff += (get(t, p, i) - q[i]) * (get(t, p, i) - q[i]);
        norm += q[i] * q[i];
    }
    if (!(sqrt(diff) <= bound * sqrt(norm)))
        fail_msg("%s, %s, %s: relative distance %g", what, table, t == TD_F32 ? "f32" : "f64", sqrt(diff / norm));
}

static void sgd(void **state)
{
    (void)state;
    static const struct { double momentum, damp, decay; bool nesterov; } mode[] = {
        { 0, 0, 0, false }, { 0, 0, 0.01, false }, { 0.9, 0, 0, false }, { 0.9, 0.25, 0.01, false }, { 0.9, 0, 0.01, true },
    };
    const double lr = 0.05, scale = 0.5;
    for (size_t c = 0; c < TD_COUNT(mode); c++)
        for (td_dtype t = TD_F32; t <= TD_F64; t++)
            EACH_TABLE(k) {
                void *p = numbers(t, N, 1), *g = array(t, N), *v = numbers(t, N, 9);   /* v's first contents must not matter */
                double *q = zeroes(N), *u = zeroes(N);
                for (int i = 0; i < N; i++)
                    q[i] = get(t, p, i);
                for (int s = 0; s < STEPS; s++) {
                    for (int i = 0; i < N; i++) {
                        put(t, g, i, slope(i, s, q[i]) / scale);
                        double d = get(t, g, i) * scale + mode[c].decay * q[i];
                        u[i] = s == 0 ? d : mode[c].momentum * u[i] + (1 - mode[c].damp) * d;
                        q[i] -= lr * (mode[c].momentum == 0 ? d : mode[c].nesterov ? d + mode[c].momentum * u[i] : u[i]);
                    }
                    k->sgd(t, N, STEP_OF(p, g, scale, lr), mode[c].momentum == 0 ? NULL : v, mode[c].momentum, mode[c].damp, mode[c].decay, mode[c].nesterov,
                           s == 0);
                }
                close_to(t, p, q, t == TD_F32 ? 2e-6 : 1e-14, "sgd", k->name);
                free(p), free(g), free(v), free(q), free(u);
            }
}

static void adamw(void **state)
{
    (void)state;
    const double lr = 0.02, b1 = 0.9, b2 = 0.99, eps = 1e-8, decay = 0.1, scale = 2;
    for (td_dtype t = TD_F32; t <= TD_F64; t++)
        EACH_TABLE(k) {
            void *p = numbers(t, N, 1), *g = array(t, N), *m = array(t, N), *v = array(t, N);
            double *q = zeroes(N), *mq = zeroes(N), *vq = zeroes(N);
            memset(m, 0, size_of(t) * N);
            memset(v, 0, size_of(t) * N);
            for (int i = 0; i < N; i++)
                q[i] = get(t, p, i);
            for (int s = 1; s <= STEPS; s++) {
                for (int i = 0; i < N; i++) {
                    put(t, g, i, slope(i, s, q[i]) / scale);
                    double d = get(t, g, i) * scale;
                    q[i] -= lr * decay * q[i];
                    mq[i] = b1 * mq[i] + (1 - b1) * d;
                    vq[i] = b2 * vq[i] + (1 - b2) * d * d;
                    q[i] -= lr / (1 - pow(b1, s)) * mq[i] / (sqrt(vq[i]) / sqrt(1 - pow(b2, s)) + eps);
                }
                k->adamw(t, N, STEP_OF(p, g, scale, lr), m, v, b1, b2, eps, decay, td__number(1 - pow(b1, s)), td__number(1 - pow(b2, s)));
            }
            close_to(t, p, q, t == TD_F32 ? 3e-6 : 1e-14, "adamw", k->name);
            close_to(t, m, mq, t == TD_F32 ? 1e-6 : 1e-14, "adamw m", k->name);
            close_to(t, v, vq, t == TD_F32 ? 1e-6 : 1e-14, "adamw v", k->name);
            free(p), free(g), free(m), free(v), free(q), free(mq), free(vq);
        }
}

static void sumsq(void **state)
{
    (void)state;
    static const int64_t size[] = { 0, 1, 15, 16, 17, 1024, 1025, 300007 };
    int before = omp_get_max_threads();
    for (td_dtype t = TD_F32; t <= TD_F64; t++)
        for (size_t j = 0; j < TD_COUNT(size); j++) {
            int64_t n = size[j];
            void *x = numbers(t, n, 3);
            long double want = 0;
            for (int64_t i = 0; i < n; i++)
                want += (long double)get(t, x, i) * get(t, x, i);
            EACH_TABLE(k) {
                omp_set_num_threads(1);
                double one, two;
                const void *list[] = { x };
                k->sumsq(t, 1, &n, list, &one, false);
                omp_set_num_threads(2);
                k->sumsq(t, 1, &n, list, &two, false);
                assert_true(one == two);
                assert_true(fabsl(one - want) <= 1e-13L * want);
            }
            free(x);
        }
    omp_set_num_threads(before);
}

static void threads(void **state)
{
    (void)state;
    enum { M = 100003 };
    int before = omp_get_max_threads();
    float *g = numbers(TD_F32, M, 1);
    EACH_TABLE(k) {
        float *p[2], *m[2], *v[2];
        for (int i = 0; i < 2; i++) {
            omp_set_num_threads(i + 1);
            p[i] = numbers(TD_F32, M, 2), m[i] = numbers(TD_F32, M, 3), v[i] = array(TD_F32, M);
            for (int j = 0; j < M; j++)
                v[i][j] = m[i][j] * m[i][j];
            k->sgd(TD_F32, M, STEP_OF(p[i], g, 1, 0.1), m[i], 0.9, 0, 0.01, true, false);
            k->adamw(TD_F32, M, STEP_OF(p[i], g, 1, 0.1), m[i], v[i], 0.9, 0.999, 1e-8, 0.01, td__number(0.1), td__number(0.001));
        }
        assert_memory_equal(p[0], p[1], sizeof(float) * M);
        assert_memory_equal(m[0], m[1], sizeof(float) * M);
        assert_memory_equal(v[0], v[1], sizeof(float) * M);
        for (int i = 0; i < 2; i++)
            free(p[i]), free(m[i]), free(v[i]);
    }
    free(g);
    omp_set_num_threads(before);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(sgd), cmocka_unit_test(adamw), cmocka_unit_test(sumsq), cmocka_unit_test(threads) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
