/* tests/optim/test_capture_fuse.c: chains of element-wise operations in a captured step against the step itself, bit for bit: every operation of the list,
 * random chains over random shapes and dtypes, on 1 and 2 threads; what ends a chain; memory; errors.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <capture.h>
#include <ops_list.h>
#include <quiet_test.h>
#include <tandem/capture.h>
#include <tandem/ops.h>
#include <tandem/optim.h>
#include <tandem/scope.h>

/* ---- one operation each, kept within numbers that stay finite ----------------------------------------------------------------------------- */

/* a: the value so far, b: another of its shape, row: of its last dimension, one: a scalar; n: a random number */
typedef struct { td_tensor *b, *row, *one; uint32_t n; } others;
typedef td_tensor *applied(td_tensor *a, const others *o);

static td_tensor *second(td_tensor *a, const others *o)
{
    td_tensor *const choice[] = { o->b, o->row, o->one, a };
    return choice[o->n % 4];
}
static td_tensor *positive(td_tensor *x) { return td_shift(td_abs(x), 0.5); }
static td_tensor *add(td_tensor *a, const others *o) { return td_add(a, second(a, o)); }
static td_tensor *sub(td_tensor *a, const others *o) { return o->n & 4 ? td_sub(second(a, o), a) : td_sub(a, second(a, o)); }
static td_tensor *mul(td_tensor *a, const others *o) { return td_mul(a, second(a, o)); }
static td_tensor *div_(td_tensor *a, const others *o) { return td_div(a, positive(o->b)); }
static td_tensor *neg(td_tensor *a, const others *o) { (void)o; return td_neg(a); }
static td_tensor *scale(td_tensor *a, const others *o) { return td_scale(a, o->n % 3 ? 0.75 : -1.5); }
static td_tensor *shift(td_tensor *a, const others *o) { (void)o; return td_shift(a, 0.3); }
static td_tensor *eq(td_tensor *a, const others *o) { return td_where(td_eq(a, second(a, o)), td_scale(a, 2), o->b); }
static td_tensor *cast(td_tensor *a, const others *o)
{
    static const td_dtype to[] = { TD_F32, TD_F64, TD_F16, TD_BF16, TD_I32 };
    td_dtype t = to[o->n % 4];
    return td_cast(td_cast(a, t), td_dtype_of(a));
}
static td_tensor *relu(td_tensor *a, const others *o) { (void)o; return td_relu(a); }
static td_tensor *gelu(td_tensor *a, const others *o) { (void)o; return td_gelu(a); }
static td_tensor *gelu_tanh(td_tensor *a, const others *o) { (void)o; return td_gelu_tanh(a); }
static td_tensor *sigmoid(td_tensor *a, const others *o) { (void)o; return td_sigmoid(a); }
static td_tensor *tanh_(td_tensor *a, const others *o) { (void)o; return td_tanh(a); }
static td_tensor *silu(td_tensor *a, const others *o) { (void)o; return td_silu(a); }
static td_tensor *exp_(td_tensor *a, const others *o) { (void)o; return td_exp(td_tanh(a)); }
static td_tensor *ln(td_tensor *a, const others *o) { (void)o; return td_ln(positive(a)); }
static td_tensor *sqrt_(td_tensor *a, const others *o) { (void)o; return td_sqrt(positive(a)); }
static td_tensor *abs_(td_tensor *a, const others *o) { (void)o; return td_abs(a); }
static td_tensor *pow_(td_tensor *a, const others *o) { (void)o; return td_pow(positive(td_tanh(a)), 1.7); }
static td_tensor *clamp(td_tensor *a, const others *o) { (void)o; return td_clamp(a, -0.8, 0.9); }
static td_tensor *maximum(td_tensor *a, const others *o) { return td_maximum(a, second(a, o)); }
static td_tensor *minimum(td_tensor *a, const others *o) { return td_minimum(second(a, o), a); }
static td_tensor *where(td_tensor *a, const others *o) { return td_where(td_eq(td_abs(o->b), o->b), a, second(a, o)); }
static td_tensor *swiglu(td_tensor *a, const others *o) { return td_swiglu(a, o->n & 1 ? o->b : a); }
static td_tensor *dropout(td_tensor *a, const others *o) { return td_dropout(a, o->n & 1 ? 0.3 : 0.6, true); }
#define div div_
#define exp exp_
#define tanh tanh_
#define sqrt sqrt_
#define abs abs_
#define pow pow_

