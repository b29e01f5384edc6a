/* tests/tensor/test_optimizer_rules_kernels.c: the kernels of Adam, RMSprop, Adagrad, Lion, LAMB, LARS and of moving averages, each table:
 * one step from many states against the formulas in double (100 steps: tests/optim); sums of squares; threads change no bit; nothing
 * is touched beyond n.
 */
#include "image_kernels.h"

static const int64_t sizes[] = { 0, 1, 7, 16, 17, 1024, 1237, 5003 };
enum { MOMENTS = 3 };

/* What a step takes, of numbers that the host knows. */
#define STEP_OF(P, G, SCALE, LR) (&(td_step){ .p = (P), .g = (G), .gscale = td__number(SCALE), .lr = td__number(LR) })

typedef struct { td_dtype t; int64_t n; void *p, *g, *s[MOMENTS]; double *wp, *wg, *ws[MOMENTS]; } job;

/* p and g of any sign; state: s[0] of any sign (a mean), s[1] above its square, s[2] above 0 */
static job begin(td_dtype t, int64_t n)
{
    job j = { .t = t, .n = n, .p = numbers(t, n, 1), .g = numbers(t, n, 2), .s = { numbers(t, n, 3), numbers(t, n, 4), numbers(t, n, 5) },
              .wp = zeroes(n), .wg = zeroes(n), .ws = { zeroes(n), zeroes(n), zeroes(n) } };
    for (int64_t i = 0; i < n; i++) {
        put(t, j.s[1], i, get(t, j.s[0], i) * get(t, j.s[0], i) + 0.25 * (get(t, j.s[1], i) + 1.5));
        put(t, j.s[2], i, get(t, j.s[2], i) + 1.25);
        j.wp[i] = get(t, j.p, i);
        j.wg[i] = get(t, j.g, i);
        for (int m = 0; m < MOMENTS; m++)
            j.ws[m][i] = get(t, j.s[m], i);
    }
    return j;
}

/* The bound is in roundings: a step is a dozen operations on numbers of about 1 to 30. */
static void end(job *j, const char *what, const char *table)
{
    same(j->t, j->p, j->wp, j->n, 16, what, table);
    for (int m = 0; m < MOMENTS; m++) {
        same(j->t, j->s[m], j->ws[m], j->n, 8, what, table);
        free(j->s[m]), free(j->ws[m]);
    }
    free(j->p), free(j->g), free(j->wp), free(j->wg);
}

#define EACH(t, n, k)                                                                                        \
    for (td_dtype t = TD_F32; t <= TD_F64; t++)                                                              \
        for (size_t at = 0; at < TD_COUNT(sizes); at++)                                                      \
            for (int64_t n = sizes[at], once_ = 1; once_; once_ = 0)                                         \
                EACH_TABLE(k)

static void adam(void **state)
{
    (void)state;
    const double scale = 0.5, lr = 0.25, b1 = 0.875, b2 = 0.75, eps = 0.0625, decay = 0.125, bias1 = 0.5, bias2 = 0.75;
    EACH(t, n, k) {
        job j = begin(t, n);
        for (int64_t i = 0; i < n; i++) {
            double d = scale * j.wg[i] + decay * j.wp[i];
            j.ws[0][i] = b1 * j.ws[0][i] + (1 - b1) * d;
            j.ws[2][i] = b2 * j.ws[2][i] + (1 - b2) * d * d;
            j.wp[i] -= lr * (j.ws[0][i] / bias1) / (sqrt(j.ws[2][i] / bias2) + eps);
        }
        k->adam(t, n, STEP_OF(j.p, j.g, scale, lr), j.s[0], j.s[2], b1, b2, eps, decay, td__number(bias1), td__number(bias2));
        end(&j, "adam", k->name);
    }
}

static void rmsprop(void **state)
{
    (void)state;
    const double scale = 2, lr = 0.25, alpha = 0.875, eps = 0.0625, decay = 0.125, momentum = 0.75;
    for (int mode = 0; mode < 4; mode++)
        EACH(t, n, k) {
            job j = begin(t, n);
            for (int64_t i = 0; i < n; i++) {
                double d = scale * j.wg[i] + decay * j.wp[i];
                double square = j.ws[1][i] = alpha * j.ws[1][i] + (1 - alpha) * d * d;
                if (mode & 1) {
                    j.ws[0][i] = alpha * j.ws[0][i] + (1 - alpha) * d;
                    square -= j.ws[0][i] * j.ws[0][i];
                }
                d /= sqrt(square) + eps;
                if (mode & 2)
                    d = j.ws[2][i] = momentum * j.ws[2][i] + d;
                j.wp[i] -= lr * d;
            }
            k->rmsprop(t, n, STEP_OF(j.p, j.g, scale, lr), j.s[1], mode & 2 ? j.s[2] : NULL, mode & 1 ? j.s[0] : NULL, alpha, eps, decay,
                       mode & 2 ? momentum : 0);
            end(&j, "rmsprop", k->name);
        }
}

