/* Attention, its gradients, rotary and swiglu through the kernel tables: several tiles and parts, against plain formulas in double; the
 * same bits for every number of threads, for every instruction set.
 */
#include "image_kernels.h"

typedef struct { int64_t n, h, t, s, d; bool causal; int mask; } shape_row;   /* mask 0: none, 1: bool, 2: added, with -inf          */

/* One tile and less; several tiles of both kinds; heads enough that none is cut into parts; queries that no tile fills; rows of several vectors, whole
 * ones and not, with tiles on the diagonal. */
static const shape_row shapes[] = {
    { 1, 1, 131, 277, 7, false, 0 }, { 1, 2, 277, 131, 5, true, 0 }, { 1, 1, 263, 521, 3, true, 1 }, { 3, 3, 67, 129, 4, false, 2 },
    { 2, 1, 64, 128, 8, true, 2 },   { 1, 3, 1, 257, 11, false, 1 },
    { 1, 2, 150, 150, 43, true, 0 }, { 1, 1, 192, 77, 64, true, 2 }, { 1, 1, 90, 300, 33, true, 0 },
};

typedef struct { double *out, *gq, *gk, *gv; } answer;

static bool sees(const shape_row *r, td_dtype t, const void *mask, int64_t i, int64_t j, double *added)
{
    *added = 0;
    if (r->causal && j > i)
        return false;
    if (r->mask == 1)
        return ((const uint8_t *)mask)[i * r->s + j];
    if (r->mask == 2)
        *added = get(t, mask, i * r->s + j);
    return *added != -INFINITY;
}

static answer by_formula(const shape_row *r, td_dtype t, double scale, const void *q, const void *k, const void *v, const void *g, const void *mask)
{
    const int64_t heads = r->n * r->h, T = r->t, S = r->s, D = r->d;
    answer a = { zeroes(heads * T * D), zeroes(heads * T * D), zeroes(heads * S * D), zeroes(heads * S * D) };
    double *p = zeroes(S), *dp = zeroes(S), added;
    for (int64_t i = 0; i < heads * T; i++) {
        const int64_t head = i / T * S * D;
        double sum = 0, delta = 0, most = -INFINITY;
        for (int64_t j = 0; j < S; j++) {
            p[j] = dp[j] = 0;
            for (int64_t d = 0; d < D; d++) {
                p[j] += scale * get(t, q, i * D + d) * get(t, k, head + j * D + d);
                dp[j] += get(t, g, i * D + d) * get(t, v, head + j * D + d);
            }
            p[j] = sees(r, t, mask, i % T, j, &added) ? p[j] + added : -INFINITY;
            most = fmax(most, p[j]);
        }
        if (most == -INFINITY)
            continue;
        for (int64_t j = 0; j < S; j++)
            sum += p[j] = exp(p[j] - most);
        for (int64_t j = 0; j < S; j++)
            delta += (p[j] /= sum) * dp[j];
        for (int64_t j = 0; j < S; j++)
            for (int64_t d = 0; d < D; d++) {
                a.out[i * D + d] += p[j] * get(t, v, head + j * D + d);
                a.gv[head + j * D + d] += p[j] * get(t, g, i * D + d);
                a.gq[i * D + d] += scale * p[j] * (dp[j] - delta) * get(t, k, head + j * D + d);
                a.gk[head + j * D + d] += scale * p[j] * (dp[j] - delta) * get(t, q, i * D + d);
            }
    }
    free(p), free(dp);
    return a;
}

static void *make_mask(const shape_row *r, td_dtype t)
{
    if (!r->mask)
        return NULL;
    void *m = array(t, r->t * r->s);
    for (int64_t i = 0; i < r->t * r->s; i++) {
        const bool on = i / r->s % 5 != 2 && i * 7 % 11 > 3;               /* every fifth query sees nothing                 */
        if (r->mask == 1)
            ((uint8_t *)m)[i] = on;
        else
            put(t, m, i, on ? (double)(i % 17) / 16 : -INFINITY);
    }
    return m;
}