static const struct { const char *name; applied *apply; } operation[] = {
#define ROW(name) { #name, name },
    TD_OP_LIST_ELEMENTS(ROW)                           /* an operation of the list that is not here does not compile              */
#undef ROW
};

/* ---- a step: a chain of operations on an input and a parameter, a loss, a step of SGD ---------------------------------------------------------- */

enum { MOST = 12, STEPS = 4 };
enum { NOTHING, RESHAPED, TRANSPOSED, WRITTEN, BETWEEN };     /* what stands between two operations                              */

typedef struct {
    td_shape  shape;
    td_dtype  dtype;
    int       op[MOST], between[MOST], n;
    uint32_t  number[MOST];
    bool      samples, trained;
    td_tensor *w, *seen;
    td_optim  *opt;
} program;

static td_tensor *chain(program *p, td_tensor *x, td_tensor *w, td_tensor *row, td_tensor *one)
{
    for (int i = 0; i < p->n; i++) {
        x = operation[p->op[i]].apply(x, &(others){ w, row, one, p->number[i] });
        if (p->between[i] == RESHAPED)
            x = td_reshape(td_reshape(x, TD_SHAPE(-1)), p->shape);
        else if (p->between[i] == TRANSPOSED && p->shape.ndim == 2)
            x = td_transpose(td_contiguous(td_transpose(x, 0, 1)), 0, 1);
        else if (p->between[i] == WRITTEN)
            td_assign(p->seen, td_cast(td_detach(x), td_dtype_of(p->seen)));
    }
    return x;
}

static td_tensor *step(td_tensors in, void *user)
{
    program *p = user;
    if (p->samples)
        td_samples(in.list[3]);
    td_tensor *x = p->trained ? td_add(in.list[0], p->w) : in.list[0], *y = chain(p, x, p->w, in.list[1], in.list[2]);
    if (p->trained) {
        td_backward(td_mean(td_cast(y, TD_F32), NULL, 0, false));
        td_optim_step(p->opt);
    }
    return y;
}

static void begin(program *p)
{
    td_seed(5);
    td_step_set(0);
    td_samples(NULL);
    p->trained = p->dtype != TD_I32 && p->dtype != TD_I64;
    p->w = td_keep(td_cast(td_scale(td_randn(p->shape, 3, 1), p->trained ? 1 : 4), p->dtype));
    p->seen = td_keep(td_zeros(p->shape, p->dtype));
    if (p->trained) {
        td_requires_grad((td_tensors){ &p->w, 1 }, true);
        p->opt = td_sgd_new((td_tensors){ &p->w, 1 }, &(td_sgd_opts){ .lr = 50 });
    }
}

static void end(program *p)
{
    td_samples(NULL);
    if (p->trained)
        td_optim_free(p->opt);
    td_release(p->w);
    td_release(p->seen);
}

static td_tensors inputs(const program *p, int s, td_tensor *into[4])
{
    const double by = p->trained ? 1 : 5;
    const int64_t rows = p->shape.dim[0];
    int64_t *ids = test_malloc((size_t)rows * sizeof *ids);
    for (int64_t i = 0; i < rows; i++)
        ids[i] = 100 * s + 3 * i;
    into[0] = td_cast(td_scale(td_randn(p->shape, 1, (uint64_t)s), by), p->dtype);
    into[1] = td_cast(td_scale(td_randn(TD_SHAPE(p->shape.dim[p->shape.ndim - 1]), 2, (uint64_t)s), by), p->dtype);
    into[2] = td_cast(td_full(TD_SCALAR, TD_F32, 0.4 + 0.2 * s), p->dtype);
    into[3] = td_from(ids, TD_SHAPE(rows), TD_I64);
    test_free(ids);
    return (td_tensors){ into, 4 };
}

typedef struct { char *bytes; size_t n, room; } outcome;

static void put(outcome *o, td_tensor *x)
{
    size_t n = (size_t)td_numel(x) * td_dtype_size(td_dtype_of(x));
    if (o->n + n > o->room) {
        o->room = 2 * (o->n + n);
        o->bytes = realloc(o->bytes, o->room);
        assert_non_null(o->bytes);
    }
    assert_int_equal(td_copy_out(x, o->bytes + o->n, n), 0);
    o->n += n;
}