/* The same gradient again and again: the spread is nothing but rounding errors, of either sign, and must not become NaN. */
static void rmsprop_of_a_constant(void **state)
{
    (void)state;
    enum { N = 300 };
    for (td_dtype t = TD_F32; t <= TD_F64; t++)
        EACH_TABLE(k) {
            void *p = array(t, N), *g = numbers(t, N, 6), *s = array(t, N), *a = array(t, N);
            for (int i = 0; i < N; i++) {
                put(t, p, i, 0);
                put(t, a, i, get(t, g, i) * 1.1 / 1.1);
                put(t, s, i, get(t, a, i) * get(t, a, i) * (1 - 1e-7));
            }
            for (int step = 0; step < 50; step++)
                k->rmsprop(t, N, STEP_OF(p, g, 1.1, 1e-6), s, NULL, a, 0.1, 1e-8, 0, 0);
            for (int i = 0; i < N; i++)
                assert_true(isfinite(get(t, p, i)));
            free(p), free(g), free(s), free(a);
        }
}

static void adagrad(void **state)
{
    (void)state;
    const double scale = 0.5, lr = 0.25, eps = 0.0625, decay = 0.125, initial = 0.375;
    for (int first = 0; first < 2; first++)
        EACH(t, n, k) {
            job j = begin(t, n);
            for (int64_t i = 0; i < n; i++) {
                double d = scale * j.wg[i] + decay * j.wp[i];
                j.ws[2][i] = (first ? initial : j.ws[2][i]) + d * d;
                j.wp[i] -= lr * d / (sqrt(j.ws[2][i]) + eps);
            }
            k->adagrad(t, n, STEP_OF(j.p, j.g, scale, lr), j.s[2], eps, decay, first, initial);
            end(&j, "adagrad", k->name);
        }
}

/* Coefficients are powers of two and inputs multiples of 1/256, so that signs are exact, the one of 0 among them. */
static void lion(void **state)
{
    (void)state;
    const double scale = 0.5, lr = 0.25, b1 = 0.5, b2 = 0.75, decay = 0.125;
    EACH(t, n, k) {
        job j = begin(t, n);
        if (n > 20) {                                  /* c = 0 in one element, in a vector and in the tail */
            put(t, j.s[0], 3, j.ws[0][3] = -scale * j.wg[3]);
            put(t, j.s[0], n - 1, j.ws[0][n - 1] = -scale * j.wg[n - 1]);
        }
        for (int64_t i = 0; i < n; i++) {
            double d = scale * j.wg[i], c = b1 * j.ws[0][i] + (1 - b1) * d;
            j.ws[0][i] = b2 * j.ws[0][i] + (1 - b2) * d;
            j.wp[i] -= lr * ((double)((c > 0) - (c < 0)) + decay * j.wp[i]);
        }
        k->lion(t, n, STEP_OF(j.p, j.g, scale, lr), j.s[0], b1, b2, decay);
        end(&j, "lion", k->name);
    }
}

static void ema(void **state)
{
    (void)state;
    EACH(t, n, k) {
        job j = begin(t, n);
        for (int64_t i = 0; i < n; i++)
            j.wp[i] = 0.96 * j.wp[i] + (1 - 0.96) * j.wg[i];
        k->ema(t, n, j.p, j.g, 0.96);
        end(&j, "ema", k->name);
    }
}

static void lamb(void **state)
{
    (void)state;
    const double scale = 2, b1 = 0.875, b2 = 0.75, eps = 0.0625, decay = 0.125, bias1 = 0.5, bias2 = 0.75, rate = 0.375;
    EACH(t, n, k) {
        job j = begin(t, n);
        double got[2], want[2] = { 0 };
        for (int64_t i = 0; i < n; i++) {
            double d = scale * j.wg[i];
            j.ws[0][i] = b1 * j.ws[0][i] + (1 - b1) * d;
            j.ws[2][i] = b2 * j.ws[2][i] + (1 - b2) * d * d;
            double u = j.ws[0][i] / bias1 / (sqrt(j.ws[2][i] / bias2) + eps) + decay * j.wp[i];
            want[0] += j.wp[i] * j.wp[i];
            want[1] += u * u;
            j.wp[i] -= rate * u;
        }
        const td_step *step = STEP_OF(j.p, j.g, scale, rate / (sqrt(want[0]) / sqrt(want[1])));
        k->lamb_moments(t, n, step, j.s[0], j.s[2], b1, b2, eps, decay, td__number(bias1), td__number(bias2), got);
        assert_true(fabs(got[0] - want[0]) <= 1e-13 * want[0]);        /* p is exact in both dtypes */
        assert_true(fabs(got[1] - want[1]) <= (t == TD_F32 ? 1e-6 : 1e-13) * want[1]);
        k->lamb(t, n, step, j.s[0], j.s[2], got, eps, decay, td__number(bias1), td__number(bias2));
        end(&j, "lamb", k->name);
    }
}

