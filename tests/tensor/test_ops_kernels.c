/* Bits of the element-wise, activation, reduction, softmax and loss kernels: the same for a value at every position and length, and for
 * every number of threads, on every instruction set of this processor.
 */
#include <float.h>
#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <tensor_impl.h>

static const char *const isas[] = { "baseline", "avx2", "avx512" };
#define EACH_ISA(k)                                                                                          \
    for (size_t isa_ = 0; isa_ < 3; isa_++)                                                                  \
        for (const td_kernels *k = td__cpu_kernels_named(isas[isa_]); k; k = NULL)

static td_loop line(int64_t n)
{
    td_loop l = { .ndim = 1, .dim = { n }, .stride = { { 1 }, { 1 }, { 1 }, { 0 } } };
    return l;
}

static const double probes[] = { 0.3, -1.7, 5.125, -20.5, 88.9, -104, 1e-6, 0 };

/* y = f(x) for a value alone, and then at every place of every length; NULL entries: the gradient form with a second operand. */
static void same_everywhere(const char *what, td_k_unary *unary, td_k_binary *binary, td_dtype t)
{
    size_t size = td_dtype_size(t);
    char x[68 * 8], g[68 * 8], y[68 * 8], alone[8];
    for (size_t p = 0; p < TD_COUNT(probes); p++) {
        for (int64_t n = 1; n <= 67; n++)
            for (int64_t at = 0; at < n; at++) {
                for (int64_t i = 0; i < n; i++) {
                    td__element_put(t, x + (size_t)i * size, i == at ? probes[p] : 0.01 * (double)(i - 30));
                    td__element_put(t, g + (size_t)i * size, i == at ? 1.37 : 2);
                }
                td_loop l = line(n);
                if (unary)
                    unary(&l, t, y, x, false);
                else
                    binary(&l, t, y, g, x, false);
                if (n == 1)
                    memcpy(alone, y, size);
                if (memcmp(alone, y + (size_t)at * size, size) != 0)
                    fail_msg("%s %s of %g: other bits at %lld of %lld", what, td_dtype_name(t), probes[p], (long long)at, (long long)n);
            }
    }
}

static void bits_at_every_position(void **state)
{
    (void)state;
    EACH_ISA(k)
        for (td_dtype t = TD_F32; t <= TD_F64; t++) {
            same_everywhere("relu", k->relu, NULL, t);
            same_everywhere("gelu", k->gelu, NULL, t);
            same_everywhere("sigmoid", k->sigmoid, NULL, t);
            same_everywhere("tanh", k->tanh, NULL, t);
            same_everywhere("relu_grad", NULL, k->relu_grad, t);
            same_everywhere("gelu_grad", NULL, k->gelu_grad, t);
            same_everywhere("sigmoid_grad", NULL, k->sigmoid_grad, t);
            same_everywhere("tanh_grad", NULL, k->tanh_grad, t);
            same_everywhere("add", NULL, k->add, t);
            same_everywhere("sub", NULL, k->sub, t);
            same_everywhere("mul", NULL, k->mul, t);
            same_everywhere("div", NULL, k->div, t);
            same_everywhere("div_grad_b", NULL, k->div_grad_b, t);
        }
}

/* A softmax row gives the same bits whichever row it is, wherever the rows begin. */
static void softmax_rows(void **state)
{
    (void)state;
    float x[33 * 67], y[33 * 67], first[67];
    EACH_ISA(k)
        for (int64_t n = 1; n <= 67; n += 3) {
            for (int64_t i = 0; i < 33 * n; i++)
                x[i] = (float)((i % n) * 13 % 29) * 0.37f - 4;
            k->softmax(TD_F32, 33, n, y, x);
            memcpy(first, y, (size_t)n * sizeof *y);
            for (int64_t r = 1; r < 33; r++)
                assert_memory_equal(first, y + r * n, (size_t)n * sizeof *y);
        }
}

