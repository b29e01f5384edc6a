/* tests/cuda/test_attention.c: the rows attention and attention_grad of f16 and bf16 on tensor cores: odd lengths, heads that are padded, packed
 * and padded layouts, large and growing scores, against the definition in double; which shapes take which kernels; the same bits in
 * either order of threads; no bank conflicts. On the emulated device or, in tests/gpu, on a real one.
 *
 * Bounds are sums of what is rounded, by element: w is the largest relative error of rounding to the type, f that of a probability in f32. Out:
 * itself once, and each probability before it meets v. Gradients of scores are rounded before they meet q and k, and are made of
 * delta = gout . out, with out as it was rounded.
 */
#include <convert.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <tensor_impl.h>

const char *td__emulated_row(void) __attribute__((weak));
typedef struct { int64_t reads, conflicts; } bank_count;
bank_count td__emulated_banks(void) __attribute__((weak));
void td__emulated_banks_reset(void) __attribute__((weak));

static const td_device_ops *ops;

enum { DENSE, PACKED, PADDED };        /* (N,H,T,D); slices of (N,T,3,H,D); rows and heads with room between them, heads of k shared */
typedef struct { int64_t n, h, t, s, d; bool causal; int layout; double magnitude, grow; } row;

static const row rows[] = {
    { 1, 1, 1, 1, 64, .magnitude = 1 },
    { 2, 1, 131, 67, 64, true, DENSE, 1 },
    { 1, 2, 67, 163, 128, true, PADDED, 1 },
    { 1, 3, 129, 129, 64, true, PACKED, 2 },
    { 2, 1, 140, 140, 128, false, PACKED, 1 },
    { 1, 2, 100, 77, 40, true, PADDED, 1 },
    { 1, 1, 65, 200, 96, false, DENSE, 2 },
    { 3, 2, 90, 90, 8, false, PACKED, 4 },
    { 1, 1, 197, 293, 64, false, PADDED, 8 },
    { 1, 1, 210, 230, 64, true, DENSE, 3, 4 },
    { 1, 1, 40, 270, 64, true, DENSE, 1 },         /* keys that nobody sees                                                     */
    { 1, 1, 150, 40, 128, true, DENSE, 3, 4 },
    { 1, 2, 5, 0, 64, false, DENSE, 1 },
    { 1, 2, 0, 5, 128, false, DENSE, 1 },
    { 0, 2, 5, 5, 64, false, DENSE, 1 },
};
enum { Q, K, V, G, OUT, LSE, GQ, GK, GV, ARRAYS };

/* An array of the device, what was put there, and its elements as numbers. */
typedef struct { td_dtype t; int64_t count; char *device, *host; double *value; } array;

static double number(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (double)(int32_t)*seed / 2147483648.0;
}

static void fetch(array *x)
{
    assert_int_equal(ops->copy(0, x->host, true, x->device, false, (size_t)x->count * td_dtype_size(x->t)), 0);
    for (int64_t i = 0; i < x->count; i++)
        x->value[i] = td__element_get(x->t, x->host + (size_t)i * td_dtype_size(x->t));
}

static void send(array *x)
{
    assert_int_equal(ops->copy(0, x->device, false, x->host, true, (size_t)x->count * td_dtype_size(x->t)), 0);
}

enum { GUARD = 64 };                           /* elements after an array that nobody may write                            */

static array make(td_dtype t, int64_t count)
{
    array x = { .t = t, .count = count + GUARD };
    x.host = malloc((size_t)x.count * td_dtype_size(t));
    x.value = malloc((size_t)x.count * sizeof *x.value);
    x.device = ops->alloc(0, (size_t)x.count * td_dtype_size(t));
    assert_true(x.host && x.value && x.device);
    memset(x.host, 0x5a, (size_t)x.count * td_dtype_size(t));
    send(&x);
    return x;
}

static void drop(array *x)
{
    ops->free(0, x->device);
    free(x->host);
    free(x->value);
}

static void same_bits(const char *what, array *x, const char *want)
{
    fetch(x);
    if (memcmp(x->host, want, (size_t)x->count * td_dtype_size(x->t)) != 0)
        fail_msg("%s: other bits", what);
}

static char *bits_of(array *x)
{
    fetch(x);
    char *p = malloc((size_t)x->count * td_dtype_size(x->t));
    assert_non_null(p);
    return memcpy(p, x->host, (size_t)x->count * td_dtype_size(x->t));
}

