/* tests/tensor/test_move.c: copy, fill and arange on every instruction set, every pair of dtypes and odd shapes, against a naive walk with the
 * slow conversions of tensor_test.h; equality between 1 and 3 threads; td__sum_to.
 */
#include "tensor_test.h"
#include <omp.h>

enum { GUARD = 64 };

/* A buffer of n elements with guard bytes on both sides. */
typedef struct { char *block, *data; size_t bytes; } buffer;
static buffer buffer_new(int64_t n, td_dtype t)
{
    buffer b = { .bytes = (size_t)n * td_dtype_size(t) };
    b.block = malloc(b.bytes + 2 * GUARD);
    memset(b.block, 0x5a, b.bytes + 2 * GUARD);
    b.data = b.block + GUARD;
    return b;
}
static void buffer_free(buffer b)
{
    for (int i = 0; i < GUARD; i++)
        assert_true(b.block[i] == 0x5a && b.data[b.bytes + (size_t)i] == 0x5a);
    free(b.block);
}

static void contiguous_every_pair(void **state)
{
    (void)state;
    static const int64_t sizes[] = { 0, 1, 2, 7, 31, 67, 1031 };
    const td_kernels *isa[3];
    uint64_t r = 3;
    for (size_t k = 0, sets = test_isas(isa); k < sets; k++)
        for (size_t f = 0; f < TD_COUNT(all_dtypes); f++)
            for (size_t t = 0; t < TD_COUNT(all_dtypes); t++)
                for (size_t s = 0; s < TD_COUNT(sizes); s++) {
                    td_dtype from = all_dtypes[f], to = all_dtypes[t];
                    int64_t n = sizes[s];
                    buffer x = buffer_new(n, from), y = buffer_new(n, to);
                    test_values(from, n, x.data, &r);
                    td_loop l = { .ndim = 1, .dim = { n }, .stride = { { 1 }, { 1 } } };
                    isa[k]->copy(&l, to, y.data, from, x.data, false);
                    for (int64_t i = 0; i < n; i++) {
                        char want[8];
                        const char *in = x.data + (size_t)i * td_dtype_size(from), *out = y.data + (size_t)i * td_dtype_size(to);
                        ref_put(to, want, from, ref_get(from, in));
                        if (!ref_same(to, out, want))
                            fail_msg("%s, %s to %s, element %lld: %.20Lg became %.20Lg, expected %.20Lg", isa[k]->name, td_dtype_name(from),
                                     td_dtype_name(to), (long long)i, ref_get(from, in), ref_get(to, out), ref_get(to, want));
                    }
                    buffer_free(x), buffer_free(y);
                }
}

/* Strided loops: permutations, gaps, repeated inputs, sizes around the tile and the block. */
typedef struct { td_loop l; int64_t out_size, in_size; const char *what; } layout;
static const layout layouts[] = {
    { { 0, { 0 }, { { 0 } } }, 1, 1, "scalar" },
    { { 1, { 50 }, { { 3 }, { 1 } } }, 148, 50, "gaps in the output" },
    { { 1, { 50 }, { { 1 }, { 5 } } }, 50, 246, "gaps in the input" },
    { { 1, { 50 }, { { 1 }, { 0 } } }, 50, 1, "one value repeated" },
    { { 2, { 33, 65 }, { { 65, 1 }, { 1, 33 } } }, 33 * 65, 33 * 65, "transpose" },
    { { 2, { 4, 4 }, { { 4, 1 }, { 1, 4 } } }, 16, 16, "small transpose" },
    { { 2, { 3, 3 }, { { 3, 1 }, { 1, 3 } } }, 9, 9, "smaller than a tile's worth" },
    { { 2, { 32, 64 }, { { 64, 1 }, { 1, 32 } } }, 32 * 64, 32 * 64, "transpose of whole tiles" },
    { { 3, { 5, 37, 41 }, { { 37 * 41, 41, 1 }, { 37 * 41, 1, 37 } } }, 5 * 37 * 41, 5 * 37 * 41, "batch of transposes" },
    { { 3, { 37, 5, 41 }, { { 5 * 41, 41, 1 }, { 1, 37 * 41, 37 } } }, 5 * 37 * 41, 5 * 37 * 41, "permuted (2,0,1)" },
    { { 3, { 7, 6, 5 }, { { 40, 6, 1 }, { 1, 35, 7 } } }, 6 * 40 + 5 * 6 + 5, 210, "transpose into a wider array" },
    { { 2, { 6, 17 }, { { 17, 1 }, { 0, 1 } } }, 102, 17, "a row repeated" },
    { { 2, { 6, 17 }, { { 17, 1 }, { 1, 0 } } }, 102, 6, "a column repeated" },
    { { 8, { 2, 1, 3, 2, 1, 2, 3, 2 }, { { 72, 72, 24, 12, 12, 6, 2, 1 }, { 1, 1, 2, 6, 12, 12, 24, 72 } } }, 144, 144, "eight dimensions" },
};