/* Strided, offset and repeated operands give the bits of the contiguous ones. */
static void strides(void **state)
{
    (void)state;
    float x[201 * 3], dense[201], want[201], got[201 * 2];
    for (int i = 0; i < 201 * 3; i++)
        x[i] = (float)(i % 97) * 0.11f - 5;
    for (int i = 0; i < 201; i++)
        dense[i] = x[3 * i];
    EACH_ISA(k) {
        td_loop l = line(201), s = line(201);
        s.stride[0][0] = 2, s.stride[1][0] = 3;
        k->gelu(&l, TD_F32, want, dense, false);
        k->gelu(&s, TD_F32, got, x, false);
        for (int i = 0; i < 201; i++)
            assert_memory_equal(want + i, got + 2 * i, sizeof *want);
    }
}

/* ---- 1 thread against 2, 3 and 7 -------------------------------------------------------------------------------------------------- */

enum { N = 150001 };

typedef struct { const td_kernels *k; td_dtype t; const void *x, *y; const int64_t *target; } work;

/* Runs every kernel with more elements than TD_PARALLEL; results one after the other in `out`. Returns the bytes. */
static size_t everything(const work *w, char *out)
{
    const td_kernels *k = w->k;
    const td_dtype t = w->t;
    const size_t size = td_dtype_size(t);
    size_t used = 0;
    td_loop l = line(N);
#define TAKE(bytes) (used += (bytes), out + used - (bytes))
    k->add(&l, t, TAKE(N * size), w->x, w->y, false);
    k->div(&l, t, TAKE(N * size), w->x, w->y, false);
    k->scale(&l, t, TAKE(N * size), w->x, 1.7, 0.3, false);
    k->gelu(&l, t, TAKE(N * size), w->x, false);
    k->gelu_grad(&l, t, TAKE(N * size), w->x, w->y, false);
    k->sigmoid(&l, t, TAKE(N * size), w->x, false);
    k->tanh(&l, t, TAKE(N * size), w->x, false);
    td_loop matrix = { .ndim = 2, .dim = { 150, 1000 }, .stride = { { 1000, 1 }, { 1, 150 }, { 0, 1 }, { 0 } } };
    k->mul(&matrix, t, TAKE(N * size), w->x, w->y, false);
    const td_reduce_loop reduce[] = {
        { { .ndim = 0 }, { .ndim = 1, .dim = { N }, .stride = { { 0 }, { 1 } } } },                                      /* all           */
        { { .ndim = 1, .dim = { 150 }, .stride = { { 1 }, { 1000 } } }, { .ndim = 1, .dim = { 1000 }, .stride = { { 0 }, { 1 } } } }, /* rows */
        { { .ndim = 1, .dim = { 1000 }, .stride = { { 1 }, { 1 } } }, { .ndim = 1, .dim = { 150 }, .stride = { { 0 }, { 1000 } } } }, /* columns */
        { { .ndim = 1, .dim = { 3 }, .stride = { { 1 }, { 1 } } }, { .ndim = 1, .dim = { 50000 }, .stride = { { 0 }, { 3 } } } },     /* few  */
        { { .ndim = 0 }, { .ndim = 2, .dim = { 1000, 150 }, .stride = { { 0 }, { 1, 1000 } } } },                          /* all, strided  */
    };
    for (size_t i = 0; i < TD_COUNT(reduce); i++) {
        k->sum(&reduce[i], t, TAKE(1000 * size), w->x, 0.125, false);
        k->amax(&reduce[i], t, TAKE(1000 * size), w->x);
        k->argmax(&reduce[i], t, (int64_t *)(void *)TAKE(1000 * sizeof(int64_t)), w->x);
    }
    k->softmax(t, 1000, 150, TAKE(N * size), w->x);
    k->softmax_grad(t, 1000, 150, TAKE(N * size), w->x, w->y, false);
    void *loss = TAKE(8), *kept = TAKE(8), *lse = TAKE(1000 * size);
    int64_t bad;
    k->cross_entropy(t, 1000, 150, w->x, w->target, 0.1, true, 3, loss, lse, kept, &bad);
    assert_int_equal(bad, -1);
    k->cross_entropy_grad(t, 1000, 150, TAKE(N * size), loss, w->x, w->target, lse, kept, 0.1, true, 3, false);
    k->mse(t, N, w->x, w->y, TAKE(8));
    k->mse_grad(t, N, TAKE(N * size), loss, w->x, w->y, -1, false);
    return used;
}

