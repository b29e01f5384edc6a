/* tests/optim/test_more_rules.c: 100 steps of Adam, RMSprop, Adagrad, Lion, LAMB and LARS against their formulas in double: parameters
 * that take part in some steps only, groups of options, a rate that changes, leaves that move between flats, weights and gradients that
 * are zero. */
#include "more_rules.h"

enum { STEPS = 100 };
static const unsigned EVERY = (1u << PARAMS) - 1;

static unsigned some_of(int step)
{
    unsigned use = 0;
    for (int i = 0; i < PARAMS; i++)
        use |= (unsigned)((step + i) % 3 != 0) << i;
    return use;
}

#define MAKER(name)                                                                                          \
    static td_optim *name##_new(td_tensors p, const void *o)                                                 \
    {                                                                                                        \
        return td_##name##_new(p, o);                                                                        \
    }                                                                                                        \
    static int name##_add(td_optim *opt, td_tensors p, const void *o)                                        \
    {                                                                                                        \
        return td_##name##_add_group(opt, p, o);                                                             \
    }
MAKER(adam) MAKER(rmsprop) MAKER(adagrad) MAKER(lion) MAKER(lamb) MAKER(lars)

#define RULE(name) #name, name##_new, name##_add, reference_##name
#define OPTS(name, ...) &(const td_##name##_opts){ __VA_ARGS__ }

/* Options as a user writes them, and what they mean: the rate, then the formula's numbers. */
static const struct {
    const char *name;
    td_optim *(*make)(td_tensors, const void *);
    int (*add)(td_optim *, td_tensors, const void *);
    reference *formula;
    const void *opts;
    double lr, values[5];
    bool f64_only;                                 /* signs of rounding errors: no property of ours */
} rows[] = {
    { RULE(adam), NULL, 1e-3, { 0.9, 0.999, 1e-8, 0 } },
    { RULE(adam), OPTS(adam, .lr = 0.01f, .beta1 = 0.8f, .beta2 = 0.95f, .eps = 1e-6f, .weight_decay = 0.1f), 0.01f, { 0.8f, 0.95f, 1e-6f, 0.1f } },
    { RULE(adam), OPTS(adam, .lr = 0.01f, .beta1 = TD_ZERO), 0.01f, { 0, 0.999, 1e-8, 0 } },
    { RULE(rmsprop), NULL, 0.01, { 0.99, 1e-8, 0, 0, 0 } },
    { RULE(rmsprop), OPTS(rmsprop, .lr = 0.003f, .alpha = 0.98f, .eps = 1e-4f, .momentum = 0.5f, .weight_decay = 0.1f),
      0.003f, { 0.98f, 1e-4f, 0.5f, 0.1f, 0 } },
    { RULE(rmsprop), OPTS(rmsprop, .lr = 0.003f, .centered = true), 0.003f, { 0.99, 1e-8, 0, 0, 1 } },
    { RULE(rmsprop), OPTS(rmsprop, .lr = 0.002f, .momentum = 0.25f, .centered = true, .weight_decay = 0.01f), 0.002f, { 0.99, 1e-8, 0.25, 0.01f, 1 } },
    { RULE(adagrad), NULL, 0.01, { 0, 1e-10, 0, 0 } },
    { RULE(adagrad), OPTS(adagrad, .lr = 0.1f, .lr_decay = 0.01f, .eps = 1e-6f, .weight_decay = 0.1f, .initial = 0.5f),
      0.1f, { 0.01f, 1e-6f, 0.1f, 0.5 } },
    { RULE(lion), NULL, 1e-4, { 0.9, 0.99, 0 } },
    { RULE(lion), OPTS(lion, .lr = 0.01f, .beta1 = 0.8f, .beta2 = 0.95f, .weight_decay = 0.1f), 0.01f, { 0.8f, 0.95f, 0.1f } },
    { RULE(lion), OPTS(lion, .lr = 0.15f), 0.15f, { 0.9, 0.99, 0 }, true },        /* passes its targets and turns round */
    { RULE(lamb), NULL, 1e-3, { 0.9, 0.999, 1e-6, 0.01, 0 } },
    { RULE(lamb), OPTS(lamb, .lr = 0.02f, .beta1 = 0.8f, .beta2 = 0.95f, .eps = 1e-4f, .weight_decay = 0.1f), 0.02f, { 0.8f, 0.95f, 1e-4f, 0.1f, 0 } },
    { RULE(lamb), OPTS(lamb, .lr = 0.01f, .weight_decay = TD_ZERO), 0.01f, { 0.9, 0.999, 1e-6, 0, 0 } },
    { RULE(lamb), OPTS(lamb, .lr = 0.01f, .no_trust = true), 0.01f, { 0.9, 0.999, 1e-6, 0.01, 1 } },
    { RULE(lars), NULL, 0.1, { 0.9, 5e-4, 1e-3, 0 } },
    { RULE(lars), OPTS(lars, .lr = 0.5f, .momentum = TD_ZERO, .weight_decay = 0.1f, .trust = 0.02f), 0.5f, { 0, 0.1f, 0.02f, 0 } },
    { RULE(lars), OPTS(lars, .lr = 0.5f, .weight_decay = TD_ZERO, .trust = 0.01f), 0.5f, { 0.9, 0, 0.01f, 0 } },
    { RULE(lars), OPTS(lars, .lr = 0.02f, .momentum = 0.5f, .weight_decay = TD_ZERO, .no_trust = true), 0.02f, { 0.5, 0, 1e-3, 1 } },
};

