/* tests/cuda/test_pieces.c: the kernels of several ranks that no operation calls (combine, a batch norm's pieces and what lies between them), on the
 * device "cuda", beside the CPU's and the definitions in double.
 */
#include "on_device.h"

static const td_dtype dtype_of[] = { TD_F32, TD_F64 };

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
    char *room = up(value[0], sizeof value[0]), *spare = up(other[0], sizeof other[0]);
    for (int r = 0; r < k; r++)
        in[0][r] = room + (size_t)r * sizeof value[0][0];
    for (int side = 0; side < 2; side++) {
        void *last = side ? (void *)other[1] : (void *)spare;
        void *out[] = { k ? (void *)(uintptr_t)in[side][k - 1] : last, last };
        (side ? cpu : gpu)->combine(t, op, n, k, in[side], factors ? pre : NULL, post, out, 2);
    }
    down(value[0], room, sizeof value[0]);
    down(other[0], spare, sizeof other[0]);
    dev->free(0, room);
    dev->free(0, spare);
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
            for (int op = TD_COMBINE_SUM; op <= TD_COMBINE_PRODUCT; op++)
                for (int factors = 0; factors < 2; factors++)
                    combine_case(all[d], (td_combine)op, 67, inputs[k], factors && op == TD_COMBINE_SUM, factors ? 0.25 : 1);
}

