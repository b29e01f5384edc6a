/* tests/tensor/test_rnn_kernels.c: the LSTM's and the GRU's cell against their published formulas in double, gradients against finite differences
 * of those, on every instruction set; and that neither threads nor places in memory show in the bits.
 */
#include "image_kernels.h"

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* An LSTM reads a = gates (n,4h) and state c; its results are h' and c' (n,h). A GRU reads a = gi, b = gh (n,3h) and state h; result h'. */
typedef struct { bool lstm; int64_t n, hidden; } problem;

static void define(const problem *p, const double *a, const double *b, const double *state, double *h, double *c)
{
    const int64_t H = p->hidden;
    for (int64_t r = 0; r < p->n; r++)
        for (int64_t k = 0; k < H; k++) {
            const double *x = a + r * (p->lstm ? 4 : 3) * H + k, *y = b + r * 3 * H + k, old = state[r * H + k];
            if (p->lstm) {
                c[r * H + k] = sigmoid(x[H]) * old + sigmoid(x[0]) * tanh(x[2 * H]);
                h[r * H + k] = sigmoid(x[3 * H]) * tanh(c[r * H + k]);
            } else {
                const double reset = sigmoid(x[0] + y[0]), z = sigmoid(x[H] + y[H]);
                h[r * H + k] = (1 - z) * tanh(x[2 * H] + reset * y[2 * H]) + z * old;
            }
        }
}

/* d(sum gh*h' + gc*c')/d x[i], by central differences */
static void differences(const problem *p, const double *a, const double *b, const double *state, double *x, int64_t n, const double *gh,
                        const double *gc, double *into)
{
    const int64_t m = p->n * p->hidden;
    double *h = zeroes(m), *c = zeroes(m);
    for (int64_t i = 0; i < n; i++) {
        double side[2] = { 0 };
        const double was = x[i];
        for (int s = 0; s < 2; s++) {
            x[i] = was + (s ? -1e-5 : 1e-5);
            define(p, a, b, state, h, c);
            for (int64_t k = 0; k < m; k++)
                side[s] += (gh ? gh[k] * h[k] : 0) + (gc && p->lstm ? gc[k] * c[k] : 0);
        }
        x[i] = was;
        into[i] = (side[0] - side[1]) / 2e-5;
    }
    free(h), free(c);
}

static void near(td_dtype t, const void *got, const double *want, int64_t n, double factor, const char *what, const char *table)
{
    for (int64_t i = 0; i < n; i++)
        if (!(fabs(get(t, got, i) - factor * want[i]) <= factor * (t == TD_F32 ? 3e-6 : 1e-8) * (1 + fabs(want[i]))))
            fail_msg("%s, %s: element %d is %.12g, expected %.12g", what, table, (int)i, get(t, got, i), factor * want[i]);
}

static double *wide(td_dtype t, void *x, int64_t n, double factor)   /* x times a power of two, as doubles too */
{
    double *d = zeroes(n);
    for (int64_t i = 0; i < n; i++) {
        put(t, x, i, factor * get(t, x, i));
        d[i] = get(t, x, i);
    }
    return d;
}

static void gradient(const td_kernels *k, td_dtype t, const problem *p, void *ga, void *gb, void *gs, const void *gh, const void *gc,
                     const void *act, const void *state, const void *c, bool add)
{
    if (p->lstm)
        k->lstm_cell_grad(t, p->n, p->hidden, ga, gs, gh, gc, act, state, c, add, add);
    else
        k->gru_cell_grad(t, p->n, p->hidden, ga, gb, gs, gh, act, state, add, add, add);
}

/* arrive: 1 gh, 2 gc, 3 both */
static void check(td_dtype t, problem p, int arrive)
{
    const int64_t m = p.n * p.hidden, ma = m * (p.lstm ? 4 : 3), mb = m * 3;
    void *a = numbers(t, ma, 1), *b = numbers(t, mb, 2), *s = numbers(t, m, 3), *gh = numbers(t, m, 4), *gc = numbers(t, m, 5);
    double *ad = wide(t, a, ma, 4), *bd = wide(t, b, mb, 4), *sd = wide(t, s, m, 2), *ghd = wide(t, gh, m, 1), *gcd = wide(t, gc, m, 1);
    double *h = zeroes(m), *c = zeroes(m), *da = zeroes(ma), *db = zeroes(mb), *ds = zeroes(m);
    const double *use_h = arrive & 1 ? ghd : NULL, *use_c = arrive & 2 ? gcd : NULL;
    define(&p, ad, bd, sd, h, c);
    differences(&p, ad, bd, sd, ad, ma, use_h, use_c, da);
    differences(&p, ad, bd, sd, sd, m, use_h, use_c, ds);
    if (!p.lstm)
        differences(&p, ad, bd, sd, bd, mb, use_h, use_c, db);
    EACH_TABLE(k) {
        void *out = array(t, m), *next = array(t, m), *act = array(t, 4 * m), *plain = array(t, m), *ka = array(t, ma), *kb = array(t, mb),
             *ks = array(t, m);
        for (int keep = 0; keep < 2; keep++) {
            if (p.lstm)
                k->lstm_cell(t, p.n, p.hidden, out, next, keep ? act : NULL, a, s);
            else
                k->gru_cell(t, p.n, p.hidden, out, keep ? act : NULL, a, b, s);
            if (!keep)
                memcpy(plain, out, (size_t)m * size_of(t));
        }
        assert_memory_equal(plain, out, (size_t)m * size_of(t));
        same(t, out, h, m, 24, "h", k->name);
        if (p.lstm)
            same(t, next, c, m, 24, "c", k->name);
        for (int round = 0; round < 2; round++) {              /* written, then added */
            gradient(k, t, &p, ka, kb, ks, arrive & 1 ? gh : NULL, arrive & 2 ? gc : NULL, act, s, next, round);
            near(t, ka, da, ma, 1 + round, "gradient of the gates", k->name);
            near(t, ks, ds, m, 1 + round, "gradient of the state", k->name);
            if (!p.lstm)
                near(t, kb, db, mb, 1 + round, "gradient of gh", k->name);
        }
        memset(ka, 0xff, (size_t)ma * size_of(t));             /* one alone: the others are not touched */
        gradient(k, t, &p, NULL, NULL, ks, arrive & 1 ? gh : NULL, arrive & 2 ? gc : NULL, act, s, next, false);
        near(t, ks, ds, m, 1, "gradient of the state alone", k->name);
        gradient(k, t, &p, ka, NULL, NULL, arrive & 1 ? gh : NULL, arrive & 2 ? gc : NULL, act, s, next, false);
        near(t, ka, da, ma, 1, "gradient of the gates alone", k->name);
        free(out), free(next), free(act), free(plain), free(ka), free(kb), free(ks);
    }
    free(a), free(b), free(s), free(gh), free(gc), free(ad), free(bd), free(sd), free(ghd), free(gcd);
    free(h), free(c), free(da), free(db), free(ds);
}