static void strided_every_layout(void **state)
{
    (void)state;
    static const td_dtype pairs[][2] = { { TD_F32, TD_F32 }, { TD_F64, TD_F64 }, { TD_F16, TD_F16 }, { TD_U8, TD_U8 }, { TD_F32, TD_F64 },
        { TD_F64, TD_BF16 }, { TD_U8, TD_F32 }, { TD_I64, TD_BOOL }, { TD_F16, TD_I32 } };
    const td_kernels *isa[3];
    uint64_t r = 4;
    for (size_t k = 0, sets = test_isas(isa); k < sets; k++)
        for (size_t p = 0; p < TD_COUNT(pairs); p++)
            for (size_t y = 0; y < TD_COUNT(layouts); y++)
                for (int add = 0; add < 2; add++) {
                    const layout *c = &layouts[y];
                    td_dtype from = pairs[p][0], to = pairs[p][1];
                    if (add && (from != to || !td__is_arith(from)))
                        continue;
                    buffer in = buffer_new(c->in_size, from), out = buffer_new(c->out_size, to), want = buffer_new(c->out_size, to);
                    test_values(from, c->in_size, in.data, &r);
                    test_values(to, c->out_size, out.data, &r);
                    memcpy(want.data, out.data, out.bytes);
                    int64_t n = 1;
                    for (int d = 0; d < c->l.ndim; d++)
                        n *= c->l.dim[d];
                    for (int64_t i = 0; i < n; i++) {
                        int64_t o = 0, x = 0, rest = i;
                        for (int d = c->l.ndim - 1; d >= 0; d--) {
                            o += rest % c->l.dim[d] * c->l.stride[0][d];
                            x += rest % c->l.dim[d] * c->l.stride[1][d];
                            rest /= c->l.dim[d];
                        }
                        char *w = want.data + (size_t)o * td_dtype_size(to);
                        const char *v = in.data + (size_t)x * td_dtype_size(from);
                        if (!add)
                            ref_put(to, w, from, ref_get(from, v));
                        else if (to == TD_F32)
                            *(float *)w += *(const float *)v;
                        else
                            *(double *)w += *(const double *)v;
                    }
                    isa[k]->copy(&c->l, to, out.data, from, in.data, add);
                    for (int64_t i = 0; i < c->out_size; i++)
                        if (!ref_same(to, out.data + (size_t)i * td_dtype_size(to), want.data + (size_t)i * td_dtype_size(to)))
                            fail_msg("%s, %s, %s to %s%s: element %lld", isa[k]->name, c->what, td_dtype_name(from), td_dtype_name(to),
                                     add ? ", adding" : "", (long long)i);
                    buffer_free(in), buffer_free(out), buffer_free(want);
                }
}

static void adding(void **state)
{
    (void)state;
    const td_kernels *isa[3];
    for (size_t k = 0, sets = test_isas(isa); k < sets; k++)
        for (size_t t = 0; t < TD_COUNT(arith_dtypes); t++) {
            td_dtype d = arith_dtypes[t];
            char a[8 * 67], b[8 * 67];
            size_t size = td_dtype_size(d);
            for (int i = 0; i < 67; i++) {
                td__element_put(d, a + (size_t)i * size, i);
                td__element_put(d, b + (size_t)i * size, 100 * i);
            }
            td_loop l = { .ndim = 1, .dim = { 67 }, .stride = { { 1 }, { 1 } } };
            isa[k]->copy(&l, d, a, d, b, true);
            for (int i = 0; i < 67; i++)
                assert_true(td__element_get(d, a + (size_t)i * size) == 101 * i);
        }
    int32_t most = INT32_MAX, one = 1;                             /* wraps, without undefined behaviour */
    td_loop l = { .ndim = 0 };
    td__cpu_kernels()->copy(&l, TD_I32, &most, TD_I32, &one, true);
    assert_int_equal(most, INT32_MIN);
}

static void filling(void **state)
{
    (void)state;
    static const double values[] = { 0, 1, -1.7, 255.9, 65520, 1e300, -1e300, NAN, INFINITY, 0.1 };
    const td_kernels *isa[3];
    for (size_t k = 0, sets = test_isas(isa); k < sets; k++)
        for (size_t t = 0; t < TD_COUNT(all_dtypes); t++)
            for (size_t v = 0; v < TD_COUNT(values); v++) {
                td_dtype d = all_dtypes[t];
                size_t size = td_dtype_size(d);
                buffer b = buffer_new(13 * 5, d);
                char want[8];
                ref_put(d, want, TD_F64, values[v]);
                td_loop l = { .ndim = 2, .dim = { 13, 3 }, .stride = { { 5, 1 }, { 7, 7 } } };
                isa[k]->fill(&l, d, b.data, values[v]);
                for (int64_t i = 0; i < 65; i++) {
                    if (i % 5 < 3)
                        assert_true(ref_same(d, b.data + (size_t)i * size, want));
                    else
                        assert_int_equal(b.data[(size_t)i * size], 0x5a);
                }
                buffer_free(b);
            }
}