/* ---- a problem --------------------------------------------------------------------------------------------------------------------------- */

typedef struct { td_attention_shape a; array x[ARRAYS]; int64_t at[4]; } problem;     /* at: of q, k, v and out in their arrays   */

static void dense(int64_t *stride, int64_t h, int64_t rows_, int64_t d)
{
    stride[0] = h * rows_ * d, stride[1] = rows_ * d, stride[2] = d;
}

static problem build(const row *r, td_dtype t)
{
    problem p = { .a = { .n = r->n, .h = r->h, .t = r->t, .s = r->s, .d = r->d, .causal = r->causal, .scale = 1 / sqrt((double)r->d) } };
    td_attention_shape *a = &p.a;
    const int64_t heads = r->n * r->h, h = r->h, d = r->d;
    int64_t count[3] = { heads * r->t * d, heads * r->s * d, heads * r->s * d }, of_out = count[0];
    uint32_t seed = (uint32_t)(r->t * 1000 + r->s + r->d);
    dense(a->q, h, r->t, d), dense(a->k, h, r->s, d), dense(a->v, h, r->s, d), dense(a->out, h, r->t, d);
    if (r->layout == PACKED) {
        int64_t packed[3] = { r->t * 3 * h * d, d, 3 * h * d };
        memcpy(a->q, packed, sizeof packed), memcpy(a->k, packed, sizeof packed), memcpy(a->v, packed, sizeof packed);
        a->out[0] = r->t * h * d, a->out[1] = d, a->out[2] = h * d;
        count[0] = count[1] = count[2] = r->n * packed[0];
        p.at[K] = h * d, p.at[V] = 2 * h * d;
    } else if (r->layout == PADDED) {
        a->q[2] = d + 8, a->q[1] = r->t * (d + 8) + 16, a->q[0] = h * a->q[1];
        a->k[2] = 2 * d + 8, a->k[1] = 0, a->k[0] = r->s * a->k[2];
        a->v[2] = h * d, a->v[1] = d, a->v[0] = r->s * h * d;
        a->out[2] = d + 16, a->out[1] = r->t * a->out[2], a->out[0] = h * a->out[1];
        count[0] = r->n * a->q[0], count[1] = r->n * a->k[0];
        of_out = r->n * a->out[0];
        p.at[Q] = 8;
    }
    for (int i = 0; i < 3; i++)
        p.x[i] = make(t, count[i] + 8);
    p.x[G] = make(t, heads * r->t * d);
    p.x[OUT] = make(t, of_out);
    p.x[LSE] = make(TD_F32, heads * r->t);
    p.x[GQ] = make(t, heads * r->t * d);
    p.x[GK] = make(t, heads * r->s * d);
    p.x[GV] = make(t, heads * r->s * d);
    for (int i = 0; i <= G; i++) {
        for (int64_t j = 0; j < p.x[i].count; j++)
            td__element_put(t, p.x[i].host + (size_t)j * 2, r->magnitude * number(&seed));
        send(&p.x[i]);
        fetch(&p.x[i]);
    }
    if (r->grow != 0) {                        /* scores that grow with the key                                             */
        for (int64_t j = 0; j < count[K]; j++)
            td__element_put(t, p.x[K].host + (size_t)j * 2, p.x[K].value[j] * (0.1 + r->grow * (double)(j / d % r->s) / (double)r->s));
        send(&p.x[K]);
        fetch(&p.x[K]);
    }
    if (r->layout == PACKED)                   /* q, k and v of one array                                                   */
        for (int i = K; i <= V; i++) {
            memcpy(p.x[i].host, p.x[Q].host, (size_t)p.x[Q].count * 2);
            send(&p.x[i]);
            fetch(&p.x[i]);
        }
    return p;
}

static void done(problem *p)
{
    for (int i = 0; i < ARRAYS; i++)
        drop(&p->x[i]);
}

static void *place(const problem *p, int i)
{
    return p->x[i].device + (i <= V ? (size_t)p->at[i] * 2 : 0);
}

static void forward(const problem *p)
{
    ops->kernels->attention(p->x[OUT].t, &p->a, place(p, OUT), place(p, LSE), place(p, Q), place(p, K), place(p, V), NULL);
    assert_int_equal(td_error_pending(), 0);
}

