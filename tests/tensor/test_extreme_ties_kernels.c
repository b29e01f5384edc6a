/* tests/tensor/test_extreme_ties_kernels.c: the gradient of amax and amin in every table, bit for bit: a mask of ones and zeros times g over the number of ties;
 * rows and columns of all lengths, NaN, infinities, large ones, and the same bits on any number of threads.
 */
#include "image_kernels.h"

static void check(td_dtype t, int64_t outer, int64_t n, int64_t inner, bool special)
{
    const int64_t all = outer * n * inner, results = outer * inner;
    void *x = numbers(t, all, 7), *g = numbers(t, results, 8), *old = numbers(t, all, 9), *y = array(t, results), *want[2];
    for (int64_t i = 0; i < all; i++)                    /* many ties                                                          */
        put(t, x, i, floor(get(t, x, i) * 3));
    if (special)
        for (int64_t i = 0; i < all; i += 5)
            put(t, x, i, i % 3 ? (double)NAN : (double)INFINITY);
    for (int64_t i = 0; special && i < results; i += 4)
        put(t, g, i, i % 8 ? (double)INFINITY : -0.0);
    for (int add = 0; add < 2; add++)
        want[add] = array(t, all);
    for (int64_t r = 0; r < results; r++) {
        const int64_t first = r / inner * n * inner + r % inner;
        int64_t ties = 0;
        double best = get(t, x, first);
        for (int64_t i = 1; i < n; i++) {
            const double v = get(t, x, first + i * inner);
            best = v > best || (isnan(v) && !isnan(best)) ? v : best;
        }
        put(t, y, r, best);
        for (int64_t i = 0; i < n; i++)
            ties += get(t, x, first + i * inner) == best;
        for (int64_t i = 0; i < n; i++) {
            const int64_t at = first + i * inner;
            const bool is = get(t, x, at) == best;
            if (t == TD_F32) {
                const float share = ((float *)g)[r] / (float)ties, v = (is ? 1.0f : 0.0f) * share;
                ((float *)want[0])[at] = v, ((float *)want[1])[at] = ((float *)old)[at] + v;
            } else {
                const double share = ((double *)g)[r] / (double)ties, v = (is ? 1.0 : 0.0) * share;
                ((double *)want[0])[at] = v, ((double *)want[1])[at] = ((double *)old)[at] + v;
            }
        }
    }
    EACH_TABLE(k)
        for (int add = 0; add < 2; add++) {
            void *gx = copy_of(t, old, all);
            k->extreme_ties_grad(t, outer, n, inner, gx, g, x, y, add);
            for (int64_t i = 0; i < all; i++)
                if (memcmp((char *)gx + size_of(t) * (size_t)i, (char *)want[add] + size_of(t) * (size_t)i, size_of(t)) &&
                    !(isnan(get(t, gx, i)) && isnan(get(t, want[add], i))))
                    fail_msg("%s, %s, (%lld,%lld,%lld), add %d: element %lld is %.17g, expected %.17g", k->name, t == TD_F32 ? "f32" : "f64",
                             (long long)outer, (long long)n, (long long)inner, add, (long long)i, get(t, gx, i), get(t, want[add], i));
            free(gx);
        }
    free(x), free(g), free(old), free(y), free(want[0]), free(want[1]);
}

static void lengths(void **state)
{
    (void)state;
    for (int n = 1; n <= 67; n++)
        for (int i = 0; i < 4; i++) {
            check(i & 1 ? TD_F32 : TD_F64, 5, n, 1, i > 1);
            check(i & 1 ? TD_F32 : TD_F64, 1, 5, n, i > 1);
            check(i & 1 ? TD_F32 : TD_F64, 2, n, 3, i > 1);
        }
    check(TD_F32, 2, 3, 1000, true);
    check(TD_F32, 2, 3000, 1, true);
    check(TD_F64, 0, 3, 4, false);
    nothing_left();
}

/* Larger than caches: written around them; by any number of threads */
static void large(void **state)
{
    (void)state;
    const int before = omp_get_max_threads();
    for (int i = 1; i <= 3; i++) {
        omp_set_num_threads(i);
        check(TD_F32, 3, (2 << 20) + 1029, 1, i == 2);
        check(TD_F32, 1, 6001, 1051, i == 2);
    }
    check(TD_F64, 1, 3001, 1051, false);
    omp_set_num_threads(before);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(lengths), cmocka_unit_test(large) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