/* Weights that are zero (norms that are zero) in parameter 4, gradients that are in parameter 6. */
static void begin_with_zeroes(job *j, td_dtype dtype)
{
    begin_job(j, dtype);
    assert_int_equal(td_fill(j->p[4], 0), 0);
    assert_int_equal(td_fill(j->a[6], 0), 0);
    memset(j->w[4], 0, sizeof j->w[4]);
    memset(j->ra[6], 0, sizeof j->ra[6]);
}

static double rate_of(size_t c, double scale)
{
    return rows[c].lr * scale;
}

static void compare_row(const job *j, size_t c)
{
    double tolerance = tolerance_of(j->dtype);
    for (int i = 0; i < PARAMS; i++)
        if (!(distance(j, i) <= tolerance))
            fail_msg("%s, row %zu, %s: parameter %d is off by %g, allowed %g", rows[c].name, c, td_dtype_name(j->dtype), i, distance(j, i), tolerance);
}

static void formulas(void **state)
{
    (void)state;
    for (size_t c = 0; c < TD_COUNT(rows); c++)
        for (int f64 = rows[c].f64_only; f64 < 2; f64++)
            for (int skip = 0; skip < 2; skip++) {
                job j;
                begin_with_zeroes(&j, f64 ? TD_F64 : TD_F32);
                td_optim *opt = rows[c].make(all_of(&j), rows[c].opts);
                assert_true(fabs(td_optim_get_lr(opt, 0) - rows[c].lr) <= 1e-9);
                td_optim_set_lr(opt, 0, rows[c].lr);
                for (int s = 0; s < STEPS; s++) {
                    unsigned use = skip ? some_of(s) : EVERY;
                    backward(&j, use);
                    assert_int_equal(td_optim_step(opt), 0);
                    for (int i = 0; i < PARAMS; i++)
                        if (use >> i & 1)
                            rows[c].formula(&j, i, rows[c].values, rows[c].lr);
                }
                compare_row(&j, c);
                td_optim_free(opt);
                end_job(&j);
            }
}

/* Two groups of one optimizer: each row's options beside the next row's of the same rule; one group's rate follows a schedule. Both
 * dtypes take part, so that one group spans two flats. Two backwards are two micro-batches of one mean. */
