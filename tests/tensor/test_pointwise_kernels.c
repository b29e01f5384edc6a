/* Bits of the pointwise kernels, log-softmax and the losses of nll.c: the same for a value at every position and length, and for every
 * number of threads, on every instruction set of this processor.
 */
#include "tensor_test.h"
#include <kernels.h>
#include <math.h>
#include <omp.h>

static td_loop line(int64_t n)
{
    td_loop l = { .ndim = 1, .dim = { n }, .stride = { { 1 }, { 1 }, { 1 }, { 1 } } };
    return l;
}

typedef struct { const td_kernels *k; td_dtype t; const void *x, *g, *y, *mask; const int64_t *target; } work;
typedef void family(const work *w, int64_t n, void *out);

/* functions of one element, each as (x, g, y, mask) -> out */
#define FAMILY(name, CALL)                                                                                   \
    static void name(const work *w, int64_t n, void *out)                                                    \
    {                                                                                                        \
        const td_kernels *k = w->k;                                                                          \
        const td_loop l = line(n);                                                                           \
        CALL;                                                                                                \
    }
FAMILY(f_silu, k->silu(&l, w->t, out, w->x, false))
FAMILY(f_silu_grad, k->silu_grad(&l, w->t, out, w->g, w->x, false))
FAMILY(f_gelu_tanh, k->gelu_tanh(&l, w->t, out, w->x, false))
FAMILY(f_gelu_tanh_grad, k->gelu_tanh_grad(&l, w->t, out, w->g, w->x, false))
FAMILY(f_exp, k->exp(&l, w->t, out, w->x, false))
FAMILY(f_exp_grad, k->exp_grad(&l, w->t, out, w->g, w->x, false))
FAMILY(f_ln, k->ln(&l, w->t, out, w->x, false))
FAMILY(f_ln_grad, k->ln_grad(&l, w->t, out, w->g, w->x, false))
FAMILY(f_sqrt, k->sqrt(&l, w->t, out, w->x, false))
FAMILY(f_sqrt_grad, k->sqrt_grad(&l, w->t, out, w->g, w->x, false))
FAMILY(f_abs, k->abs(&l, w->t, out, w->x))
FAMILY(f_abs_grad, k->abs_grad(&l, w->t, out, w->g, w->x, false))
FAMILY(f_pow_half, k->pow(&l, w->t, out, w->x, 0.5))
FAMILY(f_pow_cube, k->pow(&l, w->t, out, w->x, 3))
FAMILY(f_pow, k->pow(&l, w->t, out, w->x, 1.7))
FAMILY(f_pow_whole, k->pow(&l, w->t, out, w->x, -5))
FAMILY(f_pow_grad, k->pow_grad(&l, w->t, out, w->g, w->x, 1.7, false))
FAMILY(f_clamp, k->clamp(&l, w->t, out, w->x, -0.1, 0.2))
FAMILY(f_clamp_grad, k->clamp_grad(&l, w->t, out, w->g, w->x, -0.1, 0.2, false))
FAMILY(f_maximum, k->maximum(&l, w->t, out, w->x, w->y))
FAMILY(f_minimum, k->minimum(&l, w->t, out, w->x, w->y))
FAMILY(f_extreme_grad, k->extreme_grad(&l, w->t, out, w->g, w->x, w->y, false))
FAMILY(f_where, k->where(&l, w->t, out, w->mask, w->x, w->y))
FAMILY(f_where_grad, k->where_grad(&l, w->t, out, w->mask, w->g, false, false))
static const struct { const char *name; family *f; } families[] = {
    { "gelu_tanh", f_gelu_tanh }, { "gelu_tanh_grad", f_gelu_tanh_grad },
    { "silu", f_silu }, { "silu_grad", f_silu_grad }, { "exp", f_exp }, { "exp_grad", f_exp_grad }, { "ln", f_ln }, { "ln_grad", f_ln_grad },
    { "sqrt", f_sqrt }, { "sqrt_grad", f_sqrt_grad }, { "abs", f_abs }, { "abs_grad", f_abs_grad }, { "pow 0.5", f_pow_half },
    { "pow 3", f_pow_cube }, { "pow 1.7", f_pow }, { "pow -5", f_pow_whole }, { "pow_grad 1.7", f_pow_grad }, { "clamp", f_clamp },
    { "clamp_grad", f_clamp_grad }, { "maximum", f_maximum }, { "minimum", f_minimum }, { "extreme_grad", f_extreme_grad },
    { "where", f_where }, { "where_grad", f_where_grad },
};