/* out as (n,t,h,d) instead: the same numbers at other places, and the same gradient of q. */
static void other_layout(const td_kernels *table, td_dtype t, td_attention_shape a, void *const *first, const void *q, const void *k,
                         const void *v, const void *g, const void *mask)
{
    const int64_t n = a.n * a.h * a.t * a.d, step = (int64_t)size_of(t);
    char *out = array(t, n), *lse = array(t, a.n * a.h * a.t), *gq = array(t, n);
    a.out[0] = a.t * a.h * a.d, a.out[1] = a.d, a.out[2] = a.h * a.d;
    table->attention(t, &a, out, lse, q, k, v, mask);
    for (int64_t i = 0; i < n; i++) {
        const int64_t col = i % a.d, row = i / a.d % a.t, head = i / a.d / a.t % a.h, at = i / a.d / a.t / a.h;
        if (memcmp((char *)first[0] + i * step, out + (at * a.out[0] + head * a.out[1] + row * a.out[2] + col) * step, (size_t)step) != 0)
            fail_msg("%s: element %lld differs in the other layout", table->name, (long long)i);
    }
    table->attention_grad(t, &a, gq, NULL, NULL, g, out, lse, q, k, v, mask, false, false, false);
    assert_memory_equal(gq, first[2], n * step);
    free(out), free(lse), free(gq);
}

static void attention(void **state)
{
    (void)state;
    const int threads = omp_get_max_threads();
    for (size_t row = 0; row < sizeof shapes / sizeof *shapes; row++)
        for (td_dtype t = TD_F32; t <= TD_F64; t++) {
            const shape_row *r = &shapes[row];
            const int64_t heads = r->n * r->h, tq = heads * r->t * r->d, sk = heads * r->s * r->d;
            const double scale = 1.5;
            void *q = numbers(t, tq, 1), *k = numbers(t, sk, 2), *v = numbers(t, sk, 3), *g = numbers(t, tq, 4), *mask = make_mask(r, t);
            const answer want = by_formula(r, t, scale, q, k, v, g, mask);
            td_attention_shape a = { .n = r->n, .h = r->h, .t = r->t, .s = r->s, .d = r->d, .causal = r->causal, .scale = scale, .mask_bool = r->mask == 1 };
            a.q[2] = a.k[2] = a.v[2] = r->d;
            a.q[1] = r->t * r->d, a.k[1] = a.v[1] = r->s * r->d;
            a.q[0] = r->h * a.q[1], a.k[0] = a.v[0] = r->h * a.k[1];
            memcpy(a.out, a.q, sizeof a.out);
            a.mask[2] = r->s, a.mask[3] = 1;
            EACH_TABLE(table) {
                void *first[5] = { 0 };
                const int64_t size[5] = { tq, heads * r->t, tq, sk, sk };
                for (int n = 1; n <= 3; n++) {
                    void *got[5];
                    omp_set_num_threads(n);
                    for (int i = 0; i < 5; i++)
                        got[i] = array(t, size[i]);
                    table->attention(t, &a, got[0], got[1], q, k, v, mask);
                    table->attention_grad(t, &a, got[2], got[3], got[4], g, got[0], got[1], q, k, v, mask, false, false, false);
                    for (int i = 0; i < 5; i++) {
                        if (n == 1) {
                            first[i] = got[i];
                            continue;
                        }
                        if (memcmp(first[i], got[i], size_of(t) * (size_t)size[i]) != 0)
                            fail_msg("%s, row %zu: other bits in %d with %d threads", table->name, row, i, n);
                        free(got[i]);
                    }
                }
                /* sums over up to 521 terms no larger than about 1 */
                same(t, first[0], want.out, tq, 64, "out", table->name);
                same(t, first[2], want.gq, tq, 256, "gq", table->name);
                same(t, first[3], want.gk, sk, 256, "gk", table->name);
                same(t, first[4], want.gv, sk, 256, "gv", table->name);
                other_layout(table, t, a, first, q, k, v, g, mask);
                /* added to: once more on top; what is not wanted is left out */
                table->attention_grad(t, &a, first[2], first[3], NULL, g, first[0], first[1], q, k, v, mask, true, true, false);
                table->attention_grad(t, &a, NULL, NULL, first[4], g, first[0], first[1], q, k, v, mask, false, false, true);
                double *twice[3] = { zeroes(tq), zeroes(sk), zeroes(sk) };
                for (int64_t i = 0; i < tq; i++)
                    twice[0][i] = 2 * want.gq[i];
                for (int64_t i = 0; i < sk; i++)
                    twice[1][i] = 2 * want.gk[i], twice[2][i] = 2 * want.gv[i];
                for (int i = 0; i < 3; i++) {
                    same(t, first[2 + i], twice[i], size[2 + i], 512, "added", table->name);
                    free(twice[i]);
                }
                for (int i = 0; i < 5; i++)
                    free(first[i]);
            }
            free(want.out), free(want.gq), free(want.gk), free(want.gv);
            free(q), free(k), free(v), free(g), free(mask);
        }
    omp_set_num_threads(threads);
    nothing_left();
}

