/* tests/ddp/ddp_one_pass.c: on one host, one pass over gradients and weights at the step gives the bits of two (buckets in backward, then the step), whoever
 * reads or switches in between. Started on 2, 3 and 4 ranks by tandem run; TAP on rank 0's standard output.
 */
#include "experiment.h"

enum { EARLY = CLIP | SCALER | READ | READ_ONE | ASYNC | TALK | LETTER | TWO | NARROW | HOOK };   /* gradients are wanted before, or by parts */

static void equal(rule r, flags f)
{
    static float two[ROOM], one[ROOM], start[ROOM];
    job a, b;
    begin(&a, r, f, TD__WAY_TWO, 7 + (unsigned)r);
    const size_t n = note(&a, start);
    train(&a, 0, STEPS);
    EXPECT(note(&a, two) == n && n < ROOM && memcmp(start, two, n * sizeof *two) != 0 && a.ones == 0);
    for (td__way way = TD__WAY_ONE; way <= TD__WAY_IN_TURN; way++) {
        if (way == TD__WAY_TWO)
            continue;
        begin(&b, r, f, way, 7 + (unsigned)r);
        train(&b, 0, STEPS);
        EXPECT(note(&b, one) == n && !td_error_pending());
        if (memcmp(two, one, n * sizeof *two))
            fprintf(stderr, "rank %d: rule %d, flags %d, way %d: weights differ\n", rank, (int)r, (int)f, (int)way);
        EXPECT(!memcmp(two, one, n * sizeof *two) && same_everywhere(one, n));
        EXPECT(a.seen == b.seen && !(f & (CLIP | READ | ASYNC | TALK) && a.seen == 0));
        /* the first step is before the buckets are where they stay */
        const bool early = f & EARLY || r >= LAMB;
        EXPECT(early ? b.ones == 0 : way == TD__WAY_ONE ? b.ones == STEPS - 1 : f & CAPTURE || (b.ones > 0 && b.ones < STEPS - 1));
        EXPECT(state_bytes(&a) == state_bytes(&b));
        end(&b);
    }
    end(&a);
}

/* ---- cases ------------------------------------------------------------------------------------------------------------------------- */

static void each_rule(void)
{
    for (rule r = SGD; r <= LARS; r++)
        equal(r, 0);
}

static void in_two_dtypes(void)
{
    equal(ADAMW, DOUBLE);
    equal(SGD, DOUBLE | EMA);
    equal(LION, DOUBLE | AGAIN);
}

static void whoever_reads_before(void)
{
    equal(ADAM, READ);
    equal(ADAMW, READ_ONE);
    equal(SGD, TALK);
    equal(ADAMW, LETTER);
    equal(ADAMW, READ_ONE | AGAIN | TWO);
    equal(SGD, CLIP);
    equal(ADAMW, ASYNC);
    equal(SGD, SCALER | BAD);
    equal(ADAMW, SCALER | CLIP | BAD | TWO);
}

static void with_other_things(void)
{
    equal(ADAMW, EMA);
    equal(SGD, AGAIN);
    equal(ADAMW, AGAIN | ZERO);
    equal(RMSPROP, TWO);
    equal(ADAMW, NARROW);
    equal(ADAMW, HOOK);
    equal(ADAMW, CAPTURE);
    equal(RMSPROP, CAPTURE | EMA);
    equal(SGD, CAPTURE | TWO);
}

