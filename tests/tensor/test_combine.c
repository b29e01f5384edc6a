/* tests/tensor/test_combine.c: the all-reduce kernel on every instruction set against sums in f64 and in wrapping integers. */
#include "tensor_test.h"

enum { MOST = 9, LONGEST = 2500 };
static _Alignas(64) char in[MOST][LONGEST * 8], out[MOST][LONGEST * 8], before[MOST][LONGEST * 8];

static void fill_inputs(td_dtype t, int k, int64_t n, uint64_t *r)
{
    for (int j = 0; j < k; j++)
        for (int64_t i = 0; i < n; i++) {
            uint64_t u = test_random(r);
            double v = td__is_float(t) ? ((double)(u >> 11) * 0x1p-53 - 0.5) * 8 : (double)(int32_t)(u >> 40) - 1e6;
            td__element_put(t, in[j] + (size_t)i * td_dtype_size(t), v);
        }
    memcpy(before, in, sizeof in);
}

static double reference(td_dtype t, td_combine op, int k, const double *pre, double post, int64_t i)
{
    double sum = 0, best = td__element_get(t, before[0] + (size_t)i * td_dtype_size(t));
    for (int r = 0; r < k; r++) {
        double v = td__element_get(t, before[r] + (size_t)i * td_dtype_size(t));
        sum += v * (pre ? pre[r] : 1);
        best = (op == TD_COMBINE_MIN) == (v < best) ? v : best;
    }
    return op != TD_COMBINE_SUM ? best : td__is_float(t) ? sum * post : trunc(sum * post);
}

static void against_the_reference(void **state)
{
    (void)state;
    static const int64_t sizes[] = { 0, 1, 7, 64, 1023, 1024, 1025, 2311 };
    static const int inputs[] = { 1, 2, 3, 4, 5, 8, 9 };
    static const double factors[MOST] = { 0.25, 1, 0, 3, 0.5, 1, 2, 0.125, 1 };
    const td_kernels *isa[3];
    uint64_t r = 12;
    for (size_t s = 0, sets = test_isas(isa); s < sets; s++)
        for (size_t d = 0; d < TD_COUNT(arith_dtypes); d++)
            for (int op = 0; op < 3; op++)
                for (size_t q = 0; q < TD_COUNT(inputs); q++)
                    for (size_t z = 0; z < TD_COUNT(sizes); z++)
                        for (int kind = 0; kind < 4; kind++) {
                            td_dtype t = arith_dtypes[d];
                            int k = inputs[q];
                            int64_t n = sizes[z];
                            const double *pre = kind & 1 ? factors : NULL;
                            double post = kind & 2 ? 1.0 / k : 1;
                            const void *from[MOST];
                            void *to[MOST];
                            fill_inputs(t, k, n, &r);
                            memset(out, 0x5a, sizeof out);
                            for (int j = 0; j < k; j++)
                                from[j] = in[j], to[j] = out[j];
                            isa[s]->combine(t, (td_combine)op, n, k, from, pre, post, to, k);
                            assert_memory_equal(in, before, sizeof in);
                            for (int64_t i = 0; i < n; i++) {
                                double want = reference(t, (td_combine)op, k, op ? NULL : pre, op ? 1 : post, i);
                                double got = td__element_get(t, out[0] + (size_t)i * td_dtype_size(t));
                                double room = t == TD_F32 ? 2e-7 * 40 : t == TD_F64 ? 1e-14 * 40 : 0;
                                if (fabs(got - want) > (op ? 0 : room))
                                    fail_msg("%s, %s, op %d, %d inputs, n %lld, kind %d: element %lld is %.17g, expected %.17g", isa[s]->name,
                                             td_dtype_name(t), op, k, (long long)n, kind, (long long)i, got, want);
                            }
                            for (int j = 1; j < k; j++)
                                assert_memory_equal(out[j], out[0], (size_t)n * td_dtype_size(t));
                            for (int j = 0; j < k; j++)
                                assert_int_equal(out[j][(size_t)n * td_dtype_size(t)], 0x5a);
                        }
}