static const double probes[] = { 0.3, -1.7, 5.125, -20.5, 88.9, -104, 1e-6, 0 };

static void same_everywhere(const td_kernels *k, size_t f, td_dtype t)
{
    const size_t size = td_dtype_size(t);
    double x[68], g[68], y[68], out[68], alone;
    uint8_t mask[68];
    for (size_t p = 0; p < TD_COUNT(probes); p++)
        for (int64_t n = 1; n <= 67; n++)
            for (int64_t at = 0; at < n; at += n < 20 ? 1 : 3) {
                for (int64_t i = 0; i < n; i++) {
                    td__element_put(t, (char *)x + (size_t)i * size, i == at ? probes[p] : 0.01 * (double)(i - 30));
                    td__element_put(t, (char *)g + (size_t)i * size, i == at ? 1.37 : 2);
                    td__element_put(t, (char *)y + (size_t)i * size, i == at ? 0.3 : 0.02);
                    mask[i] = i == at ? (uint8_t)(p % 3) : 1;
                }
                const work w = { k, t, x, g, y, mask, NULL };
                families[f].f(&w, n, out);
                if (n == 1)
                    memcpy(&alone, out, size);
                if (memcmp(&alone, (char *)out + (size_t)at * size, size) != 0)
                    fail_msg("%s %s %s of %g: other bits at %lld of %lld", k->name, families[f].name, td_dtype_name(t), probes[p],
                             (long long)at, (long long)n);
            }
}

static void bits_at_every_position(void **state)
{
    (void)state;
    const td_kernels *isa[3];
    const size_t sets = test_isas(isa);
    for (size_t s = 0; s < sets; s++)
        for (size_t f = 0; f < TD_COUNT(families); f++)
            for (td_dtype t = TD_F32; t <= TD_F64; t++)
                same_everywhere(isa[s], f, t);
}

/* Strided operands, and adding, give the values of contiguous ones: over a matrix whose operands lie in different orders. */
static void strides_and_adding(void **state)
{
    (void)state;
    enum { A = 7, B = 13 };
    const td_loop l = { .ndim = 2, .dim = { A, B }, .stride = { { B, 1 }, { 1, A }, { 0, 2 }, { 1, 0 } } };
    const td_kernels *isa[3];
    const size_t sets = test_isas(isa);
    uint8_t mask[A * B];
    double a[2 * B], b[A], out[A * B], g[A * B];
    for (int i = 0; i < A * B; i++)
        mask[i] = i % 3 == 0, g[i] = i + 1;
    for (int i = 0; i < 2 * B; i++)
        a[i] = i % 5;
    for (int i = 0; i < A; i++)
        b[i] = i;
    for (size_t s = 0; s < sets; s++) {
        isa[s]->where(&l, TD_F64, out, mask, a, b);
        for (int i = 0; i < A; i++)
            for (int j = 0; j < B; j++)
                assert_true(out[i * B + j] == (mask[i + j * A] ? a[2 * j] : b[i]));
        for (int i = 0; i < A * B; i++)
            out[i] = 100;
        isa[s]->extreme_grad(&l, TD_F64, out, g, a, b, true);
        for (int i = 0; i < A; i++)
            for (int j = 0; j < B; j++) {
                const double x = a[2 * j], y = b[i], v = g[i + j * A];
                assert_true(out[i * B + j] == 100 + (x > y ? v : x < y ? 0 : v / 2));
            }
    }
}

/* ---- 1 thread against 2, 3 and 7 ------------------------------------------------------------------------------------------------ */

enum { N = 99000, ROWS = 990, COLUMNS = 100 };

