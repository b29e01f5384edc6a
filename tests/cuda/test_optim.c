/* tests/cuda/test_optim.c: the kernels that no operation calls (optimizers, norms of gradients, combine, the pieces of a batch norm over several
 * ranks), emulated, beside the CPU's, over several steps, at odd sizes, and from addresses that 16-byte loads cannot use.
 *
 * A rule's element sees no sum and no fused multiply-add on either side, so the bits must agree. Sums of squares are in double in
 * another order: to 1e-14 of themselves.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <kernels.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

extern const td_kernels td__cuda_kernels;
static const td_kernels *gpu = &td__cuda_kernels;
static const td_kernels *cpu;

enum { MOST = 20011, ARRAYS = 5, STEPS = 3 };
static const int64_t size_of[] = { 0, 1, 3, 31, 257, 1025, MOST };
static const td_dtype dtype_of[] = { TD_F32, TD_F64 };

/* Two copies of the same arrays: p, g, and three numbers of state; shift elements from an aligned address */
typedef struct { td_dtype t; int64_t n; size_t bytes; char *room[2][ARRAYS]; void *of[2][ARRAYS]; } twins;

static double number(uint64_t *state)              /* in [-2, 2], with full mantissas */
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)*state / 4611686018427387904.0;
}

static void put(td_dtype t, void *p, int64_t i, double v)
{
    if (t == TD_F32)
        ((float *)p)[i] = (float)v;
    else
        ((double *)p)[i] = v;
}

static double get(td_dtype t, const void *p, int64_t i)
{
    return t == TD_F32 ? (double)((const float *)p)[i] : ((const double *)p)[i];
}

static void make(twins *w, td_dtype t, int64_t n, int shift)
{
    uint64_t state = (uint64_t)(n * 8 + shift + 1);
    w->t = t, w->n = n, w->bytes = td_dtype_size(t) * (size_t)n;
    for (int a = 0; a < ARRAYS; a++) {
        for (int k = 0; k < 2; k++) {
            w->room[k][a] = aligned_alloc(64, (w->bytes + 2 * 64) / 64 * 64);
            assert_non_null(w->room[k][a]);
            w->of[k][a] = w->room[k][a] + (size_t)shift * td_dtype_size(t);
        }
        for (int64_t i = 0; i < n; i++)
            put(t, w->of[0][a], i, a < 2 ? number(&state) : 0);
        if (n)
            memcpy(w->of[1][a], w->of[0][a], w->bytes);
    }
}

static void next_gradient(twins *w, int step)
{
    uint64_t state = (uint64_t)(w->n + 1000 * step);
    for (int64_t i = 0; i < w->n; i++) {
        put(w->t, w->of[0][1], i, number(&state));
        put(w->t, w->of[1][1], i, get(w->t, w->of[0][1], i));
    }
}

static void same(const twins *w, const char *what)
{
    for (int a = 0; a < ARRAYS; a++)
        for (int64_t i = 0; i < w->n; i++) {
            double g = get(w->t, w->of[0][a], i), c = get(w->t, w->of[1][a], i);
            if (memcmp(&g, &c, sizeof g) != 0)
                fail_msg("%s %s, %lld elements: array %d, element %lld is %.17g, expected %.17g", what, td_dtype_name(w->t), (long long)w->n, a,
                         (long long)i, g, c);
        }
}

static void drop(twins *w)
{
    for (int k = 0; k < 2; k++)
        for (int a = 0; a < ARRAYS; a++)
            free(w->room[k][a]);
}

static void close_to(double got, double want, const char *what)
{
    if (!(fabs(got - want) <= 1e-14 * fabs(want)))
        fail_msg("%s is %.17g, expected %.17g", what, got, want);
}

