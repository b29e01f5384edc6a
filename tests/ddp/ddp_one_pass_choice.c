/* tests/ddp/ddp_one_pass_choice.c: which way a step goes: as measured, as TANDEM_ONE_PASS says, and not at all on any rank where one cannot; and what its
 * figures say. Started on 2, 3 and 4 ranks by tandem run; TAP on rank 0's standard output.
 */
#include "experiment.h"

/* A rank that cannot step: none does, all say why, and the gradients are still there for the next try. */
static void refused_on_one_rank(void)
{
    static float calm[ROOM], disturbed[ROOM], before[ROOM], after[ROOM];
    for (int way = TD__WAY_ONE; way <= TD__WAY_TWO; way++)
        for (int reads = 0; reads < 2; reads++) {
            job a, b;
            size_t n = 0;
            begin(&a, ADAMW, 0, (td__way)way, 3);
            begin(&b, ADAMW, 0, (td__way)way, 3);
            for (int s = 0; s < 4; s++) {
                TD_SCOPE();
                td_tensor *x = td_randn(TD_SHAPE(ROWS, WIDTH), 1, (uint64_t)(100 * s + rank)), *t = td_zeros(TD_SHAPE(ROWS, WIDTH), TD_F32);
                td_backward(td_mse(forward(a.m, x), t));
                td_optim_step(a.opt[0]);
                td_backward(td_mse(forward(b.m, x), t));
                n = note(&b, before);
                if (reads && rank == 0)
                    b.seen += sum_of_gradients(b.m);
                if (s > 1 && rank == size - 1)
                    td_add(td_zeros(TD_SHAPE(3), TD_F64), td_zeros(TD_SHAPE(4), TD_F64));
                bool good = true;
                if (s > 1)
                    good = td_optim_step(b.opt[0]) == TD_ERR_SHAPE && has_error(TD_ERR_SHAPE, "td_add") && note(&b, after) == n &&
                           !memcmp(before, after, n * sizeof *after);
                good &= td_optim_step(b.opt[0]) == 0;
                EXPECT(good && td_ddp_last_step(b.ddp).one_pass == (way == TD__WAY_ONE && !reads && s > 0));
            }
            EXPECT(note(&a, calm) == n && note(&b, disturbed) == n && !memcmp(calm, disturbed, n * sizeof *calm));
            end(&a);
            end(&b);
        }
}

/* Each by itself; and measured, or read so often that buckets had better go early. */
static void chosen(void)
{
    static float two[ROOM], one[ROOM];
    static const flags kind[] = { 0, READ, READ_ONE };
    for (size_t k = 0; k < 3; k++) {
        job a, b;
        begin(&a, ADAMW, kind[k], TD__WAY_TWO, 3);
        train(&a, 0, 20);
        const size_t n = note(&a, two);
        begin(&b, ADAMW, kind[k], TD__WAY_MEASURE, 3);
        train(&b, 0, 20);
        EXPECT(note(&b, one) == n && !memcmp(one, two, n * sizeof *one));
        const td__way way = b.ddp->which.way;
        EXPECT(rank != 0 || (kind[k] ? way == TD__WAY_TWO && b.ones == 0 : way != TD__WAY_MEASURE && b.ones >= TD__WAY_TRIALS));
        end(&a);
        end(&b);
    }
    setenv("TANDEM_ONE_PASS", "perhaps", 1);
    td_module *m = td_nn_linear(3, 3, NULL);
    td_ddp *d = td_ddp_new(m, NULL);
    EXPECT(has_error(TD_ERR_ARGUMENT, "TANDEM_ONE_PASS is \"perhaps\"; expected auto, 0 or 1"));
    setenv("TANDEM_ONE_PASS", "1", 1);
    d = td_ddp_new(m, NULL);
    EXPECT(d->which.way == TD__WAY_ONE && d->sliced);
    td_ddp_free(d);
    unsetenv("TANDEM_ONE_PASS");
    td_module_free(m);
}

static void figures(void)
{
    job a;
    begin(&a, ADAMW, 0, TD__WAY_ONE, 3);
    train(&a, 0, 3);
    const td_ddp_stats s = td_ddp_last_step(a.ddp);
    double comm = 0;
    int64_t bytes = 0;
    for (int b = 0; b < s.buckets; b++) {
        comm += td_ddp_last_bucket(a.ddp, b).comm_ms;
        bytes += td_ddp_last_bucket(a.ddp, b).bytes;
    }
    EXPECT(s.one_pass && s.comm_ms > 0 && s.exposed_ms >= s.comm_ms && s.overlap == 0 && s.bytes > 0 && bytes == s.bytes);
    EXPECT(fabs(comm - s.comm_ms) < 1e-9 * comm && s.step_ms > s.comm_ms && s.backward_ms > 0);
    end(&a);
}

int main(int argc, char **argv)
{
    start(&argc, &argv);
    static void (*const cases[])(void) = { refused_on_one_rank, chosen, figures };
    return run_cases(cases, sizeof cases / sizeof *cases);
}
