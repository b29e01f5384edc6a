/* tests/data/test_sampler.c: the sampler's promises, as properties over all small cases. */
#include "data_test.h"

/* Every row once per epoch, in global batches of batch*parts, every part the same number of batches, shares within one row of each other
 * and larger ones first. */
static void partition_is_exact(void **state)
{
    for (int64_t rows = 0; rows <= 50; rows++)
        for (int parts = 1; parts <= 5; parts++)
            for (int64_t batch = 1; batch <= 7; batch++) {
                int64_t batches = td__batches(rows, batch, parts, false), next = 0;
                assert_int_equal(batches, (rows + batch * parts - 1) / (batch * parts));
                for (int64_t k = 0; k < batches; k++) {
                    assert_int_equal(next, k * batch * parts);
                    int64_t most = td__shard(k, 0, parts, batch, rows).rows, previous = most;
                    assert_true(most >= 1 && most <= batch);
                    for (int part = 0; part < parts; part++) {
                        td__share share = td__shard(k, part, parts, batch, rows);
                        assert_int_equal(share.first, next);
                        assert_true(share.rows <= previous && most - share.rows <= 1 && share.rows >= 0);
                        previous = share.rows;
                        next += share.rows;
                        if (k + 1 < batches)
                            assert_int_equal(share.rows, batch);
                    }
                }
                assert_int_equal(next, rows);
                int64_t full = td__batches(rows, batch, parts, true);
                assert_int_equal(full, rows / (batch * parts));
            }
}

/* Step by step, N parts of batch B hold the rows of one part of batch N*B, in its order. */
static void parts_equal_one_part(void **state)
{
    for (int64_t rows = 0; rows <= 50; rows++)
        for (int parts = 2; parts <= 5; parts++)
            for (int64_t batch = 1; batch <= 7; batch++) {
                int64_t batches = td__batches(rows, batch, parts, false);
                assert_int_equal(batches, td__batches(rows, batch * parts, 1, false));
                for (int64_t k = 0; k < batches; k++) {
                    td__share whole = td__shard(k, 0, 1, batch * parts, rows);
                    int64_t at = whole.first;
                    for (int part = 0; part < parts; part++) {
                        td__share share = td__shard(k, part, parts, batch, rows);
                        assert_int_equal(share.first, at);
                        at += share.rows;
                    }
                    assert_int_equal(at, whole.first + whole.rows);
                }
            }
}

static void order_is_a_permutation(void **state)
{
    enum { N = 1000 };
    int64_t order[N], again[N], other[N];
    for (int epoch = 0; epoch < 5; epoch++) {
        bool seen[N] = { false };
        td__epoch_order(7, epoch, N, order);
        td__epoch_order(7, epoch, N, again);
        assert_memory_equal(order, again, sizeof order);
        for (int i = 0; i < N; i++) {
            assert_true(order[i] >= 0 && order[i] < N && !seen[order[i]]);
            seen[order[i]] = true;
        }
        int same_epoch = 0, same_seed = 0, in_place = 0;   /* about one fixed point each is expected */
        td__epoch_order(7, epoch + 1, N, other);
        for (int i = 0; i < N; i++)
            same_epoch += order[i] == other[i], in_place += order[i] == i;
        td__epoch_order(8, epoch, N, other);
        for (int i = 0; i < N; i++)
            same_seed += order[i] == other[i];
        assert_true(same_epoch < 12 && same_seed < 12 && in_place < 12);
    }
    td__epoch_order(7, 0, 0, order);
    td__epoch_order(7, 0, 1, order);
    assert_int_equal(order[0], 0);
}

/* All 24 orders of 4 rows, equally often: chi-square with 23 degrees of freedom, whose 0.9999 quantile is 58.6. Over epochs, and over seeds. */
static void orders_are_uniform(void **state)
{
    enum { TRIALS = 12000 };
    for (int by_seed = 0; by_seed < 2; by_seed++) {
        int count[256] = { 0 }, kinds = 0;
        for (int t = 0; t < TRIALS; t++) {
            int64_t o[4];
            td__epoch_order(by_seed ? (uint64_t)t : 3, by_seed ? 0 : t, 4, o);
            count[o[0] | o[1] << 2 | o[2] << 4 | o[3] << 6]++;
        }
        double chi = 0, expected = TRIALS / 24.0;
        for (int i = 0; i < 256; i++)
            if (count[i]) {
                chi += (count[i] - expected) * (count[i] - expected) / expected;
                kinds++;
            }
        assert_int_equal(kinds, 24);
        assert_true(chi < 58.6);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(partition_is_exact), TEST(parts_equal_one_part), TEST(order_is_a_permutation), TEST(orders_are_uniform),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