static void groups(void **state)
{
    (void)state;
    for (size_t c = 0; c + 1 < TD_COUNT(rows); c++) {
        if (rows[c].formula != rows[c + 1].formula || rows[c + 1].f64_only)
            continue;
        job j, other;
        begin_with_zeroes(&j, TD_F64);
        begin_with_zeroes(&other, TD_F32);
        td_optim *opt = rows[c].make((td_tensors){ j.p, 4 }, rows[c].opts);
        assert_int_equal(rows[c].add(opt, (td_tensors){ j.p + 4, 3 }, rows[c + 1].opts), 0);
        assert_int_equal(rows[c].add(opt, all_of(&other), rows[c + 1].opts), 0);
        td_optim_set_lr(opt, 2, rows[c + 1].lr);
        for (int s = 0; s < STEPS; s++) {
            double one = rate_of(c, td_schedule_linear(s, 1, 0.5, 50)), two = rate_of(c + 1, td_schedule_step(s, 30, 0.5));
            td_optim_set_lr(opt, 0, one);
            td_optim_set_lr(opt, 1, two);
            TD_SCOPE();
            td_tensor *loss = td_zeros(TD_SCALAR, TD_F64);
            for (int i = 0; i < PARAMS; i++) {
                td_tensor *d = td_sub(j.p[i], j.b[i]);
                td_tensor *e = td_sub(other.p[i], other.b[i]);
                loss = td_add(loss, td_scale(td_sum(td_mul(j.a[i], td_mul(d, d)), NULL, 0, false), 0.5));
                loss = td_add(loss, td_cast(td_scale(td_sum(td_mul(other.a[i], td_mul(e, e)), NULL, 0, false), 0.5), TD_F64));
            }
            assert_int_equal(td_backward(loss), 0);
            assert_int_equal(td_optim_step(opt), 0);
            for (int i = 0; i < PARAMS; i++) {
                rows[c].formula(&j, i, i < 4 ? rows[c].values : rows[c + 1].values, i < 4 ? one : two);
                rows[c].formula(&other, i, rows[c + 1].values, rows[c + 1].lr);
            }
        }
        compare_row(&j, c);
        compare_row(&other, c);
        td_optim_free(opt);
        end_job(&j);
        end_job(&other);
    }
}

/* The factor by which a group's mean is kept (gscale) reaches norms too: two unequal micro-batches. */
static void micro_batches(void **state)
{
    (void)state;
    for (size_t c = 0; c < TD_COUNT(rows); c++) {
        job j;
        begin_with_zeroes(&j, TD_F64);
        td_optim *opt = rows[c].make(all_of(&j), rows[c].opts);
        td_optim_set_lr(opt, 0, rows[c].lr);
        for (int s = 0; s < 20; s++) {
            for (int micro = 0; micro < 2; micro++) {          /* weights 3 and 1, gradients times 1 and 5: together times 2 */
                TD_SCOPE();
                td_tensor *loss = td_zeros(TD_SCALAR, TD_F64);
                for (int i = 0; i < PARAMS; i++) {
                    td_tensor *d = td_sub(j.p[i], j.b[i]);
                    loss = td_add(loss, td_scale(td_sum(td_mul(j.a[i], td_mul(d, d)), NULL, 0, false), micro ? 2.5 : 0.5));
                }
                assert_int_equal(td_backward_weighted(loss, td_full(TD_SCALAR, TD_F64, micro ? 1 : 3)), 0);
            }
            assert_int_equal(td_optim_step(opt), 0);
            for (int i = 0; i < PARAMS; i++) {
                for (int64_t k = 0; k < size_of[i]; k++)
                    j.ra[i][k] *= 2;
                rows[c].formula(&j, i, rows[c].values, rows[c].lr);
                for (int64_t k = 0; k < size_of[i]; k++)
                    j.ra[i][k] /= 2;
            }
        }
        compare_row(&j, c);
        td_optim_free(opt);
        end_job(&j);
    }
}