/* Products, and every reduction of narrow dtypes: the very bits of one operation after the other, f16 and bf16 in f32 and rounded once. */
static void one_after_the_other(td_dtype t, td_combine op, int k, const double *pre, double post, int64_t i, void *into)
{
    const size_t at = (size_t)i * td_dtype_size(t);
    double d = td__element_get(t, before[0] + at);
    float f = (float)d * (pre ? (float)pre[0] : 1);
    int64_t w = (int64_t)d;
    memcpy(&w, before[0] + at, t == TD_I64 ? 8 : 0);
    for (int r = 1; r < k; r++) {
        double x = td__element_get(t, before[r] + at);
        int64_t v = (int64_t)x;
        memcpy(&v, before[r] + at, t == TD_I64 ? 8 : 0);
        float y = (float)x * (pre ? (float)pre[r] : 1);
        d = op == TD_COMBINE_PRODUCT ? d * x : d;
        f = op == TD_COMBINE_PRODUCT ? f * y : op == TD_COMBINE_SUM ? f + y : (op == TD_COMBINE_MIN) == (y < f) ? y : f;
        w = op == TD_COMBINE_PRODUCT ? (int64_t)((uint64_t)w * (uint64_t)v) : op == TD_COMBINE_SUM ? w + v : (op == TD_COMBINE_MIN) == (v < w) ? v : w;
    }
    if (t == TD_F64)
        memcpy(into, &d, 8);
    else if (td__is_real(t))
        td__element_put(t, into, op == TD_COMBINE_SUM ? f * (float)post : f);
    else
        memcpy(into, &w, td_dtype_size(t));    /* little-endian: what wraps is cut off */
}

static void products_and_narrow(void **state)
{
    (void)state;
    static const td_dtype all[] = { TD_F16, TD_BF16, TD_U8, TD_BOOL, TD_F32, TD_F64, TD_I64, TD_I32 };
    static const int64_t sizes[] = { 0, 1, 7, 1023, 1024, 1025, 2311 };
    static const double factors[MOST] = { 0.25, 1, 2, 3, 0.5, 1, 2, 0.125, 1.5 };
    const td_kernels *isa[3];
    uint64_t random = 5;
    for (size_t s = 0, sets = test_isas(isa); s < sets; s++)
        for (size_t d = 0; d < TD_COUNT(all); d++)
            for (int op = 0; op <= TD_COMBINE_PRODUCT; op++)
                for (int k = 1; k <= MOST; k++)
                    for (size_t z = 0; z < TD_COUNT(sizes); z++) {
                        const td_dtype t = all[d];
                        const bool only_extremes = t == TD_BOOL, half = td__is_half(t);
                        if ((only_extremes && op != TD_COMBINE_MIN && op != TD_COMBINE_MAX) || (d >= 4 && op != TD_COMBINE_PRODUCT))
                            continue;
                        const int64_t n = sizes[z];
                        const double *pre = half && k % 2 ? factors : NULL, post = half && k % 3 == 0 ? 0.3 : 1;
                        const void *from[MOST];
                        void *to[2] = { out[0], in[k - 1] };
                        for (int j = 0; j < k; j++) {
                            for (size_t i = 0; i < sizeof in[j] / 8; i++) {
                                uint64_t u = test_random(&random);
                                memcpy(in[j] + 8 * i, &u, 8);
                            }
                            for (int64_t i = 0; i < n; i++)
                                if (td__is_real(t) || t == TD_BOOL)
                                    td__element_put(t, in[j] + (size_t)i * td_dtype_size(t),
                                                    t == TD_BOOL ? (double)(test_random(&random) & 1) : (double)(test_random(&random) >> 11) * 0x1p-52 - 1);
                            from[j] = in[j];
                        }
                        memcpy(before, in, sizeof in);
                        memset(out, 0x5a, sizeof out);
                        isa[s]->combine(t, (td_combine)op, n, k, from, op == TD_COMBINE_SUM ? pre : NULL, post, to, 2);
                        for (int64_t i = 0; i < n; i++) {
                            char want[8];
                            one_after_the_other(t, (td_combine)op, k, op == TD_COMBINE_SUM ? pre : NULL, post, i, want);
                            if (memcmp(want, out[0] + (size_t)i * td_dtype_size(t), td_dtype_size(t)))
                                fail_msg("%s, %s, op %d, %d inputs, n %lld: element %lld is %.17g, expected %.17g", isa[s]->name, td_dtype_name(t), op, k,
                                         (long long)n, (long long)i, td__element_get(t, out[0] + (size_t)i * td_dtype_size(t)), td__element_get(t, want));
                        }
                        assert_memory_equal(in[k - 1], out[0], (size_t)n * td_dtype_size(t));
                        assert_int_equal(out[0][(size_t)n * td_dtype_size(t)], 0x5a);
                    }
    uint8_t a[3] = { 200, 3, 0 }, b[3] = { 100, 5, 1 }, got[3];
    td__cpu_kernels()->combine(TD_U8, TD_COMBINE_SUM, 3, 2, (const void *[]){ a, b }, (double[]){ 0.5, 2 }, 0.5, (void *[]){ got }, 1);
    assert_true(got[0] == 150 && got[1] == 5 && got[2] == 1);
    td__cpu_kernels()->combine(TD_BF16, TD_COMBINE_SUM, 3, 2, (const void *[]){ "\xc0\x7f\xc0\x7f\xc0\x7f", "\x80\x3f\x80\x3f\x80\x3f" }, (double[]){ 0, 1 }, 1,
                               (void *[]){ out[0] }, 1);
    assert_true(td__element_get(TD_BF16, out[0] + 4) == 1);    /* NaN with factor 0 is not read */
}