/* One step of rule number r; false: there is no such rule */
static bool step_of(const td_kernels *k, int r, int step, td_dtype t, int64_t n, void **a, const char **name)
{
    const double b1 = 1 - pow(0.9, step + 1), b2 = 1 - pow(0.99, step + 1);
    static const char *const names[] = { "sgd", "sgd momentum", "sgd nesterov", "adamw", "adam", "rmsprop", "rmsprop momentum", "rmsprop centered",
                                         "rmsprop both", "adagrad", "lion", "ema", "lars", "lars momentum", "lamb" };
    *name = names[r];
    const td_number bias1 = td__number(b1), bias2 = td__number(b2);
    const td_step slow = { .p = a[0], .g = a[1], .gscale = td__number(0.5), .lr = td__number(0.01) };
    td_step fast = slow;
    fast.lr.by = 0.1;
    switch (r) {
    case 0: k->sgd(t, n, &fast, NULL, 0, 0, 0.01, false, false); return true;
    case 1: k->sgd(t, n, &fast, a[2], 0.9, 0.3, 0.01, false, step == 0); return true;
    case 2: k->sgd(t, n, &fast, a[2], 0.9, 0, 0.01, true, step == 0); return true;
    case 3: k->adamw(t, n, &slow, a[2], a[3], 0.9, 0.99, 1e-8, 0.1, bias1, bias2); return true;
    case 4: k->adam(t, n, &slow, a[2], a[3], 0.9, 0.99, 1e-8, 0.1, bias1, bias2); return true;
    case 5: k->rmsprop(t, n, &slow, a[2], NULL, NULL, 0.9, 1e-8, 0.1, 0); return true;
    case 6: k->rmsprop(t, n, &slow, a[2], a[3], NULL, 0.9, 1e-8, 0.1, 0.8); return true;
    case 7: k->rmsprop(t, n, &slow, a[2], NULL, a[4], 0.9, 1e-8, 0.1, 0); return true;
    case 8: k->rmsprop(t, n, &slow, a[2], a[3], a[4], 0.9, 1e-8, 0.1, 0.8); return true;
    case 9: k->adagrad(t, n, &fast, a[2], 1e-10, 0.1, step == 0, 0.25); return true;
    case 10: k->lion(t, n, &slow, a[2], 0.9, 0.99, 0.1); return true;
    case 11: k->ema(t, n, a[0], a[1], 0.9); return true;
    case 12: k->lars(t, n, &fast, NULL, NULL, 0, 0, 0.01); return true;
    case 13: k->lars(t, n, &fast, a[2], (const double[]){ 3, 0.7 }, 0.3, 0.9, 0.01); return true;
    default: k->lamb(t, n, &fast, a[2], a[3], (const double[]){ 3, 0.7 }, 1e-6, 0.01, bias1, bias2); return true;
    }
}

static void moments_of(const td_kernels *k, twins *w, int side, double *squares)
{
    const td_step s = { .p = w->of[side][0], .g = w->of[side][1], .gscale = td__number(0.5) };
    k->lamb_moments(w->t, w->n, &s, w->of[side][2], w->of[side][3], 0.9, 0.99, 1e-6, 0.01, td__number(0.1), td__number(0.01), squares);
}

static double squares_of(const td_kernels *k, td_dtype t, int64_t n, const void *x)
{
    double sum;
    k->sumsq(t, 1, &n, &x, &sum, false);
    return sum;
}

static void test_rules(void **state)
{
    (void)state;
    for (size_t d = 0; d < 2; d++)
        for (size_t s = 0; s < sizeof size_of / sizeof *size_of; s++)
            for (int shift = 0; shift < 2; shift++)
                for (int r = 0; r < 15; r++) {
                    const char *name;
                    twins w;
                    if (shift && size_of[s] == MOST)
                        continue;
                    make(&w, dtype_of[d], size_of[s], shift);
                    for (int step = 0; step < STEPS; step++) {
                        next_gradient(&w, step);
                        for (int k = 0; k < 2; k++) {
                            double unused[2];
                            if (r == 14)
                                moments_of(cpu, &w, k, unused);
                            step_of(k ? cpu : gpu, r, step, w.t, w.n, w.of[k], &name);
                        }
                        same(&w, name);
                    }
                    drop(&w);
                }
}

static void test_squares(void **state)
{
    (void)state;
    for (size_t d = 0; d < 2; d++)
        for (size_t s = 0; s < sizeof size_of / sizeof *size_of; s++)
            for (int shift = 0; shift < 2; shift++) {
                twins w;
                double got[2], want[2];
                make(&w, dtype_of[d], size_of[s], shift);
                close_to(squares_of(gpu, w.t, w.n, w.of[0][0]), squares_of(cpu, w.t, w.n, w.of[1][0]), "sumsq");
                for (int step = 0; step < STEPS; step++) {
                    next_gradient(&w, step);
                    moments_of(gpu, &w, 0, got);
                    moments_of(cpu, &w, 1, want);
                    same(&w, "lamb_moments");
                    close_to(got[0], want[0], "the sum of squares of p");
                    close_to(got[1], want[1], "the sum of squares of the update");
                }
                drop(&w);
            }
    const double bad[] = { 1, NAN, 2 };
    assert_true(isnan(squares_of(gpu, TD_F64, 3, bad)));
}