static void lars(void **state)
{
    (void)state;
    const double scale = 0.5, rate = 0.25, momentum = 0.75, decay = 0.125;
    for (int has_v = 0; has_v < 2; has_v++)
        EACH(t, n, k) {
            job j = begin(t, n);
            for (int64_t i = 0; i < n; i++) {
                double d = rate * (scale * j.wg[i] + decay * j.wp[i]);
                if (has_v)
                    d = j.ws[0][i] = momentum * j.ws[0][i] + d;
                j.wp[i] -= d;
            }
            k->lars(t, n, STEP_OF(j.p, j.g, scale, rate), has_v ? j.s[0] : NULL, NULL, 0, momentum, decay);
            end(&j, "lars", k->name);
        }
}

/* Every kernel once on the same numbers; all tables and numbers of threads give the same bits. */
static void run_all(const td_kernels *k, td_dtype t, job *j, double squares[2])
{
    int64_t n = j->n;
    k->adam(t, n, STEP_OF(j->p, j->g, 0.3, 0.1), j->s[0], j->s[1], 0.9, 0.99, 1e-8, 0.01, td__number(0.1), td__number(0.01));
    k->rmsprop(t, n, STEP_OF(j->p, j->g, 0.3, 0.1), j->s[1], j->s[2], j->s[0], 0.9, 1e-8, 0.01, 0.7);
    k->rmsprop(t, n, STEP_OF(j->p, j->g, 0.3, 0.1), j->s[1], j->s[2], NULL, 0.9, 1e-8, 0.01, 0.7);
    k->adagrad(t, n, STEP_OF(j->p, j->g, 0.3, 0.1), j->s[1], 1e-8, 0.01, false, 0);
    k->lion(t, n, STEP_OF(j->p, j->g, 0.3, 0.1), j->s[0], 0.9, 0.99, 0.01);
    k->lamb_moments(t, n, STEP_OF(j->p, j->g, 0.3, 0.1), j->s[0], j->s[1], 0.9, 0.99, 1e-6, 0.01, td__number(0.1), td__number(0.01), squares);
    k->lamb(t, n, STEP_OF(j->p, NULL, 1, 0.1), j->s[0], j->s[1], squares, 1e-6, 0.01, td__number(0.1), td__number(0.01));
    k->lars(t, n, STEP_OF(j->p, j->g, 0.3, 0.1), j->s[2], squares, 0.01, 0.9, 0.01);
    k->ema(t, n, j->s[2], j->p, 0.99);
}

static void threads_and_tables(void **state)
{
    (void)state;
    enum { M = 100003 };
    int before = omp_get_max_threads();
    for (td_dtype t = TD_F32; t <= TD_F64; t++) {
        job first = { 0 };
        double squares[2] = { 0 };
        EACH_TABLE(k)
            for (int threads = 1; threads <= 3; threads++) {
                omp_set_num_threads(threads);
                job j = begin(t, M);
                double now[2];
                run_all(k, t, &j, now);
                if (!first.p) {
                    first = j;
                    memcpy(squares, now, sizeof now);
                    continue;
                }
                assert_memory_equal(squares, now, sizeof now);
                assert_memory_equal(first.p, j.p, size_of(t) * M);
                for (int m = 0; m < MOMENTS; m++)
                    assert_memory_equal(first.s[m], j.s[m], size_of(t) * M);
                for (int m = 0; m < MOMENTS; m++)
                    free(j.s[m]), free(j.ws[m]);
                free(j.p), free(j.g), free(j.wp), free(j.wg);
            }
        for (int m = 0; m < MOMENTS; m++)
            free(first.s[m]), free(first.ws[m]);
        free(first.p), free(first.g), free(first.wp), free(first.wg);
    }
    omp_set_num_threads(before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adam), cmocka_unit_test(rmsprop), cmocka_unit_test(rmsprop_of_a_constant), cmocka_unit_test(adagrad),
        cmocka_unit_test(lion), cmocka_unit_test(ema), cmocka_unit_test(lamb), cmocka_unit_test(lars), cmocka_unit_test(threads_and_tables),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