/* All results, and the weights and what was written on the way after each step. Returns how many operations ran in chains. */
static int64_t run(program *p, bool captured, int64_t verify, outcome *o)
{
    TD_SCOPE();
    td_graph *g = NULL;
    int64_t fused = 0;
    td_tensor *in[4];
    begin(p);
    o->n = 0;
    for (int s = 0; s < STEPS; s++) {
        TD_SCOPE();
        td_tensors given = inputs(p, s, in);
        td_tensor *y;
        if (!captured) {
            y = step(given, p);
        } else if (!g) {
            g = td_capture(step, p, given, &(td_capture_opts){ .verify = verify });
            y = td_graph_result(g);
            fused = td_error_pending() ? 0 : g->fused;
        } else {
            y = td_replay(g, given);
        }
        assert_string_equal(td_error_pending() ? td_error_message() : "", "");
        put(o, y);
        put(o, p->w);
        put(o, p->seen);
    }
    td_graph_free(g);
    end(p);
    return fused;
}

static outcome want, got;

static void text_of(const program *p, char *into, size_t size)
{
    size_t at = (size_t)snprintf(into, size, "%s, shape", td_dtype_name(p->dtype));
    for (int i = 0; i < p->shape.ndim; i++)
        at += (size_t)snprintf(into + at, size - at, " %lld", (long long)p->shape.dim[i]);
    at += (size_t)snprintf(into + at, size - at, "%s:", p->samples ? ", samples" : "");
    for (int i = 0; i < p->n; i++)
        at += (size_t)snprintf(into + at, size - at, " %s(%u)%s", operation[p->op[i]].name, (unsigned)p->number[i], p->between[i] ? " |" : "");
}

static int64_t same(program *p, int threads, int64_t verify)
{
    char text[1024];
    omp_set_num_threads(1);
    run(p, false, 0, &want);
    omp_set_num_threads(threads);
    int64_t fused = run(p, true, verify, &got);
    omp_set_num_threads(1);
    text_of(p, text, sizeof text);
    assert_int_equal(want.n, got.n);
    for (size_t i = 0; i < want.n; i++)
        if (want.bytes[i] != got.bytes[i])
            fail_msg("%d threads: byte %zu of %zu differs: %s", threads, i, want.n, text);
    return fused;
}

/* ---- tests ------------------------------------------------------------------------------------------------------------------------------- */

static bool takes(const char *name, td_dtype t)
{
    static const char *const whole[] = { "add", "sub", "mul", "neg", "abs", "maximum", "minimum", "eq", "where" };
    if (t != TD_I32 && t != TD_I64)
        return true;
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++)
        if (!strcmp(name, whole[i]))
            return true;
    return false;
}

static int number_of(const char *name)
{
    for (size_t i = 0; i < sizeof operation / sizeof *operation; i++)
        if (!strcmp(operation[i].name, name))
            return (int)i;
    fail_msg("no operation %s", name);
    return 0;
}

/* neg, the operation, neg: all in one chain, with each kind of second operand. */
static void each_operation(void **state)
{
    (void)state;
    static const td_dtype dtypes[] = { TD_F32, TD_F64, TD_F16, TD_BF16, TD_I32, TD_I64 };
    for (size_t k = 0; k < sizeof operation / sizeof *operation; k++)
        for (size_t t = 0; t < 6; t++)
            for (uint32_t n = 0; n < 4 && takes(operation[k].name, dtypes[t]); n++) {
                program p = { .shape = n % 2 ? TD_SHAPE(7, 64, 13) : TD_SHAPE(131, 64), .dtype = dtypes[t], .n = 3,
                              .op = { number_of("neg"), (int)k, number_of("neg") }, .number = { 0, n + 4 * (n & 1), 0 }, .samples = n & 1 };
                int64_t fused = same(&p, 1, n == 3 ? 2 : 0);
                if (fused < 3)
                    fail_msg("only %lld operations in chains: %s in %s", (long long)fused, operation[k].name, td_dtype_name(dtypes[t]));
            }
}

static uint32_t seed;
static uint32_t any(uint32_t n)
{
    seed = seed * 1664525 + 1013904223;
    return (seed >> 8) % n;
}