/* k inputs, some with the factor 0 and NaN in them; the first output is the last input */
static void combine_case(td_dtype t, td_combine op, int64_t n, int k, bool factors, double post)
{
    enum { INPUTS = 200 };
    static double value[2][INPUTS][70], other[2][70];
    const void *in[2][INPUTS] = { { 0 } };
    double pre[INPUTS] = { 0 };
    uint64_t state = (uint64_t)(n + k);
    for (int r = 0; r < k; r++) {
        pre[r] = r % 5 == 1 ? 0 : 1 + r % 3 * 0.5;
        for (int64_t i = 0; i < n; i++) {
            double v = number(&state) * 4;
            if (t == TD_I64)
                ((int64_t *)value[0][r])[i] = (int64_t)(v * 1e3);
            else if (t == TD_I32)
                ((int32_t *)value[0][r])[i] = (int32_t)(v * 1e3);
            else
                put(t, value[0][r], i, factors && pre[r] == 0 ? (double)NAN : v);
        }
        memcpy(value[1][r], value[0][r], sizeof value[0][r]);
        in[0][r] = value[0][r];
        in[1][r] = value[1][r];
    }
    memset(other, 0, sizeof other);
    for (int side = 0; side < 2; side++) {
        void *out[] = { k ? (void *)value[side][k - 1] : (void *)other[side], other[side] };
        (side ? cpu : gpu)->combine(t, op, n, k, in[side], factors ? pre : NULL, post, out, 2);
    }
    assert_memory_equal(other[0], other[1], td_dtype_size(t) * (size_t)n);
    if (k)
        assert_memory_equal(value[0][k - 1], value[1][k - 1], td_dtype_size(t) * (size_t)n);
}

static void test_combine(void **state)
{
    (void)state;
    static const td_dtype all[] = { TD_F32, TD_F64, TD_I64, TD_I32 };
    static const int inputs[] = { 1, 2, 3, 4, 5, 9, 200 };
    for (size_t d = 0; d < 4; d++)
        for (size_t k = 0; k < sizeof inputs / sizeof *inputs; k++)
            for (int op = TD_COMBINE_SUM; op <= TD_COMBINE_MAX; op++)
                for (int factors = 0; factors < 2; factors++)
                    combine_case(all[d], (td_combine)op, 67, inputs[k], factors && op == TD_COMBINE_SUM, factors ? 0.25 : 1);
}

/* The pieces of a batch norm over several ranks: tables in host memory */
static void pieces(td_dtype t, int64_t n, int64_t c, int64_t inner)
{
    enum { ROOM = 40000, C = 64 };
    static double x[ROOM], g[ROOM], y[2][ROOM];
    double first[2][C], second[2][C], mean[C], a[C], b[C], d[C];
    uint64_t state = (uint64_t)(n * c * inner);
    const double eps = t == TD_F32 ? 1e-6 : 1e-14;
    for (int64_t i = 0; i < n * c * inner; i++) {
        put(t, x, i, number(&state) + 3);
        put(t, g, i, number(&state));
        put(t, y[0], i, number(&state));
    }
    memcpy(y[1], y[0], sizeof y[0]);
    for (int64_t k = 0; k < c; k++)
        mean[k] = 2.5 + 0.01 * (double)k, a[k] = number(&state), b[k] = number(&state), d[k] = number(&state);
    for (int gradient = 0; gradient < 2; gradient++) {
        gpu->batch_norm_pair(t, n, c, inner, x, gradient ? g : NULL, gradient ? mean : NULL, first[0], second[0]);
        cpu->batch_norm_pair(t, n, c, inner, x, gradient ? g : NULL, gradient ? mean : NULL, first[1], second[1]);
        for (int64_t k = 0; k < c; k++) {              /* of numbers of about 1: sums may cancel */
            assert_true(fabs(first[0][k] - first[1][k]) <= 1e-14 * (double)(n * inner + 1));
            assert_true(fabs(second[0][k] - second[1][k]) <= 1e-14 * (double)(n * inner + 1) * 16);
        }
    }
    for (int two = 0; two < 2; two++) {
        gpu->batch_norm_affine(t, n, c, inner, y[0], x, two ? g : NULL, a, b, d, two != 0);
        cpu->batch_norm_affine(t, n, c, inner, y[1], x, two ? g : NULL, a, b, d, two != 0);
        for (int64_t i = 0; i < n * c * inner; i++)
            assert_true(fabs(get(t, y[0], i) - get(t, y[1], i)) <= eps * 16);
    }
}

static void test_pieces(void **state)
{
    (void)state;
    for (size_t d = 0; d < 2; d++) {
        pieces(dtype_of[d], 1, 1, 1);
        pieces(dtype_of[d], 600, 35, 1);                /* columns, several parts */
        pieces(dtype_of[d], 3, 5, 49);
        pieces(dtype_of[d], 6, 2, 3200);                /* packs, several parts */
        pieces(dtype_of[d], 3, 1, 9001);
    }
}

int main(void)
{
    cpu = td__cpu_kernels();
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_rules), cmocka_unit_test(test_squares), cmocka_unit_test(test_combine),
                                        cmocka_unit_test(test_pieces) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