static void backward(const problem *p, bool gq, bool gk, bool gv, bool add)
{
    ops->kernels->attention_grad(p->x[OUT].t, &p->a, gq ? place(p, GQ) : NULL, gk ? place(p, GK) : NULL, gv ? place(p, GV) : NULL, place(p, G),
                                 place(p, OUT), place(p, LSE), place(p, Q), place(p, K), place(p, V), NULL, add, add, add);
    assert_int_equal(td_error_pending(), 0);
}

/* ---- the definition ---------------------------------------------------------------------------------------------------------------------- */

/* want and how far from it a result may be, dense (…, d) or (…) for lse */
typedef struct { double *want[ARRAYS], *bound[ARRAYS]; } answer;

static double *zeroes(int64_t n)
{
    double *p = calloc((size_t)n + 1, sizeof *p);
    assert_non_null(p);
    return p;
}

static const double *at(const problem *p, int i, int64_t head, int64_t r)
{
    const int64_t *stride = i == Q ? p->a.q : i == K ? p->a.k : p->a.v;
    return p->x[i].value + p->at[i] + head / p->a.h * stride[0] + head % p->a.h * stride[1] + r * stride[2];
}

static double dot(const double *x, const double *y, int64_t d, double *absolute)
{
    double sum = 0;
    for (int64_t i = 0; i < d; i++)
        sum += x[i] * y[i], *absolute += fabs(x[i] * y[i]);
    return sum;
}

static answer define(const problem *p, td_dtype t)
{
    const td_attention_shape *a = &p->a;
    const int64_t T = a->t, S = a->s, D = a->d, heads = a->n * a->h;
    const double w = t == TD_BF16 ? 0x1p-8 : 0x1p-11, least = t == TD_BF16 ? 0x1p-133 : 0x1p-25, e = 0x1p-20;
    answer r = { 0 };
    const int64_t count[ARRAYS] = { [OUT] = heads * T * D, [LSE] = heads * T, [GQ] = heads * T * D, [GK] = heads * S * D, [GV] = heads * S * D };
    for (int i = OUT; i < ARRAYS; i++)
        r.want[i] = zeroes(count[i]), r.bound[i] = zeroes(count[i]);
    double *pr = zeroes(S), *dp = zeroes(S), *adp = zeroes(S);
    for (int64_t i = 0; i < heads * T; i++) {
        const int64_t head = i / T, query = i % T, see = a->causal && query + 1 < S ? query + 1 : S;
        const double *g = p->x[G].value + i * D, *q = at(p, Q, head, query);
        double *out = r.want[OUT] + i * D, *out_bound = r.bound[OUT] + i * D, most = -INFINITY, sum = 0, large = 0;
        for (int64_t j = 0; j < see; j++) {
            double absolute = 0;
            pr[j] = a->scale * dot(q, at(p, K, head, j), D, &absolute);
            most = fmax(most, pr[j]);
            large = fmax(large, a->scale * absolute);
        }
        for (int64_t j = 0; j < see; j++)
            sum += pr[j] = exp(pr[j] - most);
        const double f = 0x1p-20 * (large + 8);        /* 8 units of the largest sum                                        */
        r.want[LSE][i] = see ? most + log(sum) : -INFINITY;
        r.bound[LSE][i] = f;
        for (int64_t j = 0; j < see; j++) {
            const double *v = at(p, V, head, j);
            pr[j] /= sum;
            for (int64_t c = 0; c < D; c++) {
                out[c] += pr[j] * v[c];
                out_bound[c] += ((w + f + e) * pr[j] + least) * fabs(v[c]);
            }
        }
        double delta = 0, delta_off = 0;
        for (int64_t c = 0; c < D; c++) {
            out_bound[c] += w * fabs(out[c]) + least;
            delta += g[c] * out[c];
            delta_off += fabs(g[c]) * (out_bound[c] + e * fabs(out[c]));
        }
        for (int64_t j = 0; j < see; j++) {
            adp[j] = 0;
            dp[j] = dot(g, at(p, V, head, j), D, &adp[j]);
            const double ds = a->scale * pr[j] * (dp[j] - delta), off = (w + f + e) * fabs(ds) + a->scale * pr[j] * (delta_off + e * adp[j]) + least;
            const double *k = at(p, K, head, j);
            for (int64_t c = 0; c < D; c++) {
                const int64_t key = (head * S + j) * D + c;
                r.want[GQ][i * D + c] += ds * k[c], r.bound[GQ][i * D + c] += off * fabs(k[c]);
                r.want[GK][key] += ds * q[c], r.bound[GK][key] += off * fabs(q[c]);
                r.want[GV][key] += pr[j] * g[c], r.bound[GV][key] += ((w + f + e) * pr[j] + least) * fabs(g[c]);
            }
        }
    }
    for (int x = GQ; x <= GV; x++)
        for (int64_t i = 0; i < count[x]; i++)
            r.bound[x][i] += w * fabs(r.want[x][i]) + least;
    free(pr), free(dp), free(adp);
    return r;
}