static program random_program(int k)
{
    static const td_dtype dtypes[] = { TD_F32, TD_F32, TD_F64, TD_F16, TD_BF16 };
    seed = (uint32_t)k * 2654435761u + 1;
    any(2);
    program p = { .dtype = dtypes[any(5)], .n = 2 + (int)any(5), .samples = any(2) };
    const int64_t columns[] = { 1, 2, 17, 64, 128, 321, 5000 };
    const int64_t last = columns[any(7)];
    switch (any(3)) {
    case 0: p.shape = TD_SHAPE(1 + any(60), last); break;
    case 1: p.shape = TD_SHAPE(1 + any(9), 1 + any(7), last); break;
    default: p.shape = TD_SHAPE(1 + any(40000 / (uint32_t)last + 1), last); break;
    }
    for (int i = 0; i < p.n; i++) {
        p.op[i] = (int)any(sizeof operation / sizeof *operation);
        p.number[i] = any(8);
        p.between[i] = any(4) ? NOTHING : (int)any(BETWEEN);
    }
    return p;
}

static void random_chains(void **state)
{
    (void)state;
    int64_t fused = 0;
    for (int k = 0; k < 150; k++) {
        program p = random_program(k);
        fused += same(&p, 1 + k % 2, k % 5 == 0 ? 1 : 0);
    }
    assert_true(fused > 400);
}

/* If a chain did not round to 16 bits after each operation, would these tests see it? The same chains in f32, rounded once, differ. */
static void rounding_shows(void **state)
{
    (void)state;
    int differs = 0, of = 0;
    for (int k = 0; k < 150; k++) {
        program p = random_program(k);
        if (p.dtype != TD_F16 && p.dtype != TD_BF16)
            continue;
        TD_SCOPE();
        TD_NO_GRAD();
        td_tensor *in[4];
        begin(&p);
        inputs(&p, 0, in);
        td_tensor *rounded = chain(&p, in[0], p.w, in[1], in[2]);
        td_step_set(0);
        td__random_calls_set(0);
        td_tensor *once = td_cast(chain(&p, td_cast(in[0], TD_F32), td_cast(p.w, TD_F32), td_cast(in[1], TD_F32), td_cast(in[2], TD_F32)), p.dtype);
        want.n = got.n = 0;
        put(&want, rounded);
        put(&got, once);
        differs += memcmp(want.bytes, got.bytes, want.n) != 0;
        of++;
        end(&p);
    }
    assert_true(of > 20 && 2 * differs > of);
}

/* Dropout counts within samples: larger than a block, no multiple of 64, several rows each. */
static void dropout_in_chains(void **state)
{
    (void)state;
    const td_shape shapes[] = { TD_SHAPE(3, 100, 128), TD_SHAPE(4, 9001), TD_SHAPE(70, 33), TD_SHAPE(6, 5), TD_SHAPE(2, 70000), TD_SHAPE(40000) };
    const int d = number_of("dropout"), a = number_of("add"), s = number_of("scale");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (uint32_t n = 0; n < 4; n++) {
            program p = { .shape = shapes[i], .dtype = n == 2 ? TD_BF16 : TD_F32, .n = 5, .op = { s, d, a, d, s }, .number = { 1, 0, n, 1, 1 }, .samples = n & 1 };
            int64_t fused = same(&p, 2, 0);
            assert_true(fused >= 2);
        }
}

/* ---- what only the chain knows has no memory -------------------------------------------------------------------------------------------------- */

static td_tensor *kept;

static td_tensor *long_chain(td_tensors in, void *user)
{
    td_tensor *x = in.list[0], *y = td_scale(x, 0.5), *z;
    (void)user;
    z = td_add(y, x);
    for (int i = 0; i < 8; i++)
        z = td_shift(td_mul(z, x), 0.1);
    if (kept)
        td_assign(kept, y);                            /* somebody reads the first one later */
    return z;
}