/* What ddp does: takes the leaves over before the first step, cuts them anew later. State must move with its parameters. */
static void leaves_move(void **state)
{
    (void)state;
    for (size_t c = 0; c < TD_COUNT(rows); c++) {
        job j;
        begin_with_zeroes(&j, TD_F64);
        td_optim *opt = rows[c].make(all_of(&j), rows[c].opts);
        td_optim_set_lr(opt, 0, rows[c].lr);
        td__leaf *leaf[PARAMS];
        for (int i = 0; i < PARAMS; i++)
            leaf[i] = td__leaf_of(j.p[PARAMS - 1 - i]);
        td__group_free(leaf[0]->group);
        td__group *g = td__group_new(leaf, (int[]){ 2, 3, 2 }, 3, NULL, NULL);
        assert_non_null(g);
        for (int s = 0; s < 40; s++) {
            if (s == 10 || s == 20) {
                for (int i = 0; i < PARAMS; i++)
                    leaf[i] = td__leaf_of(j.p[(i * 3 + s / 10) % PARAMS]);
                assert_int_equal(td__group_rebuild(g, leaf, (int[]){ s / 10, PARAMS - s / 10 }, 2, NULL, NULL), 0);
            }
            if (s == 30)
                td__group_free(g);
            backward(&j, some_of(s));
            assert_int_equal(td_optim_step(opt), 0);
            for (int i = 0; i < PARAMS; i++)
                if (some_of(s) >> i & 1)
                    rows[c].formula(&j, i, rows[c].values, rows[c].lr);
        }
        compare_row(&j, c);
        td_optim_free(opt);
        end_job(&j);
    }
}

/* A flat whose ranks hold shards: squares are summed over them. Here as if the other ranks held eight times this one's first square and
 * three times its second. */
static int other_ranks(td__flat *flat, double *values, int n)
{
    assert_int_equal(flat->leaves, 1);
    assert_int_equal(n, 2);
    values[0] *= 9;
    values[1] *= 4;
    return 0;
}

static int no_ranks(td__flat *flat, double *values, int n)
{
    (void)flat;
    (void)values;
    return td__fail(TD_ERR_PEER, "no ranks for %d sums", n);
}

static void norms_of_shards_are_summed(void **state)
{
    (void)state;
    static const td__group_ops ops = { .sum = other_ranks }, broken = { .sum = no_ranks };
    for (size_t c = 0; c < TD_COUNT(rows); c++) {
        bool lars = rows[c].formula == reference_lars;     /* without decay: there |p|/|g| is a factor, as |p|/|u| is in LAMB */
        if (lars ? rows[c].values[1] != 0 || rows[c].values[3] != 0 : rows[c].formula != reference_lamb || rows[c].values[4] != 0)
            continue;
        job j;
        begin_job(&j, TD_F64);
        td__leaf *leaf = td__leaf_of(j.p[3]);
        td__group *g = td__group_new(&leaf, (int[]){ 1 }, 1, NULL, NULL);
        td__group_attach(g, &ops);
        td_optim *opt = rows[c].make((td_tensors){ j.p + 3, 1 }, rows[c].opts);
        td_optim_set_lr(opt, 0, rows[c].lr);
        for (int s = 0; s < 5; s++) {
            backward(&j, 1u << 3);
            assert_int_equal(td_optim_step(opt), 0);
            rows[c].formula(&j, 3, rows[c].values, rows[c].lr * 1.5);
        }
        compare_row(&j, c);
        td__group_attach(g, NULL);
        td__group_attach(g, &broken);
        backward(&j, 1u << 3);
        assert_int_equal(td_optim_step(opt), TD_ERR_PEER);
        expect_error(TD_ERR_PEER, "no ranks for 2 sums");
        compare_row(&j, c);                        /* weights are as they were */
        td_optim_free(opt);
        td__group_attach(g, NULL);
        td__group_free(g);
        end_job(&j);
    }
}