static void counting(void **state)
{
    (void)state;
    const td_kernels *isa[3];
    for (size_t k = 0, sets = test_isas(isa); k < sets; k++)
        for (size_t t = 0; t < TD_COUNT(all_dtypes); t++) {
            td_dtype d = all_dtypes[t];
            buffer b = buffer_new(3001, d);
            isa[k]->arange(d, 3001, b.data);
            for (int64_t i = 0; i < 3001; i++) {
                char want[8];
                ref_put(d, want, TD_I64, i);
                assert_memory_equal(b.data + (size_t)i * td_dtype_size(d), want, td_dtype_size(d));
            }
            buffer_free(b);
        }
}

/* Large enough for threads: plain, converting and transposed copies, and fill. */
static void threads_change_nothing(void **state)
{
    (void)state;
    enum { ROWS = 301, COLUMNS = 333, N = ROWS * COLUMNS };
    static float x[N];
    static double plain[2][N], wide[2][N];
    static float turned[2][N], filled[2][N];
    int threads = omp_get_max_threads();
    for (int i = 0; i < N; i++)
        x[i] = (float)i * 0.37f;
    const td_kernels *k = td__cpu_kernels();
    for (int round = 0; round < 2; round++) {
        omp_set_num_threads(round ? 1 : 3);
        td_loop line = { .ndim = 1, .dim = { N }, .stride = { { 1 }, { 1 } } };
        td_loop rows = { .ndim = 2, .dim = { COLUMNS, ROWS }, .stride = { { ROWS, 1 }, { 1, COLUMNS } } };
        k->copy(&line, TD_F64, plain[round], TD_F32, x, false);
        k->copy(&rows, TD_F64, wide[round], TD_F32, x, false);
        k->copy(&rows, TD_F32, turned[round], TD_F32, x, false);
        k->fill(&line, TD_F32, filled[round], 3.5);
    }
    omp_set_num_threads(threads);
    assert_memory_equal(plain[0], plain[1], sizeof plain[0]);
    assert_memory_equal(wide[0], wide[1], sizeof wide[0]);
    assert_memory_equal(turned[0], turned[1], sizeof turned[0]);
    assert_memory_equal(filled[0], filled[1], sizeof filled[0]);
    for (int i = 0; i < N; i++) {
        assert_true(plain[0][i] == (double)x[i] && filled[0][i] == 3.5f);
        assert_true(turned[0][i] == x[i % ROWS * COLUMNS + i / ROWS] && wide[0][i] == (double)turned[0][i]);
    }
}

static void sum_to(void **state)
{
    (void)state;
    static const struct { td_shape x, to; } cases[] = {
        { { 2, { 5, 7 } }, { 2, { 5, 7 } } }, { { 2, { 5, 7 } }, { 1, { 7 } } }, { { 2, { 5, 7 } }, { 2, { 5, 1 } } },
        { { 2, { 5, 7 } }, { 0, { 0 } } }, { { 4, { 2, 3, 4, 5 } }, { 3, { 3, 1, 5 } } }, { { 3, { 1, 5, 7 } }, { 2, { 5, 7 } } },
        { { 2, { 0, 7 } }, { 1, { 7 } } }, { { 2, { 7, 0 } }, { 1, { 0 } } },
    };
    for (size_t c = 0; c < TD_COUNT(cases); c++)
        for (int add = 0; add < 2; add++)
            for (int scaled = 0; scaled < 2; scaled++) {
                TD_SCOPE();
                td_shape xs = cases[c].x, ts = cases[c].to;
                td_tensor *x = td_zeros(xs, TD_F64), *into = td_full(ts, TD_F64, 10);
                double *v = td_data(x), want[256], scale = scaled ? -0.5 : 1;
                int64_t stride[TD_MAX_DIMS];
                td__shape_strides(ts, stride);
                for (int64_t i = 0; i < td__shape_numel(ts); i++)
                    want[i] = add ? 10 : 0;
                for (int64_t i = 0; i < td_numel(x); i++) {
                    int64_t at = 0, rest = i;
                    v[i] = (double)(i * i % 19);
                    for (int d = xs.ndim - 1; d >= 0; d--) {
                        int td = d - (xs.ndim - ts.ndim);
                        if (td >= 0 && ts.dim[td] != 1)
                            at += rest % xs.dim[d] * stride[td];
                        rest /= xs.dim[d];
                    }
                    want[at] += scale * v[i];
                }
                assert_int_equal(td__sum_to(x, scale, into, add), 0);
                const double *got = td_data(into);
                for (int64_t i = 0; i < td__shape_numel(ts); i++)
                    assert_true(fabs(got[i] - want[i]) < 1e-12);
            }
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, test_setup, test_teardown)
    const struct CMUnitTest tests[] = {
        TEST(contiguous_every_pair), TEST(strided_every_layout), TEST(adding), TEST(filling), TEST(counting), TEST(threads_change_nothing),
        TEST(sum_to),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