static void threads_do_not_show(void **state)
{
    (void)state;
    const size_t room = 16 * (size_t)N * 8;
    double *x = malloc(N * 8), *y = malloc(N * 8);
    char *one = malloc(room), *many = malloc(room);
    int64_t target[1000];
    for (int i = 0; i < 1000; i++)
        target[i] = i * 7 % 150;
    EACH_ISA(k)
        for (td_dtype t = TD_F32; t <= TD_F64; t++) {
            for (int64_t i = 0; i < N; i++) {
                td_philox p = td__philox(3, 0, (uint64_t)i);
                td__element_put(t, (char *)x + (size_t)i * td_dtype_size(t), p.v[0] * 0x1p-30 - 2);
                td__element_put(t, (char *)y + (size_t)i * td_dtype_size(t), p.v[1] * 0x1p-31 + 0.25);
            }
            work w = { k, t, x, y, target };
            memset(one, 0, room);
            omp_set_num_threads(1);
            size_t bytes = everything(&w, one);
            assert_true(bytes < room);
            for (int threads = 2; threads <= 7; threads = threads == 2 ? 3 : threads + 4) {
                memset(many, 0, room);
                omp_set_num_threads(threads);
                everything(&w, many);
                for (size_t i = 0; i < bytes; i++)
                    if (one[i] != many[i])
                        fail_msg("%s %s: byte %zu differs with %d threads", k->name, td_dtype_name(t), i, threads);
            }
        }
    omp_set_num_threads(2);
    free(x);
    free(y);
    free(one);
    free(many);
}

/* ---- accuracy: sums keep their digits, vector functions stay within libmvec's promise --------------------------------------------------- */

static void long_sum(void **state)
{
    (void)state;
    const int64_t n = 1 << 20;
    float *x = malloc((size_t)n * sizeof *x), got;
    for (int64_t i = 0; i < n; i++)
        x[i] = 0.1f;
    td_reduce_loop all = { { .ndim = 0 }, { .ndim = 1, .dim = { n }, .stride = { { 0 }, { 1 } } } };
    EACH_ISA(k) {
        k->sum(&all, TD_F32, &got, x, 1, false);
        assert_true(got == (float)((double)0.1f * (double)n));
    }
    free(x);
}

static void vector_functions(void **state)
{
    (void)state;
    enum { M = 20000 };
    static float x[M], y[M];
    static double xd[M], yd[M];
    for (int i = 0; i < M; i++)
        xd[i] = x[i] = (float)(i - M / 2) * 0.004f;
    td_loop l = line(M);
    EACH_ISA(k) {
        double worst[4] = { 0 };
        k->tanh(&l, TD_F32, y, x, false);
        k->tanh(&l, TD_F64, yd, xd, false);
        for (int i = 0; i < M; i++) {
            double want = tanh((double)x[i]);
            worst[0] = fmax(worst[0], fabs(y[i] - want) / ((fabs(want) + 1e-30) * FLT_EPSILON));
            worst[1] = fmax(worst[1], fabs(yd[i] - want) / ((fabs(want) + 1e-300) * DBL_EPSILON));
        }
        k->sigmoid(&l, TD_F32, y, x, false);
        k->sigmoid(&l, TD_F64, yd, xd, false);
        for (int i = 0; i < M; i++) {
            double want = 1 / (1 + exp(-(double)x[i]));
            worst[2] = fmax(worst[2], fabs(y[i] - want) / (want * FLT_EPSILON));
            worst[3] = fmax(worst[3], fabs(yd[i] - want) / (want * DBL_EPSILON));
        }
        for (int i = 0; i < 4; i++)
            assert_true(worst[i] < 6);
    }
}

/* ---- products ---------------------------------------------------------------------------------------------------------------------- */