static void forget(answer *r)
{
    for (int i = OUT; i < ARRAYS; i++)
        free(r->want[i]), free(r->bound[i]);
}

/* Every element of x, and that what lies between rows and behind them was not written. times: of what was added up. */
static void compare(const row *r, problem *p, int i, const answer *want, int times)
{
    static const char *const name[ARRAYS] = { "q", "k", "v", "gout", "out", "lse", "gq", "gk", "gv" };
    const td_attention_shape *a = &p->a;
    array *x = &p->x[i];
    const int64_t d = i == LSE ? 1 : a->d, n = i == GK || i == GV ? a->s : a->t, size = (int64_t)td_dtype_size(x->t);
    char *touched = calloc((size_t)x->count + 1, 1);
    assert_non_null(touched);
    fetch(x);
    for (int64_t e = 0; e < a->n * a->h * n * d; e++) {
        const int64_t c = e % d, l = e / d % n, head = e / d / n;
        const int64_t where = i == OUT ? head / a->h * a->out[0] + head % a->h * a->out[1] + l * a->out[2] + c : e;
        const double got = x->value[where], ideal = times * want->want[i][e], bound = times * want->bound[i][e];
        touched[where] = 1;
        if (!(got == ideal || fabs(got - ideal) <= bound))
            fail_msg("(%lld,%lld,%lld,%lld,%lld)%s %s: %s of head %lld at [%lld,%lld] is %.9g, expected %.9g, within %.3g", (long long)r->n, (long long)r->h,
                     (long long)r->t, (long long)r->s, (long long)r->d, r->causal ? " causal" : "", td_dtype_name(p->x[OUT].t), name[i], (long long)head,
                     (long long)l, (long long)c, got, ideal, bound);
    }
    for (int64_t e = 0; e < x->count * size; e++)
        if (!touched[e / size] && x->host[e] != 0x5a)
            fail_msg("%s: a place that is not its own was written", name[i]);
    free(touched);
}

static void against_the_definition(void **state)
{
    (void)state;
    if (td__emulated_banks_reset)
        td__emulated_banks_reset();
    for (size_t i = 0; i < TD_COUNT(rows); i++)
        for (int k = 0; k < 2; k++) {
            const row *r = &rows[i];
            const td_dtype t = k ? TD_BF16 : TD_F16;
            problem p = build(r, t);
            forward(&p);
            if (td__emulated_row && r->n > 0 && r->t > 0)
                assert_string_equal(td__emulated_row(), "attention_mma");
            backward(&p, true, true, true, false);
            answer want = define(&p, t);
            for (int x = OUT; x < ARRAYS; x++)
                compare(r, &p, x, &want, 1);
            if ((i + (size_t)k) % 2) {
                forget(&want);
                done(&p);
                continue;
            }
            /* the same bits again, from threads in the other order, one gradient alone; then all on top of what is there */
            char *bits[ARRAYS] = { 0 };
            for (int x = OUT; x < ARRAYS; x++)
                bits[x] = bits_of(&p.x[x]);
            setenv("TANDEM_EMULATE", "reverse", 1);
            forward(&p);
            backward(&p, true, false, false, false);
            backward(&p, false, true, false, false);
            backward(&p, false, false, true, false);
            unsetenv("TANDEM_EMULATE");
            for (int x = OUT; x < ARRAYS; x++) {
                same_bits("again", &p.x[x], bits[x]);
                free(bits[x]);
            }
            backward(&p, true, true, true, true);
            for (int x = GQ; x < ARRAYS; x++)
                compare(r, &p, x, &want, 2);
            forget(&want);
            done(&p);
        }
    if (td__emulated_banks) {
        const bank_count banks = td__emulated_banks();
        print_message("%lld reads of 8 rows from shared memory, %lld bank conflicts\n", (long long)banks.reads, (long long)banks.conflicts);
        assert_true(banks.reads > 10000);
        assert_int_equal(banks.conflicts, 0);
    }
}

