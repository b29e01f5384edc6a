/* tests/ddp/ddp_groups.c: models that are kept in step over groups of ranks. Started on 3 or 4 ranks by tandem run.
 *
 * Even and odd ranks train a model each, at the same time; each equals one process that trains on the whole group's rows. Then in two levels: steps within
 * a group, averages between the groups.
 */
#include <math.h>
#include <string.h>
#include "../expect.h"

#define EXPECT(condition) expect_((condition), #condition, now, __LINE__)

static const char *now;

typedef struct { td_module *net; td_ddp *ddp; td_optim *opt; } side;

static side side_new(uint64_t seed, td_comm *comm)
{
    td_seed(seed);
    side s = { .net = td_nn_sequential(td_nn_linear(9, 16, NULL), td_nn_tanh(), td_nn_linear(16, 3, NULL)) };
    td_module_to(s.net, TD_F64);
    if (comm)
        s.ddp = td_ddp_new(s.net, &(td_ddp_opts){ .comm = comm, .first_bucket_bytes = 600, .bucket_bytes = 900 });
    s.opt = td_adamw_new(td_parameters(s.net), &(td_adamw_opts){ .lr = 0.01f });
    return s;
}

static void side_free(side *s)
{
    if (s->ddp)
        td_ddp_free(s->ddp);
    td_optim_free(s->opt);
    td_module_free(s->net);
}

static td_tensor *rows_of(int whose, int step)
{
    return td_cast(td_randn(TD_SHAPE(4, 9), 5, (uint64_t)(step * 100 + whose)), TD_F64);
}

static void step_on(side *s, td_tensor *x)
{
    TD_SCOPE();
    td_tensor *y = td_forward(s->net, x);
    td_backward(td_mean(td_mul(y, y), NULL, 0, false));
    td_optim_step(s->opt);
}

static double apart(const side *a, const side *b)
{
    double worst = 0;
    for (size_t i = 0; i < td_parameters(a->net).n; i++) {
        TD_SCOPE();
        td_tensor *d = td_sub(td_detach(td_parameters(a->net).list[i]), td_detach(td_parameters(b->net).list[i]));
        for (int64_t k = 0; k < td_numel(d); k++)
            worst = fmax(worst, fabs(((double *)td_data(d))[k]));
    }
    return worst;
}

static void two_models(void)
{
    now = "two models at once";
    const int color = rank % 2;
    td_comm *g = td_comm_split(td_world(), color, -rank);
    side shared = side_new(11 + (uint64_t)color, g), alone = side_new(11 + (uint64_t)color, NULL);
    int members[16], n = td_comm_ranks(g, members);
    for (size_t i = 0; i < td_parameters(alone.net).n; i++)      /* the group's first rank's, by now */
        td_assign(td_detach(td_parameters(alone.net).list[i]), td_parameters(shared.net).list[i]);
    for (int step = 0; step < 6; step++) {
        TD_SCOPE();
        td_tensor *all[16];
        step_on(&shared, rows_of(rank, step));
        for (int i = 0; i < n; i++)
            all[i] = rows_of(members[i], step);
        step_on(&alone, td_concat(all, (size_t)n, 0));
    }
    EXPECT(n == (size + 1 - color) / 2);
    EXPECT(apart(&shared, &alone) < 1e-12);
    side_free(&shared);
    side_free(&alone);
    EXPECT(td_comm_free(g) == 0);
}

/* Pairs step together; across the pairs, ranks with the same place in theirs average every third step. */
static void two_levels(void)
{
    now = "two levels";
    if (size % 2)
        return;
    td_comm *inner = td_comm_split(td_world(), rank / 2, 0), *across = td_comm_split(td_world(), rank % 2, 0);
    side s = side_new(5, inner);
    for (int step = 0; step < 6; step++) {
        TD_SCOPE();
        step_on(&s, rows_of(rank, step));
        if (step % 3 == 2) {
            td_tensors p = td_parameters(s.net);
            for (size_t i = 0; i < p.n; i++)
                td_all_reduce(across, td_detach(p.list[i]), TD_MEAN);
        }
    }
    double worst = 0;
    td_tensors p = td_parameters(s.net);
    for (size_t i = 0; i < p.n; i++) {
        TD_SCOPE();
        td_tensor *mine = td_detach(p.list[i]), *first = td_zeros(td_shape_of(mine), TD_F64);
        td_assign(first, mine);
        td_broadcast(td_world(), first, 0);
        for (int64_t k = 0; k < td_numel(mine); k++)
            worst = fmax(worst, fabs(((double *)td_data(mine))[k] - ((double *)td_data(first))[k]));
    }
    EXPECT(worst == 0);
    side_free(&s);
    EXPECT(td_comm_free(inner) == 0 && td_comm_free(across) == 0);
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    td_errors(TD_ERRORS_RETURN);
    rank = td_rank(td_world());
    size = td_size(td_world());
    two_models();
    two_levels();
    if (rank == 0)
        printf("1..%d\n", tests);
    td_finish();
    return failures != 0;
}