static void memory_is_given_up(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    TD_SCOPE();
    td_tensor *x = td_randn(TD_SHAPE(N), 1, 0);
    for (int k = 0; k < 2; k++) {
        kept = k ? td_zeros(TD_SHAPE(N), TD_F32) : NULL;
        td_graph *g = td_capture(long_chain, NULL, (td_tensors){ &x, 1 }, NULL);
        assert_int_equal(td_graph_stats(g).fused, 18);
        td_tensor *y = td_replay(g, (td_tensors){ &x, 1 }), *z = long_chain((td_tensors){ &x, 1 }, NULL);
        want.n = got.n = 0;
        put(&want, z);
        put(&got, y);
        assert_memory_equal(want.bytes, got.bytes, want.n);
        const double arrays = (double)td_graph_stats(g).planned / (4.0 * N);
        if (!(arrays >= 0.9 * k && arrays < 1.3 * k + 0.2))     /* the result is not planned; what is read afterwards is              */
            fail_msg("%g arrays of the chain's size", arrays);
        td_graph_free(g);
    }
    kept = NULL;
}

/* A tensor that the program keeps is not taken away. */
static td_tensor *held;

static td_tensor *holding(td_tensors in, void *user)
{
    (void)user;
    td_tensor *y = td_scale(in.list[0], 3);
    held = td_keep(y);
    return td_shift(td_shift(y, 1), 1);
}

static void what_the_program_holds(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = td_full(TD_SHAPE(5000), TD_F32, 1);
    td_graph *g = td_capture(holding, NULL, (td_tensors){ &x, 1 }, NULL);
    assert_int_equal(g->fused, 3);
    td_fill(x, 2);
    assert_true(td_at(td_replay(g, (td_tensors){ &x, 1 }), TD_SHAPE(4999)) == 8);
    assert_true(td_at(held, TD_SHAPE(4999)) == 6);
    td_graph_free(g);
    assert_true(td_at(held, TD_SHAPE(4999)) == 6);
    td_release(held);
}

/* ---- errors ------------------------------------------------------------------------------------------------------------------------------------ */

static td_tensor *dropping(td_tensors in, void *user)
{
    (void)user;
    td_tensor *y = td_scale(in.list[0], 2);
    return td_shift(td_dropout(y, 0.5, true), 1);
}

static void errors_have_lines(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = td_ones(TD_SHAPE(6, 10), TD_F32);
    td_graph *g = td_capture(dropping, NULL, (td_tensors){ &x, 1 }, NULL);
    assert_int_equal(g->fused, 3);
    td_samples(td_arange(4, TD_I64));
    assert_true(td_is_poisoned(td_replay(g, (td_tensors){ &x, 1 })));
    assert_int_equal(td_error_pending(), TD_ERR_SHAPE);
    if (!strstr(td_error_message(), "not a multiple of the 4 current samples") || !strstr(td_error_message(), ".c:"))
        fail_msg("\"%s\"", td_error_message());
    td_error_clear();
    td_samples(NULL);
    assert_false(td_is_poisoned(td_replay(g, (td_tensors){ &x, 1 })));         /* as good as before */
    td_graph_free(g);
}

/* The graph knows versions: what a chain saved is changed in place before the backward. */
typedef struct { td_tensor *w; } spoil;

static td_tensor *spoiling(td_tensors in, void *user)
{
    spoil *s = user;
    td_tensor *y = td_mul(td_scale(s->w, 2), in.list[0]);
    td_tensor *loss = td_sum(y, NULL, 0, false);
    td_backward(loss);
    td_assign(s->w, td_scale(in.list[0], 1));
    td_zero_grad((td_tensors){ &s->w, 1 });
    return loss;
}

static void versions_move(void **state)
{
    (void)state;
    TD_SCOPE();
    td_tensor *x = td_randn(TD_SHAPE(5000), 1, 1), *w = td_randn(TD_SHAPE(5000), 1, 2);
    td_requires_grad((td_tensors){ &w, 1 }, true);
    td_graph *g = td_capture(spoiling, &(spoil){ w }, (td_tensors){ &x, 1 }, &(td_capture_opts){ .verify = 1 });
    assert_true(g->fused >= 2);
    for (int i = 0; i < 3; i++)
        assert_false(td_is_poisoned(td_replay(g, (td_tensors){ &x, 1 })));
    td_graph_free(g);
    td_requires_grad((td_tensors){ &w, 1 }, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(each_operation), TEST(random_chains), TEST(rounding_shows), TEST(dropout_in_chains), TEST(memory_is_given_up),
        TEST(what_the_program_holds), TEST(errors_have_lines), TEST(versions_move),
    };
    return cmocka_run_group_tests(tests, quietly, NULL);
}