/* NaN is not hidden, and does not go where nobody sees it. */
static void nan_lives(void **state)
{
    (void)state;
    const row r = { 1, 1, 150, 150, 64, true, DENSE, 1 };
    problem p = build(&r, TD_BF16);
    const int64_t key = 77;
    td__element_put(TD_BF16, p.x[K].host + (size_t)(key * r.d + 5) * 2, (double)NAN);
    send(&p.x[K]);
    forward(&p);
    fetch(&p.x[OUT]), fetch(&p.x[LSE]);
    for (int64_t i = 0; i < r.t; i++) {
        assert_int_equal(isnan(p.x[LSE].value[i]), i >= key);
        for (int64_t c = 0; c < r.d; c++)
            assert_int_equal(isnan(p.x[OUT].value[i * r.d + c]), i >= key);
    }
    done(&p);
}

/* Which kernels a call takes, and that the others give the same within their bounds. */
static void paths(void **state)
{
    (void)state;
    if (!td__emulated_row)
        skip();
    static const struct { int64_t d, stride, skip; td_dtype t; bool mask; double scale; bool fast; } call[] = {
        { 64, 64, 0, TD_BF16, false, 1, true },   { 64, 64, 0, TD_F16, false, 1, true },  { 64, 72, 8, TD_F16, false, 1, true },
        { 8, 8, 0, TD_BF16, false, 1, true },     { 128, 128, 0, TD_F16, false, 1, true }, { 120, 128, 0, TD_F16, false, 0.01, true },
        { 64, 64, 0, TD_F32, false, 1, false },   { 64, 64, 0, TD_BF16, true, 1, false }, { 60, 64, 0, TD_BF16, false, 1, false },
        { 136, 136, 0, TD_BF16, false, 1, false }, { 64, 65, 0, TD_BF16, false, 1, false }, { 64, 64, 1, TD_BF16, false, 1, false },
        { 64, 64, 0, TD_BF16, false, -1, false },
    };
    for (size_t i = 0; i < TD_COUNT(call); i++) {
        const int64_t T = 9, count = T * call[i].stride + call[i].skip + 8, d = call[i].d, step = (int64_t)td_dtype_size(call[i].t);
        td_attention_shape a = { .n = 1, .h = 1, .t = T, .s = T, .d = d, .scale = call[i].scale, .mask_bool = true };
        a.q[2] = a.k[2] = a.v[2] = call[i].stride;
        a.out[2] = d;
        a.mask[2] = T, a.mask[3] = 1;
        array x[6], mask = make(TD_BOOL, T * T), lse = make(TD_F32, T);
        for (int k = 0; k < 6; k++) {
            x[k] = make(call[i].t, count + T * d);
            memset(x[k].host, 0, (size_t)x[k].count * (size_t)step);
            send(&x[k]);
        }
        char *q = x[0].device + call[i].skip * step;
        const void *m = call[i].mask ? mask.device : NULL;
        ops->kernels->attention(call[i].t, &a, x[1].device, lse.device, q, q, q, m);
        assert_string_equal(td__emulated_row(), call[i].fast ? "attention_mma" : "attention");
        ops->kernels->attention_grad(call[i].t, &a, x[2].device, x[3].device, x[4].device, x[5].device, x[1].device, lse.device, q, q, q, m, false,
                                     false, false);
        assert_string_equal(td__emulated_row(), call[i].fast ? "attention_mma_grad" : "attention_grad");
        for (int k = 0; k < 6; k++)
            drop(&x[k]);
        drop(&mask), drop(&lse);
    }
}

int main(int argc, char **argv)
{
    setenv("TANDEM_DEVICE", "cuda", 1);
    td_errors(TD_ERRORS_RETURN);
    if (td_device_default().kind != TD_CUDA) {
        printf("no CUDA device: %s\n", td_error_message());
        return argc > 1 && strcmp(argv[1], "or-skip") == 0 ? 77 : 1;
    }
    ops = td__device_ops((td_device){ TD_CUDA, 0 });
    const struct CMUnitTest tests[] = { cmocka_unit_test(against_the_definition), cmocka_unit_test(nan_lives), cmocka_unit_test(paths) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