static void empty_products(void **state)
{
    (void)state;
    float c[6] = { 1, 2, 3, 4, 5, 6 }, a[1] = { 0 };
    EACH_ISA(k) {
        float d[6];
        memcpy(d, c, sizeof d);
        k->gemm(TD_F32, false, false, 2, 3, 0, 1, a, 1, a, 3, 1, d, 3);
        assert_memory_equal(d, c, sizeof d);
        k->gemm(TD_F32, false, false, 2, 2, 0, 1, a, 1, a, 2, 0.5, d, 3);
        assert_memory_equal(d, ((float[]){ 0.5f, 1, 3, 2, 2.5f, 6 }), sizeof d);
        d[0] = NAN;
        k->gemm(TD_F32, true, true, 2, 3, 0, 1, a, 2, a, 1, 0, d, 3);
        assert_memory_equal(d, ((float[6]){ 0 }), sizeof d);
        k->gemm(TD_F32, false, false, 0, 3, 4, 1, a, 4, a, 3, 0, d, 3);
    }
}

static void products_match(void **state)
{
    (void)state;
    enum { M = 13, O = 7, L = 29 };
    double a[M * L], b[L * O], c[M * O], want;
    for (int i = 0; i < M * L; i++)
        a[i] = (i * 37 % 101) / 64.0 - 0.7;
    for (int i = 0; i < L * O; i++)
        b[i] = (i * 53 % 89) / 64.0 - 0.6;
    EACH_ISA(k)
        for (int form = 0; form < 4; form++) {
            bool ta = form & 1, tb = form & 2;
            for (int i = 0; i < M * O; i++)
                c[i] = i;
            k->gemm(TD_F64, ta, tb, M, O, L, 0.5, a, ta ? M : L, b, tb ? L : O, 2, c, O);
            for (int i = 0; i < M; i++)
                for (int j = 0; j < O; j++) {
                    want = 2.0 * (i * O + j);
                    for (int l = 0; l < L; l++)
                        want += 0.5 * a[ta ? l * M + i : i * L + l] * b[tb ? j * L + l : l * O + j];
                    assert_true(fabs(c[i * O + j] - want) < 1e-12);
                }
        }
}

/* A batch has the bits of its products one after the other, on any number of threads. */
static void batches(void **state)
{
    (void)state;
    enum { S = 24, COUNT = 40 };
    static float a[COUNT * S * S + S], b[COUNT * S * S], want[COUNT * S * S], got[COUNT * S * S];
    for (int i = 0; i < COUNT * S * S; i++)
        a[i] = (float)(i * 37 % 101) / 64 - 0.7f, b[i] = (float)(i * 53 % 89) / 64 - 0.6f;
    EACH_ISA(k)
        for (int form = 0; form < 16; form++) {
            const bool ta = form & 1, tb = form & 2;
            const int64_t step_a = form & 4 ? 0 : S * S, step_b = form & 8 ? 0 : S * S;
            memset(want, 0, sizeof want);
            memset(got, 0, sizeof got);
            omp_set_num_threads(1);
            for (int j = 0; j < COUNT; j++)
                k->gemm(TD_F32, ta, tb, S, S, S, 0.5, a + j * step_a, S, b + j * step_b, S, 1, want + j * S * S, S);
            omp_set_num_threads(3);
            k->gemm_batched(TD_F32, ta, tb, COUNT, S, S, S, 0.5, a, S, step_a, b, S, step_b, 1, got, S, S * S);
            assert_memory_equal(got, want, sizeof got);
        }
}