/* In place, as ranks use it: every buffer is input and output. The same bits on every set, and as out of place. */
static void in_place(void **state)
{
    (void)state;
    const td_kernels *isa[3];
    static char first[LONGEST * 8];
    for (size_t s = 0, sets = test_isas(isa); s < sets; s++)
        for (int k = 1; k <= MOST; k++) {
            uint64_t r = 77 + (uint64_t)k;
            void *buffers[MOST];
            const void *from[MOST];
            void *to[MOST];
            double pre[MOST];
            fill_inputs(TD_F32, k, 2311, &r);
            for (int j = 0; j < k; j++)
                buffers[j] = in[j], from[j] = in[j], to[j] = out[j], pre[j] = 1.0 / (j + 3);
            isa[s]->combine(TD_F32, TD_COMBINE_SUM, 2311, k, from, pre, 0.7, to, k);
            isa[s]->combine(TD_F32, TD_COMBINE_SUM, 2311, k, (const void *const *)buffers, pre, 0.7, buffers, k);
            for (int j = 0; j < k; j++)
                assert_memory_equal(in[j], out[0], 2311 * 4);
            r = 77 + (uint64_t)k;
            fill_inputs(TD_F32, k, 2311, &r);
            isa[0]->combine(TD_F32, TD_COMBINE_SUM, 2311, k, from, pre, 0.7, (void *[]){ first }, 1);
            isa[s]->combine(TD_F32, TD_COMBINE_SUM, 2311, k, from, pre, 0.7, (void *[]){ out[0] }, 1);
            assert_memory_equal(first, out[0], 2311 * 4);
        }
}

static void weight_zero_is_nothing(void **state)
{
    (void)state;
    float a[3] = { 1, 2, 3 }, b[3] = { NAN, INFINITY, 1 }, c[3] = { 10, 20, 30 };
    const void *from[] = { a, b, c };
    float got[3] = { 9, 9, 9 };
    void *to[] = { got };
    td__cpu_kernels()->combine(TD_F32, TD_COMBINE_SUM, 3, 3, from, (double[]){ 1, 0, 0.5 }, 1, to, 1);
    assert_true(got[0] == 6 && got[1] == 12 && got[2] == 18);
    td__cpu_kernels()->combine(TD_F32, TD_COMBINE_SUM, 3, 3, from, (double[]){ 0, 0, 0 }, 1, to, 1);
    assert_true(got[0] == 0 && got[1] == 0 && got[2] == 0);
    int64_t ia[1] = { 5 }, ib[1] = { INT64_MAX }, ic[1] = { 77 };
    td__cpu_kernels()->combine(TD_I64, TD_COMBINE_SUM, 1, 2, (const void *[]){ ia, ib }, (double[]){ 0, 0 }, 1, (void *[]){ ic }, 1);
    assert_int_equal(ic[0], 0);
}

static void not_a_number_passes(void **state)
{
    (void)state;
    float a[3] = { NAN, 2, 3 }, b[3] = { 1, NAN, 1 }, got[3];
    for (int op = TD_COMBINE_MIN; op <= TD_COMBINE_MAX; op++) {
        td__cpu_kernels()->combine(TD_F32, (td_combine)op, 3, 2, (const void *[]){ a, b }, NULL, 1, (void *[]){ got }, 1);
        assert_true(isnan(got[0]) && isnan(got[1]) && got[2] == (op == TD_COMBINE_MIN ? 1 : 3));
    }
}

static void integers_wrap_exactly(void **state)
{
    (void)state;
    int64_t a[2] = { INT64_MAX, (1ll << 53) + 1 }, b[2] = { 1, 2 }, got[2];
    td__cpu_kernels()->combine(TD_I64, TD_COMBINE_SUM, 2, 2, (const void *[]){ a, b }, (double[]){ 1, 1 }, 1, (void *[]){ got }, 1);
    assert_true(got[0] == INT64_MIN && got[1] == (1ll << 53) + 3);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, test_setup, test_teardown)
    const struct CMUnitTest tests[] = {
        TEST(against_the_reference), TEST(products_and_narrow), TEST(in_place), TEST(weight_zero_is_nothing), TEST(not_a_number_passes), TEST(integers_wrap_exactly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
