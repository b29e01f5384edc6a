/* tests/tensor/test_random.c: Philox against Random123's published answers; the layout of counters; moments; independence. */
#include "tensor_test.h"
#include <omp.h>

static void published_vectors(void **state)
{
    (void)state;
    static const struct { uint32_t counter[4], key[2], want[4]; } kat[] = {
        { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { { 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff }, { 0xffffffff, 0xffffffff }, { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, { 0xa4093822, 0x299f31d0 }, { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };
    for (size_t i = 0; i < TD_COUNT(kat); i++) {
        const uint32_t *c = kat[i].counter, *k = kat[i].key;
        td_philox p = td__philox((uint64_t)k[1] << 32 | k[0], (uint64_t)c[3] << 32 | c[2], (uint64_t)c[1] << 32 | c[0]);
        for (int w = 0; w < 4; w++)
            assert_int_equal(p.v[w], kat[i].want[w]);
    }
}

/* Element by element, straight from the definition. */
static float uniform(int64_t i, uint64_t seed, uint64_t stream)
{
    return (float)(td__philox(seed, stream, (uint64_t)i / 4).v[i % 4] >> 8) / 16777216.0f;
}

static float normal(int64_t i, uint64_t seed, uint64_t stream)
{
    td_philox p = td__philox(seed, stream, (uint64_t)i / 4);
    int pair = (int)(i % 4 / 2) * 2;
    double r = sqrt(-2 * log((p.v[pair] + 1.0) / 4294967296.0)), a = 2 * 3.141592653589793 * (p.v[pair + 1] / 4294967296.0);
    return (float)(i % 2 ? r * sin(a) : r * cos(a));
}

/* In 128-bit integers by plain division: word * range / 2^64 unless the word is among the rejected. */
static int64_t integer(int64_t i, int64_t low, int64_t high, uint64_t seed, uint64_t stream)
{
    unsigned __int128 all = (unsigned __int128)1 << 64, range = (unsigned __int128)high - (unsigned __int128)low;
    range &= all - 1;
    for (uint64_t attempt = 0;; attempt++) {
        td_philox p = td__philox(seed, stream, (uint64_t)i + (attempt << 48));
        for (int k = 0; k < 4; k += 2) {
            unsigned __int128 word = (unsigned __int128)p.v[k + 1] << 32 | p.v[k];
            if (word * range % all >= all % range)
                return (int64_t)((uint64_t)low + (uint64_t)(word * range / all));
        }
    }
}

static void definition_on_all_sets(void **state)
{
    (void)state;
    const td_kernels *isa[3];
    static float u[5000], z[5000];
    static int64_t n[5000];
    for (size_t k = 0, sets = test_isas(isa); k < sets; k++)
        for (int64_t size = 0; size < 5000; size = size < 10 ? size + 1 : size * 3 + 1) {
            memset(u, 0, sizeof u), memset(z, 0, sizeof z), memset(n, 0, sizeof n);
            isa[k]->rand(size, u, 11, 22, false);
            isa[k]->rand(size, z, 11, 22, true);
            isa[k]->randint(size, n, -5, ((int64_t)3 << 61) + 7, 11, 22);
            for (int64_t i = 0; i < size; i++) {
                assert_true(u[i] == uniform(i, 11, 22));
                assert_true(fabsf(z[i] - normal(i, 11, 22)) <= 2e-7f * fabsf(z[i]));
                assert_true(n[i] == integer(i, -5, ((int64_t)3 << 61) + 7, 11, 22));
            }
            if (size < 5000)
                assert_true(u[size] == 0 && z[size] == 0 && n[size] == 0);
        }
}

static void independence(void **state)
{
    (void)state;
    TD_SCOPE();
    int64_t n = 100003;
    int threads = omp_get_max_threads();
    td_tensor *two[3], *one[3];
    for (int round = 0; round < 2; round++) {
        omp_set_num_threads(round ? 1 : 3);
        td_tensor **x = round ? one : two;
        x[0] = td_rand(TD_SHAPE(n), 1, 2);
        x[1] = td_randn(TD_SHAPE(n), 1, 2);
        x[2] = td_randint(-7, 1000003, TD_SHAPE(n), 1, 2);
    }
    omp_set_num_threads(threads);
    for (int i = 0; i < 3; i++)
        assert_memory_equal(td_data(two[i]), td_data(one[i]), (size_t)n * td_dtype_size(td_dtype_of(two[i])));
    td_tensor *cut = td_rand(TD_SHAPE(3, 7), 1, 2), *other = td_rand(TD_SHAPE(21), 1, 3), *seeded = td_rand(TD_SHAPE(21), 2, 2);
    assert_memory_equal(td_data(cut), td_data(two[0]), 84);        /* neither shape nor length matters */
    assert_memory_not_equal(td_data(other), td_data(two[0]), 84);
    assert_memory_not_equal(td_data(seeded), td_data(two[0]), 84);
    assert_int_equal(td_numel(td_rand(TD_SHAPE(0, 4), 0, 0)), 0);
}

static void moments(void **state)
{
    (void)state;
    TD_SCOPE();
    int64_t n = 400000;
    const float *u = td_data(td_rand(TD_SHAPE(n), 5, 0)), *z = td_data(td_randn(TD_SHAPE(n), 5, 1));
    double m1 = 0, m2 = 0, z1 = 0, z2 = 0, z3 = 0, z4 = 0, lag = 0, largest = 0, low = 1, high = 0;
    for (int64_t i = 0; i < n; i++) {
        low = u[i] < low ? u[i] : low, high = u[i] > high ? u[i] : high;
        m1 += u[i], m2 += (u[i] - 0.5) * (u[i] - 0.5);
        z1 += z[i], z2 += z[i] * z[i], z3 += pow(z[i], 3), z4 += pow(z[i], 4);
        lag += i ? z[i] * z[i - 1] : 0;
        largest = fabs(z[i]) > largest ? fabs(z[i]) : largest;
    }
    double s = 5 / sqrt((double)n);                                /* five standard errors of a unit-variance mean */
    assert_true(low >= 0 && high < 1 && low < 1e-4 && high > 1 - 1e-4);
    assert_true(fabs(m1 / n - 0.5) < s * sqrt(1 / 12.) && fabs(m2 / n - 1 / 12.) < s * sqrt(1 / 180.));
    assert_true(fabs(z1 / n) < s && fabs(z2 / n - 1) < s * sqrt(2) && fabs(z3 / n) < s * sqrt(15) && fabs(z4 / n - 3) < s * sqrt(96));
    assert_true(fabs(lag / n) < s && largest > 4 && largest < 7);
}

static void integers_are_uniform(void **state)
{
    (void)state;
    TD_SCOPE();
    int64_t n = 200000, count[7] = { 0 };
    const int64_t *x = td_data(td_randint(-3, 4, TD_SHAPE(n), 9, 0));
    for (int64_t i = 0; i < n; i++) {
        assert_true(x[i] >= -3 && x[i] < 4);
        count[x[i] + 3]++;
    }
    double chi2 = 0, each = (double)n / 7;
    for (int i = 0; i < 7; i++)
        chi2 += (count[i] - each) * (count[i] - each) / each;
    assert_true(chi2 < 33);                                        /* 6 degrees of freedom, p = 1e-5 */
    /* Three quarters of 2^64: without rejection, a third of the values would come twice as often. */
    int64_t below = 0, low = INT64_MIN, high = INT64_MIN / 2 * -1;
    const int64_t *y = td_data(td_randint(low, high, TD_SHAPE(n), 9, 1));
    for (int64_t i = 0; i < n; i++) {
        assert_true(y[i] < high);
        below += y[i] < low / 2;                                   /* the first third of the range */
    }
    assert_true(fabs((double)below / n - 1 / 3.) < 5 * sqrt(2 / 9. / n));
    const int64_t *whole = td_data(td_randint(INT64_MIN, INT64_MAX, TD_SHAPE(1000), 9, 2));
    int64_t negative = 0;
    for (int i = 0; i < 1000; i++)
        negative += whole[i] < 0;
    assert_true(negative > 400 && negative < 600);
    assert_true(td_item(td_randint(5, 6, TD_SHAPE(1), 0, 0)) == 5);
}

static void the_seed(void **state)
{
    (void)state;
    assert_int_equal(td_seed_get(), 0);
    td_seed(0xdeadbeefcafeu);
    assert_true(td_seed_get() == 0xdeadbeefcafeu);
    td_seed(0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, test_setup, test_teardown)
    const struct CMUnitTest tests[] = {
        TEST(published_vectors), TEST(definition_on_all_sets), TEST(independence), TEST(moments), TEST(integers_are_uniform), TEST(the_seed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