static void shapes(void **state)
{
    (void)state;
    static const int64_t size[][2] = { { 1, 1 }, { 3, 7 }, { 2, 8 }, { 5, 13 }, { 0, 3 }, { 3, 0 } };
    for (size_t i = 0; i < sizeof size / sizeof *size; i++)
        for (td_dtype t = TD_F32; t <= TD_F64; t++) {
            for (int arrive = 1; arrive < 4; arrive++)
                check(t, (problem){ true, size[i][0], size[i][1] }, arrive);
            check(t, (problem){ false, size[i][0], size[i][1] }, 1);
        }
    nothing_left();
}

/* Far from zero gates are closed or open, and nothing becomes NaN; NaN stays in its own column. */
static void extremes(void **state)
{
    (void)state;
    EACH_TABLE(k) {
        const float far[4 * 2] = { 1000, NAN, 1000, -1000, 1000, 0, 1000, 1000 }, c[2] = { 3, 1 };
        float h[2], next[2], act[8], gates[8], gc[2];
        k->lstm_cell(TD_F32, 1, 2, h, next, act, far, c);
        assert_true(next[0] == 4 && fabsf(h[0] - tanhf(4)) < 1e-6f && isnan(next[1]) && isnan(h[1]));
        k->lstm_cell_grad(TD_F32, 1, 2, gates, gc, c, NULL, act, c, next, false, false);
        for (int gate = 0; gate < 4; gate++)
            assert_true(gates[2 * gate] == 0);
        const float gi[6] = { -1000, 1000, -1000, 1000, 2, 2 }, none[6] = { 0, 0, 0, 0, 5, 5 };
        k->gru_cell(TD_F32, 1, 2, h, act, gi, none, c);        /* column 0: no reset of gh, the candidate; column 1: the old state */
        assert_true(fabsf(h[0] - tanhf(2)) < 1e-6f && h[1] == 1);
    }
}

/* The same bits with any number of threads, and wherever the arrays begin. */
static void threads(void **state)
{
    (void)state;
    enum { N = 67, H = 301 };
    const int before = omp_get_max_threads();
    for (int lstm = 0; lstm < 2; lstm++)
        EACH_TABLE(k) {
            const problem p = { lstm, N, H };
            const size_t m = N * H, ma = m * (lstm ? 4 : 3);
            float *got[2][4];
            for (int i = 0; i < 2; i++) {
                omp_set_num_threads(2 * i + 1);
                float *a = numbers(TD_F32, (int64_t)ma + i, 1), *b = numbers(TD_F32, 3 * m, 2), *s = numbers(TD_F32, m, 3), *next = array(TD_F32, m);
                float *act = array(TD_F32, 4 * m), *gb = array(TD_F32, 3 * m);
                memmove(a + i, a, ma * sizeof *a);
                for (int j = 0; j < 4; j++)
                    got[i][j] = array(TD_F32, j == 1 ? ma : m);
                if (lstm)
                    k->lstm_cell(TD_F32, N, H, got[i][0], next, act, a + i, s);
                else
                    k->gru_cell(TD_F32, N, H, got[i][0], act, a + i, b, s);
                gradient(k, TD_F32, &p, got[i][1], gb, got[i][2], s, NULL, act, s, next, false);
                memcpy(got[i][3], lstm ? next : gb, m * sizeof(float));
                free(a), free(b), free(s), free(next), free(act), free(gb);
            }
            for (int j = 0; j < 4; j++) {
                assert_memory_equal(got[0][j], got[1][j], (j == 1 ? ma : m) * sizeof(float));
                free(got[0][j]), free(got[1][j]);
            }
        }
    omp_set_num_threads(before);
    nothing_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(shapes), cmocka_unit_test(extremes), cmocka_unit_test(threads) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