static size_t everything(const work *w, char *out)
{
    const td_kernels *k = w->k;
    const td_dtype t = w->t;
    const size_t size = td_dtype_size(t);
    size_t used = 0;
#define TAKE(bytes) (void *)(used += (bytes), out + used - (bytes))
    for (size_t f = 0; f < TD_COUNT(families); f++)
        families[f].f(w, N, TAKE(N * size));
    k->log_softmax(t, ROWS, COLUMNS, TAKE(N * size), w->x);
    k->log_softmax_grad(t, ROWS, COLUMNS, TAKE(N * size), w->g, w->x, false);
    void *loss = TAKE(8), *kept = TAKE(8);
    int64_t bad;
    k->nll(t, ROWS, COLUMNS, w->x, w->target, true, 3, loss, kept, &bad);
    assert_int_equal(bad, -1);
    k->nll_grad(t, ROWS, COLUMNS, TAKE(N * size), loss, w->target, kept, true, 3, false);
    k->nll(t, N, 1, w->x, w->target, true, 3, TAKE(8), kept, &bad);    /* targets beyond the one class are told, the first of them */
    k->bce(t, N, w->x, w->y, NULL, loss);
    k->bce(t, N, w->x, w->y, w->g, TAKE(8));
    k->bce_grad(t, N, TAKE(N * size), loss, w->x, w->y, w->g, false, false);
    k->bce_grad(t, N, TAKE(N * size), loss, w->x, w->y, w->g, true, false);
    return used;
}

static void threads_do_not_show(void **state)
{
    (void)state;
    const size_t room = (TD_COUNT(families) + 6) * (size_t)N * 8;
    double *x = malloc(N * 8), *g = malloc(N * 8), *y = malloc(N * 8);
    char *one = malloc(room), *many = malloc(room);
    uint8_t *mask = malloc(N);
    int64_t *target = calloc(N, sizeof *target);
    for (int i = 0; i < ROWS; i++)
        target[i] = i * 7 % COLUMNS;
    const td_kernels *isa[3];
    const size_t sets = test_isas(isa);
    for (size_t s = 0; s < sets; s++)
        for (td_dtype t = TD_F32; t <= TD_F64; t++) {
            for (int64_t i = 0; i < N; i++) {
                const td_philox p = td__philox(5, 0, (uint64_t)i);
                const size_t at = (size_t)i * td_dtype_size(t);
                td__element_put(t, (char *)x + at, p.v[0] * 0x1p-30 - 2);
                td__element_put(t, (char *)g + at, p.v[1] * 0x1p-31 + 0.25);
                td__element_put(t, (char *)y + at, p.v[2] * 0x1p-32);
                mask[i] = p.v[3] & 1;
            }
            const work w = { isa[s], t, x, g, y, mask, target };
            memset(one, 0, room);
            omp_set_num_threads(1);
            const size_t bytes = everything(&w, one);
            assert_true(bytes < room);
            for (int threads = 2; threads <= 7; threads = threads == 2 ? 3 : threads + 4) {
                memset(many, 0, room);
                omp_set_num_threads(threads);
                everything(&w, many);
                for (size_t i = 0; i < bytes; i++)
                    if (one[i] != many[i])
                        fail_msg("%s %s: byte %zu differs with %d threads", isa[s]->name, td_dtype_name(t), i, threads);
            }
        }
    omp_set_num_threads(2);
    free(x);
    free(g);
    free(y);
    free(one);
    free(many);
    free(mask);
    free(target);
}

/* The first bad row is the one that is told, whichever part of the sum it lies in. */
static void first_bad_row(void **state)
{
    (void)state;
    static float x[3000], loss, kept;
    static int64_t target[3000];
    const td_kernels *isa[3];
    const size_t sets = test_isas(isa);
    for (size_t s = 0; s < sets; s++) {
        int64_t bad = 7;
        target[1700] = 1, target[2900] = -1;
        isa[s]->nll(TD_F32, 3000, 1, x, target, false, 0, &loss, &kept, &bad);
        assert_int_equal(bad, 1700);
        isa[s]->nll(TD_F32, 3000, 1, x, target, true, 1, &loss, &kept, &bad);
        assert_int_equal(bad, 2900);
    }
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, test_setup, test_teardown)
    const struct CMUnitTest tests[] = {
        TEST(bits_at_every_position), TEST(strides_and_adding), TEST(threads_do_not_show), TEST(first_bad_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