/* swiglu: a value gives the same bits at every place and length, and by strides */
static void swiglu_bits(void **state)
{
    (void)state;
    EACH_TABLE(table)
        for (td_dtype t = TD_F32; t <= TD_F64; t++) {
            const int64_t n = 67;
            void *x = numbers(t, 2 * n, 5), *u = numbers(t, 2 * n, 6), *all = array(t, n), *some = array(t, n), *gx = array(t, n), *gu = array(t, n);
            const td_loop whole = { .ndim = 1, .dim = { n }, .stride = { { 1 }, { 1 }, { 1 } } };
            table->swiglu(&whole, t, all, x, u);
            for (int64_t length = 1; length <= n; length++)
                for (int64_t at = 0; at + length <= n; at += 5) {
                    const td_loop l = { .ndim = 1, .dim = { length }, .stride = { { 1 }, { 1 }, { 1 } } };
                    const size_t skip = size_of(t) * (size_t)at;
                    table->swiglu(&l, t, some, (char *)x + skip, (char *)u + skip);
                    assert_memory_equal(some, (char *)all + skip, size_of(t) * (size_t)length);
                }
            const td_loop odd = { .ndim = 1, .dim = { n }, .stride = { { 1 }, { 2 }, { 2 } } };
            table->swiglu(&odd, t, some, x, u);
            for (int64_t i = 0; i < n / 2; i++)
                assert_true(get(t, some, i) == get(t, all, 2 * i));
            /* both gradients in one call are those of two calls */
            void *g = numbers(t, n, 7), *alone = array(t, n);
            table->swiglu_grad(&whole, t, gx, gu, g, x, u, false, false);
            table->swiglu_grad(&whole, t, alone, NULL, g, x, u, false, false);
            assert_memory_equal(alone, gx, size_of(t) * (size_t)n);
            table->swiglu_grad(&whole, t, NULL, alone, g, x, u, false, false);
            assert_memory_equal(alone, gu, size_of(t) * (size_t)n);
            free(x), free(u), free(all), free(some), free(gx), free(gu), free(g), free(alone);
        }
}

/* rotary: rotating back gives x again, lengths stay, threads do not matter */
static void rotary_back(void **state)
{
    (void)state;
    const int threads = omp_get_max_threads();
    EACH_TABLE(table)
        for (td_dtype t = TD_F32; t <= TD_F64; t++) {
            const int64_t rows = 1501, d = 34, n = rows * d;
            void *x = numbers(t, n, 8), *angle = array(t, n), *y = array(t, n), *back = array(t, n), *again = array(t, n);
            for (int64_t i = 0; i < n; i++) {
                const double a = (double)(i / d) * pow(10000, -2.0 * (double)(i % (d / 2)) / (double)d);
                put(t, angle, i, i % d < d / 2 ? cos(a) : sin(a));
            }
            const td_loop l = { .ndim = 1, .dim = { rows }, .stride = { { d }, { d }, { d } } };
            omp_set_num_threads(1);
            table->rotary(&l, t, d, y, x, angle, false, false);
            omp_set_num_threads(3);
            table->rotary(&l, t, d, again, x, angle, false, false);
            omp_set_num_threads(threads);
            assert_memory_equal(y, again, size_of(t) * (size_t)n);
            table->rotary(&l, t, d, back, y, angle, true, false);
            table->rotary(&l, t, d, back, y, angle, true, true);
            double *want = zeroes(n);
            for (int64_t i = 0; i < n; i++)
                want[i] = 2 * get(t, x, i);
            same(t, back, want, n, 8, "rotary there and back", table->name);
            free(want), free(x), free(angle), free(y), free(back), free(again);
        }
}

int main(void)
{
    td_errors(TD_ERRORS_RETURN);
    const struct CMUnitTest tests[] = { cmocka_unit_test(attention), cmocka_unit_test(swiglu_bits), cmocka_unit_test(rotary_back) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