static void steady_state(void **state)
{
    (void)state;
    job j;
    begin_job(&j, TD_F32);
    td_optim *opt = td_lamb_new(all_of(&j), NULL);
    td_memory_stats before = { 0 };
    for (int s = 0; s < 13; s++) {
        if (s == 3)
            before = td_memory();
        backward(&j, EVERY);
        td_optim_step(opt);
    }
    assert_int_equal(td_memory().system_calls, before.system_calls);
    assert_int_equal(td_memory().live_bytes, before.live_bytes);
    td_optim_free(opt);
    end_job(&j);
}

static void wrong_options(void **state)
{
    (void)state;
    job j;
    begin_job(&j, TD_F32);
    td_tensors all = all_of(&j);
#define BAD(name, sentence, ...)                                                                             \
    do {                                                                                                     \
        td_optim *bad = td_##name##_new(all, &(td_##name##_opts){ __VA_ARGS__ });                            \
        expect_error(TD_ERR_ARGUMENT, "td_" #name "_new: " sentence);                                        \
        assert_int_equal(td_optim_step(bad), TD_ERR_ARGUMENT);                                               \
        td_optim_free(bad);                                                                                  \
    } while (0)
    BAD(adam, "lr is -0.5, expected 0 or more (TD_ZERO for 0)", .lr = -0.5f);
    BAD(adam, "weight_decay is -1, expected 0 or more", .weight_decay = -1);
    BAD(adam, "beta1 is 1, expected 0 or more and less than 1", .beta1 = 1);
    BAD(adam, "beta2 is nan, expected 0 or more and less than 1", .beta2 = NAN);
    BAD(adam, "eps is -1, expected more than 0", .eps = -1);
    BAD(rmsprop, "lr is inf, expected 0 or more (TD_ZERO for 0)", .lr = INFINITY);
    BAD(rmsprop, "alpha is 1.5, expected 0 or more and less than 1", .alpha = 1.5f);
    BAD(rmsprop, "momentum is -0.5, expected 0 or more and less than 1", .momentum = -0.5f);
    BAD(rmsprop, "eps is inf, expected more than 0", .eps = INFINITY);
    BAD(adagrad, "lr_decay is -1 and initial 0, expected 0 or more", .lr_decay = -1);
    BAD(adagrad, "lr_decay is 0 and initial -2, expected 0 or more", .initial = -2);
    BAD(adagrad, "eps is nan, expected more than 0", .eps = NAN);
    BAD(lion, "beta1 is 2, expected 0 or more and less than 1", .beta1 = 2);
    BAD(lion, "beta2 is 2, expected 0 or more and less than 1", .beta2 = 2);
    BAD(lamb, "beta1 is 2, expected 0 or more and less than 1", .beta1 = 2);
    BAD(lamb, "beta2 is 2, expected 0 or more and less than 1", .beta2 = 2);
    BAD(lamb, "eps is -1, expected more than 0", .eps = -1);
    BAD(lars, "momentum is 1, expected 0 or more and less than 1", .momentum = 1);
    BAD(lars, "trust is -1, expected more than 0", .trust = -1);
    BAD(lars, "weight_decay is inf, expected 0 or more", .weight_decay = INFINITY);
    td_optim *opt = td_lion_new((td_tensors){ j.p, 3 }, NULL);
    assert_true(td_lamb_add_group(opt, (td_tensors){ j.p + 3, 1 }, NULL) < 0);
    expect_error(TD_ERR_ARGUMENT, "td_lamb_add_group: the optimizer is lion, expected lamb");
    assert_true(td_lion_add_group(opt, (td_tensors){ j.p + 3, 1 }, &(td_lion_opts){ .beta1 = 1 }) < 0);
    expect_error(TD_ERR_ARGUMENT, "td_lion_add_group: beta1 is 1, expected 0 or more and less than 1");
    td_optim_free(opt);
    end_job(&j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(formulas), TEST(groups), TEST(micro_batches), TEST(leaves_move), TEST(norms_of_shards_are_summed), TEST(steady_state),
        TEST(wrong_options),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
