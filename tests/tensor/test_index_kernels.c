/* tests/tensor/test_index_kernels.c: index_select, gather and their gradients against plain loops, on every instruction set: repeated places, a
 * place left out, written and added, and the same bits with any number of threads.
 */
#include "image_kernels.h"

typedef struct { int64_t outer, size, count, inner; } along;

static int64_t *places(int64_t n, int64_t size, uint32_t seed)
{
    int64_t *v = malloc(sizeof *v * (size_t)n + 1);
    uint32_t s = seed * 2654435761u + 99991u;
    for (int64_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        v[i] = (s >> 16) % 5 == 0 ? size - 1 : (int64_t)((s >> 8) % (uint32_t)size);       /* one place is popular */
    }
    return v;
}

/* Where out's element i comes from. */
static int64_t source(const along *a, const int64_t *index, bool slices, int64_t i)
{
    int64_t o = i / a->inner / a->count, k = i / a->inner % a->count, j = i % a->inner;
    return (o * a->size + index[slices ? k : i]) * a->inner + j;
}

static void check(td_dtype t, along a, bool slices)
{
    const int64_t n = a.outer * a.size * a.inner, m = a.outer * a.count * a.inner;
    int64_t *index = places(slices ? a.count : m, a.size, 7);
    void *x = numbers(t, n, 1), *g = numbers(t, m, 2), *was = numbers(t, n, 3);
    for (int skip = -1; skip < (slices ? (int)a.size : 0); skip += (int)a.size)
        for (int add = 0; add < 2; add++) {
            double *out = zeroes(m), *want = zeroes(n);
            for (int64_t i = 0; i < n && add; i++)
                want[i] = get(t, was, i);
            for (int64_t i = 0; i < m; i++) {
                int64_t at = source(&a, index, slices, i);
                out[i] = get(t, x, at);
                if (!slices || index[i / a.inner % a.count] != skip)
                    want[at] += get(t, g, i);
            }
            EACH_TABLE(k) {
                void *kout = array(t, m), *gx = copy_of(t, was, n);
                if (slices) {
                    k->index_select(t, a.outer, a.size, a.count, a.inner, kout, x, index);
                    k->index_select_grad(t, a.outer, a.size, a.count, a.inner, gx, g, index, skip, add);
                } else {
                    k->gather(t, a.outer, a.size, a.count, a.inner, kout, x, index);
                    k->gather_grad(t, a.outer, a.size, a.count, a.inner, gx, g, index, add);
                }
                same(t, kout, out, m, 0, slices ? "index_select" : "gather", k->name);
                same(t, gx, want, n, 1, slices ? "index_select_grad" : "gather_grad", k->name);
                free(kout), free(gx);
            }
            free(out), free(want);
        }
    free(index), free(x), free(g), free(was);
}

static void shapes(void **state)
{
    (void)state;
    static const along each[] = {
        { 1, 5, 9, 7 }, { 3, 4, 6, 5 }, { 2, 7, 1, 131 }, { 4, 3, 11, 1 }, { 1, 300, 20, 130 }, { 1, 3, 0, 4 }, { 0, 3, 2, 4 },
    };
    for (size_t i = 0; i < sizeof each / sizeof *each; i++)
        for (int slices = 0; slices < 2; slices++) {
            check(TD_F32, each[i], slices);
            check(TD_F64, each[i], slices);
        }
    nothing_left();
}

/* 4096 ones on top of 2^24: f32 would lose every one of them; the sum in double keeps them. */
static void many_in_one_place(void **state)
{
    (void)state;
    enum { N = 4096 };
    static float g[N];
    static int64_t index[N];
    for (int i = 0; i < N; i++)
        g[i] = 1;
    EACH_TABLE(k) {
        float a = 0x1p24f, b = 0x1p24f;
        k->index_select_grad(TD_F32, 1, 1, N, 1, &a, g, index, -1, true);
        k->gather_grad(TD_F32, 1, 1, N, 1, &b, g, index, true);
        assert_true(a == 0x1p24f + N && b == 0x1p24f + N);
    }
    nothing_left();
}

static void checked(void **state)
{
    (void)state;
    const int64_t good[] = { 0, 4, 2 }, low[] = { 0, -1, 9 }, high[] = { 0, 4, 5 };
    EACH_TABLE(k) {
        int64_t bad;
        k->index_check(3, good, 5, &bad);
        assert_int_equal(bad, -1);
        k->index_check(3, low, 5, &bad);
        assert_int_equal(bad, 1);
        k->index_check(3, high, 5, &bad);
        assert_int_equal(bad, 2);
        k->index_check(0, NULL, 0, &bad);
        assert_int_equal(bad, -1);
    }
}

static void threads(void **state)
{
    (void)state;
    int before = omp_get_max_threads();
    const along a = { 3, 101, 701, 67 };
    const int64_t n = a.outer * a.size * a.inner, m = a.outer * a.count * a.inner;
    int64_t *index = places(m, a.size, 5);
    float *g = numbers(TD_F32, m, 2);
    for (int64_t i = 0; i < m; i++)
        g[i] *= 1 + (float)(i % 97) / 128;                     /* so that the order of adding shows                          */
    EACH_TABLE(k)
        for (int slices = 0; slices < 2; slices++) {
            float *gx[2];
            for (int i = 0; i < 2; i++) {
                omp_set_num_threads(2 * i + 1);
                gx[i] = array(TD_F32, n);
                if (slices)
                    k->index_select_grad(TD_F32, a.outer, a.size, a.count, a.inner, gx[i], g, index, -1, false);
                else
                    k->gather_grad(TD_F32, a.outer, a.size, a.count, a.inner, gx[i], g, index, false);
            }
            assert_memory_equal(gx[0], gx[1], sizeof(float) * (size_t)n);
            free(gx[0]), free(gx[1]);
        }
    free(index), free(g);
    omp_set_num_threads(before);
    nothing_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shapes), cmocka_unit_test(many_in_one_place), cmocka_unit_test(checked), cmocka_unit_test(threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