/* Two models in one backward, an optimizer of both, or one each in either order; the last rank may read one model's gradients. */
static void two_models(void)
{
    float got[6][2 * (17 * 17 + 17)];
    for (int kind = 0; kind < 6; kind++) {
        TD_SCOPE();
        td_seed(4);
        td_module *m[2] = { td_nn_linear(17, 17, NULL), td_nn_linear(17, 17, NULL) }, *both = td_nn_sequential(td_nn_linear(1, 1, NULL));
        td_module_free(both);
        td_ddp *d[2];
        for (int i = 0; i < 2; i++) {
            for (size_t k = 0; k < 2; k++)
                td_assign(td_parameters(m[i]).list[k], td_randn(td_shape_of(td_parameters(m[i]).list[k]), 9, (uint64_t)(2 * i) + k));
            d[i] = td_ddp_new(m[i], NULL);
            d[i]->which.way = kind % 2 ? TD__WAY_ONE : TD__WAY_TWO;
            d[i]->which.forced = true;
        }
        td_tensor *all[4];
        for (size_t k = 0; k < 4; k++)
            all[k] = td_parameters(m[k / 2]).list[k % 2];
        td_optim *opt[2] = { td_adamw_new((td_tensors){ all, kind < 2 ? 4 : 2 }, NULL), kind < 2 ? NULL : td_adamw_new((td_tensors){ all + 2, 2 }, NULL) };
        int ones[2] = { 0, 0 };
        bool read = true;
        for (int s = 0; s < STEPS; s++) {
            TD_SCOPE();
            td_tensor *x = td_randn(TD_SHAPE(3, 17), 5, (uint64_t)(10 * s + rank));
            td_backward(td_mean(td_forward(m[1], td_gelu(td_forward(m[0], x))), NULL, 0, false));
            read &= s != 3 || rank != size - 1 || td_grad(all[0]) != NULL;
            if (kind >= 4)
                td_optim_step(opt[1]);
            td_optim_step(opt[0]);
            if (kind == 2 || kind == 3)
                td_optim_step(opt[1]);
            for (int i = 0; i < 2; i++)
                ones[i] += td_ddp_last_step(d[i]).one_pass;
        }
        /* with an optimizer each, the model attached last comes first: stepped last, its gradients are wanted before, and so are then all */
        const int expected = kind % 2 == 0 || kind == 3 ? 0 : STEPS - 2;
        EXPECT(ones[0] == expected && ones[1] == expected);
        size_t n = 0;
        for (size_t k = 0; k < 4; k++) {
            td_copy_out(all[k], got[kind] + n, (size_t)td_numel(all[k]) * sizeof(float));
            n += (size_t)td_numel(all[k]);
        }
        EXPECT(read && !memcmp(got[kind], got[0], sizeof got[0]) && !td_error_pending());
        for (int i = 0; i < 2; i++) {
            td_ddp_free(d[i]);
            td_optim_free(opt[i]);
        }
        for (int i = 0; i < 2; i++)
            td_module_free(m[i]);
    }
}

/* Over a group of ranks; and ranks whose slices hold nothing but padding. */
static void small_and_in_groups(void)
{
    td_comm *g = td_comm_split(td_world(), rank < 2 ? 0 : 1, rank);
    float got[2] = { 0, 0 };
    for (int way = 0; way < 2; way++) {
        TD_SCOPE();
        td_module *m = td_nn_linear(1, 1, NULL);
        td_fill(td_parameter_get(m, "weight"), 2);
        td_fill(td_parameter_get(m, "bias"), 1);
        td_ddp *d = td_ddp_new(m, &(td_ddp_opts){ .comm = g, .bucket_bytes = 4, .first_bucket_bytes = 4 });
        EXPECT(d->sliced == (td_size(g) > 1));
        d->which.way = way ? TD__WAY_ONE : TD__WAY_TWO;
        td_optim *opt = td_adam_new(td_parameters(m), &(td_adam_opts){ .lr = 0.1 });
        int ones = 0;
        for (int s = 0; s < 5; s++) {
            TD_SCOPE();
            td_backward(td_mse(td_forward(m, td_full(TD_SHAPE(3, 1), TD_F32, rank + 1)), td_zeros(TD_SHAPE(3, 1), TD_F32)));
            td_optim_step(opt);
            ones += td_ddp_last_step(d).one_pass;
        }
        EXPECT(ones == (way && td_size(g) > 1 ? 4 : 0));
        got[way] = (float)td_item(td_parameter_get(m, "weight"));
        EXPECT(td_optim_bytes(opt) == (td_rank(g) == 0 ? 2 * 2 * 4 : 0));
        td_ddp_free(d);
        td_optim_free(opt);
        td_module_free(m);
    }
    EXPECT(got[0] == got[1] && got[0] != 2);
    td_comm_free(g);
}

int main(int argc, char **argv)
{
    start(&argc, &argv);
    static void (*const cases[])(void) = { each_rule, in_two_dtypes, whoever_reads_before, with_other_things, two_models, small_and_in_groups };
    return run_cases(cases, sizeof cases / sizeof *cases);
}
