/* tests/optim/test_parts.c: a flat of which every rank steps its own part. The parts of 1, 2, 3, 5 and 9 ranks, each stepped by an optimizer that has no
 * other, are together what one optimizer makes of the whole, bit for bit: all rules without norms, all dtypes, 16 bits with their masters.
 */
#include "optim_test.h"

enum { LEAVES = 6, RULES = 6 };
static const int64_t sizes[LEAVES] = { 3, 130, 17, 0, 64, 41 };

typedef struct { td_tensor *p[LEAVES], *c[LEAVES]; td__group *g; td_optim *opt; } part;

static td_optim *optimizer(int rule, td_tensors a, td_tensors b)
{
    td_optim *o = NULL;
    int rc = 0;
    switch (rule) {
    case 0: o = td_sgd_new(a, &(td_sgd_opts){ .lr = 0.03, .momentum = 0.9 }), rc = td_sgd_add_group(o, b, NULL); break;
    case 1: o = td_adam_new(a, &(td_adam_opts){ .lr = 0.03 }), rc = td_adam_add_group(o, b, NULL); break;
    case 2: o = td_adamw_new(a, &(td_adamw_opts){ .lr = 0.03 }), rc = td_adamw_add_group(o, b, NULL); break;
    case 3: o = td_rmsprop_new(a, &(td_rmsprop_opts){ .centered = true, .momentum = 0.5 }), rc = td_rmsprop_add_group(o, b, NULL); break;
    case 4: o = td_adagrad_new(a, &(td_adagrad_opts){ .lr = 0.03 }), rc = td_adagrad_add_group(o, b, NULL); break;
    default: o = td_lion_new(a, &(td_lion_opts){ .lr = 0.03 }), rc = td_lion_add_group(o, b, NULL); break;
    }
    assert_int_equal(rc, 0);
    return o;
}

static void begin(part *x, td_dtype dtype, int rule, int parts, int mine)
{
    td__leaf *leaf[LEAVES];
    for (int i = 0; i < LEAVES; i++) {
        x->p[i] = numbers(TD_F32, sizes[i], (uint64_t)i, -1, 1);
        x->c[i] = numbers(TD_F32, sizes[i], (uint64_t)i + 100, -1, 1);
        td_tensor *low = td_keep(td_cast(x->p[i], dtype)), *times = td_keep(td_cast(x->c[i], dtype));
        td_release(x->p[i]);
        td_release(x->c[i]);
        x->p[i] = low;
        x->c[i] = times;
        td_requires_grad((td_tensors){ &x->p[i], 1 }, true);
        leaf[i] = td__leaf_of(x->p[i]);
    }
    x->g = td__group_new(leaf, (int[]){ 4, 2 }, 2, &(td__flat_memory){ .parts = parts, .mine = mine }, NULL);
    assert_non_null(x->g);
    x->opt = optimizer(rule, (td_tensors){ x->p, 2 }, (td_tensors){ x->p + 2, LEAVES - 2 });
}

static void step(part *x, int s)
{
    for (int i = 0; i < LEAVES; i++) {
        TD_SCOPE();
        if (s == 2 && i == 1)                          /* one that has fewer steps behind it than its neighbours            */
            continue;
        assert_int_equal(td_backward(td_sum(td_cast(td_mul(td_mul(x->p[i], x->p[i]), x->c[i]), TD_F32), NULL, 0, false)), 0);
    }
    assert_int_equal(td_optim_step(x->opt), 0);
}

static void end(part *x)
{
    td_optim_free(x->opt);
    td__group_free(x->g);
    for (int i = 0; i < LEAVES; i++) {
        td_release(x->p[i]);
        td_release(x->c[i]);
    }
}

static void parts_are_the_whole(void **state)
{
    (void)state;
    static const td_dtype dtypes[] = { TD_F32, TD_F64, TD_BF16, TD_F16 };
    static const int ranks[] = { 1, 2, 3, 5, 9 };
    for (int rule = 0; rule < RULES; rule++)
        for (size_t t = 0; t < TD_COUNT(dtypes); t++)
            for (size_t k = 0; k < TD_COUNT(ranks); k++) {
                TD_SCOPE();
                const size_t size = td_dtype_size(dtypes[t]);
                part whole, start;
                begin(&whole, dtypes[t], rule, 0, 0);
                begin(&start, dtypes[t], rule, 0, 0);
                for (int s = 0; s < 5; s++)
                    step(&whole, s);
                int64_t bytes = 0;
                for (int r = 0; r < ranks[k]; r++) {
                    part mine;
                    begin(&mine, dtypes[t], rule, ranks[k], r);
                    for (int s = 0; s < 5; s++)
                        step(&mine, s);
                    for (int i = 0; i < LEAVES; i++) {
                        const td__leaf *leaf = td__leaf_of(mine.p[i]);
                        const char *now = td__ptr(mine.p[i]), *want = td__ptr(whole.p[i]), *was = td__ptr(start.p[i]);
                        for (int64_t e = 0; e < sizes[i]; e++) {
                            const bool own = leaf->offset + e >= leaf->flat->own_low && leaf->offset + e < leaf->flat->own_high;
                            assert_memory_equal(now + (size_t)e * size, (own ? want : was) + (size_t)e * size, size);
                        }
                    }
                    bytes += td_optim_bytes(mine.opt);
                    end(&mine);
                }
                assert_true(bytes >= td_optim_bytes(whole.opt) / 2 && bytes <= td_optim_bytes(whole.opt));   /* gaps are in one part or in none */
                end(&whole);
                end(&start);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(parts_are_the_whole) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