/* The first of the largest in rows that lie 3 apart, at every place of a row, with a second one behind it; a NaN before or behind is the largest. */
static void places(void **state)
{
    (void)state;
    enum { LONGEST = 1027, ROWS = 3 };
    static const int more[] = { 255, 256, 257, 258, 511, 512, 513, 1027 };
    for (int i = 1; i < 68 + (int)(sizeof more / sizeof *more); i++) {
        const int n = i < 68 ? i : more[i - 68], step = n < 68 ? 1 : 7;
        const td_reduce_loop r = { .keep = { 1, { ROWS }, { { 1 }, { n + 3 } } }, .red = { 1, { n }, { { 0 }, { 1 } } } };
        for (int at = 0; at < n; at += step) {
            float x[ROWS * (LONGEST + 3)];
            double d[ROWS * (LONGEST + 3)];
            int32_t k32[ROWS * (LONGEST + 3)];
            int64_t k64[ROWS * (LONGEST + 3)], out[4][ROWS];
            for (int j = 0; j < ROWS * (n + 3); j++)
                x[j] = j % (n + 3) < n ? (float)(-3 - j % 5) : 100;    /* between rows: not theirs                                    */
            for (int row = 0; row < ROWS; row++)
                x[row * (n + 3) + at] = x[row * (n + 3) + (at + 2 * (n - 1)) / 3] = 50;      /* the second at or behind the first */
            for (int j = 0; j < ROWS * (n + 3); j++)
                d[j] = (double)x[j], k32[j] = (int32_t)x[j], k64[j] = (int64_t)x[j];
            x[n + 3] = x[n + 3 + n - 1] = NAN;                         /* row 1 begins with one and ends with one             */
            d[2 * (n + 3) + n - 1] = NAN;                              /* row 2 ends with one                                 */
            EACH_ISA(k) {
                k->argmax(&r, TD_F32, out[0], x);
                k->argmax(&r, TD_F64, out[1], d);
                k->argmax(&r, TD_I32, out[2], k32);
                k->argmax(&r, TD_I64, out[3], k64);
                for (int t = 0; t < 4; t++)
                    for (int row = 0; row < ROWS; row++)
                        assert_int_equal(out[t][row], t == 0 && row == 1 ? 0 : t == 1 && row == 2 ? n - 1 : at);
            }
        }
    }
}

/* Largest and smallest of columns, blocks one behind the other, with ties, infinities and NaN, wider and narrower than the strips they are taken in */
static void columns(void **state)
{
    (void)state;
    enum { BLOCKS = 2, WIDEST = 1037 };
    static const int widths[] = { 2, 3, 15, 16, 63, 64, 65, 255, 256, 257, 511, 513, 1037 };
    static float x[BLOCKS * 9 * WIDEST];
    static double d[BLOCKS * 9 * WIDEST];
    static int64_t k64[BLOCKS * 9 * WIDEST];
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++)
        for (int rows = 1; rows <= 9; rows++) {
            const int n = widths[i];
            const td_reduce_loop r = { .keep = { 2, { BLOCKS, n }, { { n, 1 }, { rows * n, 1 } } }, .red = { 1, { rows }, { { 0 }, { n } } } };
            for (int j = 0; j < BLOCKS * rows * n; j++) {
                k64[j] = j * 7919 % 31 - 15;
                x[j] = j % 37 == 5 ? NAN : j % 11 == 3 ? INFINITY : j % 13 == 4 ? -INFINITY : (float)k64[j];
                d[j] = (double)x[j];
            }
            EACH_ISA(k)
                for (int small = 0; small < 2; small++) {
                    float got[BLOCKS * WIDEST];
                    double got_d[BLOCKS * WIDEST];
                    int64_t got_k[BLOCKS * WIDEST];
                    (small ? k->amin : k->amax)(&r, TD_F32, got, x);
                    (small ? k->amin : k->amax)(&r, TD_F64, got_d, d);
                    (small ? k->amin : k->amax)(&r, TD_I64, got_k, k64);
                    for (int at = 0; at < BLOCKS * n; at++) {
                        const int first = at / n * rows * n + at % n;
                        float best = x[first];
                        int64_t whole = k64[first];
                        for (int row = 1; row < rows; row++) {
                            const float v = x[first + row * n];
                            const int64_t w = k64[first + row * n];
                            best = isnan(best) || isnan(v) ? NAN : small ? (v < best ? v : best) : (v > best ? v : best);
                            whole = small ? (w < whole ? w : whole) : (w > whole ? w : whole);
                        }
                        assert_true(isnan(best) ? isnan(got[at]) && isnan(got_d[at]) : got[at] == best && got_d[at] == (double)best);
                        assert_int_equal(got_k[at], whole);
                    }
                }
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_at_every_position), cmocka_unit_test(softmax_rows), cmocka_unit_test(strides),
        cmocka_unit_test(threads_do_not_show), cmocka_unit_test(long_sum), cmocka_unit_test(vector_functions),
        cmocka_unit_test(empty_products), cmocka_unit_test(products_match), cmocka_unit_test(batches), cmocka_unit_test(places),
        cmocka_unit_test(columns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