/* The pieces of a batch norm over several ranks, and what lies between them */
static void pieces(td_dtype t, int64_t n, int64_t c, int64_t inner)
{
    enum { ROOM = 40000, C = 64 };
    static double x[ROOM], g[ROOM], y[2][ROOM];
    static double first[2][C], second[2][C], mean[C], a[C], b[C], d[C];
    uint64_t state = (uint64_t)(n * c * inner);
    const double eps = t == TD_F32 ? 1e-6 : 1e-14;
    const size_t bytes = (size_t)(n * c * inner) * td_dtype_size(t), table = (size_t)c * sizeof(double);
    for (int64_t i = 0; i < n * c * inner; i++) {
        put(t, x, i, number(&state) + 3);
        put(t, g, i, number(&state));
        put(t, y[1], i, number(&state));
    }
    for (int64_t k = 0; k < c; k++)
        mean[k] = 2.5 + 0.01 * (double)k, a[k] = number(&state), b[k] = number(&state), d[k] = number(&state);
    void *dx = up(x, bytes), *dg = up(g, bytes), *dy = up(y[1], bytes);
    double *dmean = up(mean, table), *da = up(a, table), *db = up(b, table), *dd = up(d, table), *one = up(a, table), *two = up(a, table);
    for (int gradient = 0; gradient < 2; gradient++) {
        gpu->batch_norm_pair(t, n, c, inner, dx, gradient ? dg : NULL, gradient ? dmean : NULL, one, two);
        cpu->batch_norm_pair(t, n, c, inner, x, gradient ? g : NULL, gradient ? mean : NULL, first[1], second[1]);
        down(first[0], one, table);
        down(second[0], two, table);
        for (int64_t k = 0; k < c; k++) {              /* of numbers of about 1: sums may cancel */
            assert_true(fabs(first[0][k] - first[1][k]) <= 1e-14 * (double)(n * inner + 1));
            assert_true(fabs(second[0][k] - second[1][k]) <= 1e-14 * (double)(n * inner + 1) * 16);
        }
    }
    for (int with = 0; with < 2; with++) {
        gpu->batch_norm_affine(t, n, c, inner, dy, dx, with ? dg : NULL, da, db, dd, with != 0);
        cpu->batch_norm_affine(t, n, c, inner, y[1], x, with ? g : NULL, a, b, d, with != 0);
        down(y[0], dy, bytes);
        for (int64_t i = 0; i < n * c * inner; i++)
            assert_true(fabs(get(t, y[0], i) - get(t, y[1], i)) <= eps * 16);
    }
    void *all[] = { dx, dg, dy, dmean, da, db, dd, one, two };
    for (size_t i = 0; i < TD_COUNT(all); i++)
        dev->free(0, all[i]);
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

/* Ranks with many rows, few, one and none; against the definition in double. */
static void test_sync_norm(void **state)
{
    (void)state;
    enum { RANKS = 4, C = 37, ALL = 200, N = 2 * C + 1 };
    static const int rows[RANKS] = { 120, 0, 1, 79 };
    for (size_t t = 0; t < 2; t++) {
        const td_dtype dtype = dtype_of[t];
        double all[RANKS * N] = { 0 }, mean[C] = { 0 }, var[C] = { 0 }, out[2][2 * C + 1], f[2][C], s[2][C], e[2][C], send[2][2 * C], sums[2 * C];
        double w[2][C], b[2][C], rm[2][C], rv[2][C], x[ALL];
        uint64_t seed = 7;
        for (int k = 0; k < C; k++) {
            for (int i = 0; i < ALL; i++)
                mean[k] += (x[i] = number(&seed) + k) / ALL;
            for (int i = 0; i < ALL; i++)
                var[k] += (x[i] - mean[k]) * (x[i] - mean[k]) / ALL;
            for (int r = 0, at = 0; r < RANKS; at += rows[r++]) {
                double m = 0, m2 = 0;
                for (int i = 0; i < rows[r]; i++)
                    m += x[at + i] / rows[r];
                for (int i = 0; i < rows[r]; i++)
                    m2 += (x[at + i] - m) * (x[at + i] - m);
                all[r * N] = rows[r];
                all[r * N + 1 + k] = m;
                all[r * N + 1 + C + k] = m2;
            }
            put(dtype, w[1], k, number(&seed));
            put(dtype, b[1], k, number(&seed));
            put(dtype, rm[1], k, 1);
            put(dtype, rv[1], k, 2);
            sums[k] = k == 3 ? 0 : number(&seed);
            sums[C + k] = number(&seed);
        }
        void *dw = up(w[1], sizeof w[1]), *db = up(b[1], sizeof b[1]), *dm = up(rm[1], sizeof rm[1]), *dv = up(rv[1], sizeof rv[1]);
        double *da = up(all, sizeof all), *room = up(all, sizeof all), *ds = up(sums, sizeof sums);
        gpu->sync_norm(dtype, RANKS, C, da, dw, db, dm, dv, 0.1, 1e-5, room, room + N, room + N + C);
        cpu->sync_norm(dtype, RANKS, C, all, w[1], b[1], rm[1], rv[1], 0.1, 1e-5, out[1], f[1], e[1]);
        down(out[0], room, sizeof out[0]);
        down(f[0], room + N, sizeof f[0]);
        down(e[0], room + N + C, sizeof e[0]);
        down(rm[0], dm, sizeof rm[0]);
        down(rv[0], dv, sizeof rv[0]);
        for (int k = 0; k < 2; k++)
            for (int i = 0; i < C; i++) {
                const double rstd = 1 / sqrt(var[i] + 1e-5), factor = get(dtype, w[1], i) * rstd, near = dtype == TD_F32 ? 1e-6 : 1e-13;
                assert_true(out[k][0] == ALL && fabs(out[k][1 + i] - mean[i]) <= 1e-12 * 40 && fabs(out[k][1 + C + i] - rstd) <= 1e-11);
                assert_true(fabs(f[k][i] - factor) <= 1e-11 && fabs(e[k][i] - (get(dtype, b[1], i) - mean[i] * factor)) <= 1e-9);
                assert_true(fabs(get(dtype, rm[k], i) - (0.9 + 0.1 * mean[i])) <= near * 40);
                assert_true(fabs(get(dtype, rv[k], i) - (1.8 + 0.1 * var[i] * ALL / (ALL - 1))) <= near * 10);
            }
        gpu->sync_norm_own(dtype, C, ds, room, 3, dw, db, true, false, da);
        cpu->sync_norm_own(dtype, C, sums, out[1], 3, w[1], b[1], true, false, send[1]);
        down(send[0], da, sizeof send[0]);
        down(w[0], dw, sizeof w[0]);
        down(b[0], db, sizeof b[0]);
        for (int i = 0; i < C; i++) {
            assert_true(fabs(get(dtype, w[0], i) - get(dtype, w[1], i)) <= 1e-6 && fabs(get(dtype, b[0], i) - sums[i]) <= 1e-6);
            assert_true(send[0][i] == sums[i] * 3 && send[1][i] == sums[i] * 3 && send[0][C + i] == send[1][C + i]);
        }
        down(w[1], dw, sizeof w[1]);
        gpu->sync_norm_grad(dtype, RANKS, C, da, room, 3, dw, room + N, room + N + C, room + N + 2 * C);
        double four[RANKS * 2 * C];
        down(four, da, sizeof four);
        cpu->sync_norm_grad(dtype, RANKS, C, four, out[0], 3, w[1], f[1], s[1], e[1]);
        down(f[0], room + N, sizeof f[0]);
        down(s[0], room + N + C, sizeof s[0]);
        down(e[0], room + N + 2 * C, sizeof e[0]);
        for (int i = 0; i < C; i++) {
            double sum = 0, product = 0;
            for (int r = 0; r < RANKS; r++)
                sum += four[r * 2 * C + i] / 3, product += four[r * 2 * C + C + i] / 3;
            const double rstd = out[0][1 + C + i], factor = get(dtype, w[1], i) * rstd, slope = -factor * rstd * rstd * product / ALL;
            for (int k = 0; k < 2; k++) {
                assert_true(fabs(f[k][i] - factor) <= 1e-12 && fabs(s[k][i] - slope) <= 1e-11 * fabs(slope) + 1e-13);
                assert_true(fabs(e[k][i] - (-factor * sum / ALL - slope * out[0][1 + i])) <= 1e-10 * (1 + fabs(e[k][i])));
            }
        }
        void *blocks[] = { dw, db, dm, dv, da, room, ds };
        for (size_t i = 0; i < TD_COUNT(blocks); i++)
            dev->free(0, blocks[i]);
    }
}

int main(int argc, char **argv)
{
    find_device(argc, argv);
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_combine), cmocka_unit_test(test_pieces), cmocka_unit_test(test_sync_norm) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
