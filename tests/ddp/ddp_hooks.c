/* tests/ddp/ddp_hooks.c: gradients' way over the ranks by hooks. Started on 2 or 3 ranks by tandem run.
 *
 * Against the plain all-reduce of a second, equal model: a hook of one's own, bf16, top-k and PowerSGD where they lose nothing. And what is refused.
 */
#include "two_models.h"

/* ---- a hook of one's own ---------------------------------------------------------------------------------------------------------------------------- */

typedef struct { int starts, ends, finishes, frees, last, parameters; td_work *work[64]; bool in_order, fail_start, fail_finish; int64_t seen; } own;

static int own_start(td_ddp_hook_bucket *b, void *user)
{
    own *o = user;
    o->in_order &= b->index == 0 || b->index > o->last;
    o->last = b->index;
    o->starts++;
    o->parameters += b->parameters;
    if (o->fail_start)
        return -1;
    for (int i = 0; i < b->parameters; i++)
        o->seen += b->place[i] + td_numel(b->parameter[i]) <= td_numel(b->gradient) ? td_numel(b->parameter[i]) : -1000000;
    b->bytes += td_numel(b->gradient) * (int64_t)td_dtype_size(td_dtype_of(b->gradient));
    o->work[b->index] = td_all_reduce_start(b->comm, b->gradient, TD_SUM);
    return 0;
}

static int own_end(void *user)
{
    ((own *)user)->ends++;
    return 0;
}

static int own_finish(td_ddp_hook_bucket *b, void *user)
{
    own *o = user;
    o->finishes++;
    return o->fail_finish ? -7 : td_wait(o->work[b->index]);
}

static void own_free(void *user)
{
    ((own *)user)->frees++;
}

static const td_ddp_hook OWN = { .name = "own", .start = own_start, .end = own_end, .finish = own_finish, .free = own_free };

/* Uneven shares, accumulation, a step without gradients on a rank: what a hook sees adds up to the mean in all of them. */
static void own_hook(void)
{
    now = "own hook";
    side a = side_new(TD_F64, 7, 19, 5), b = side_new(TD_F64, 7, 19, 5);
    own o = { .in_order = true };
    same_weights(&a, &b);
    EXPECT(td_ddp_set_hook(a.ddp, &OWN, &o) == 0);
    bool close = true, bytes = true, counted = true;
    for (int step = 0; step < 6; step++) {
        TD_SCOPE();
        td_tensor *x = rows_of(TD_F64, step == 4 && rank == 0 ? 0 : 3 + rank, 7, step), *more = rows_of(TD_F64, 2, 7, 50 + step);
        side *both[] = { &a, &b };
        o.starts = o.ends = o.finishes = o.parameters = 0, o.seen = 0;
        for (int k = 0; k < 2; k++) {
            if (step == 2) {
                td_ddp_no_sync(both[k]->ddp, true);
                backward(both[k], more);
                td_ddp_no_sync(both[k]->ddp, false);
            }
            backward(both[k], x);
            if (step == 3)
                backward(both[k], more);               /* a second synchronised one: the first mean goes on */
        }
        if (step == 5 && rank == 1)                    /* one rank alone reads a gradient */
            td_grad(td_parameters(a.net).list[2]);
        td_optim_step(a.opt);
        td_optim_step(b.opt);
        close &= apart(td_parameters(a.net), td_parameters(b.net), false) < 1e-13;
        if (step > 0)
            bytes &= td_ddp_last_step(a.ddp).bytes == td_ddp_last_step(b.ddp).bytes;
        int times = step == 3 ? 2 : 1;
        counted &= o.starts == o.finishes && o.starts >= 2 * times && o.ends == times && o.parameters == 4 * times;
        counted &= o.seen == times * (7 * 19 + 19 + 19 * 5 + 5);
    }
    EXPECT(close);
    EXPECT(bytes);
    EXPECT(counted && o.in_order);
    EXPECT(replicas_equal(a.net));
    EXPECT(td_ddp_set_hook(a.ddp, NULL, NULL) == 0 && o.frees == 1);
    backward(&a, rows_of(TD_F64, 2, 7, 1));
    backward(&b, rows_of(TD_F64, 2, 7, 1));
    EXPECT(td_ddp_set_hook(a.ddp, &OWN, &o) == TD_ERR_STATE && has_error(TD_ERR_STATE, "gradients wait for a step"));
    td_optim_step(a.opt);
    td_optim_step(b.opt);
    EXPECT(apart(td_parameters(a.net), td_parameters(b.net), false) < 1e-13);
    side_free(&a);
    side_free(&b);
}

static void refused(void)
{
    now = "refused";
    side a = side_new(TD_F64, 7, 19, 5);
    EXPECT(td_ddp_set_hook(NULL, &OWN, NULL) < 0 && has_error(TD_ERR_ARGUMENT, "td_ddp_set_hook: the td_ddp is NULL"));
    EXPECT(td_ddp_set_hook(a.ddp, &(td_ddp_hook){ .start = own_start }, NULL) < 0 && has_error(TD_ERR_ARGUMENT, "the hook has no finish"));
    EXPECT(td_ddp_top_k_hook(a.ddp, &(td_top_k_opts){ .fraction = 1.5 }) < 0 && has_error(TD_ERR_ARGUMENT, "fraction is 1.5"));
    EXPECT(td_ddp_power_sgd_hook(a.ddp, &(td_power_sgd_opts){ .rank = -3 }) < 0 && has_error(TD_ERR_ARGUMENT, "rank is -3"));
    EXPECT(td_ddp_power_sgd_hook(NULL, NULL) < 0 && has_error(TD_ERR_ARGUMENT, "td_ddp is NULL"));
    EXPECT(td_ddp_bf16_hook(NULL) < 0 && has_error(TD_ERR_ARGUMENT, "td_ddp is NULL"));
    side_free(&a);
}

/* ---- ready-made, where nothing is lost ---------------------------------------------------------------------------------------------------------------- */

static void against_plain(const char *name, td_dtype t, int set(td_ddp *ddp), int steps, double within, double bytes)
{
    now = name;
    side a = side_new(t, 24, 30, 20), b = side_new(t, 24, 30, 20);
    EXPECT(set(a.ddp) == 0);
    same_weights(&a, &b);
    double worst = 0;
    for (int step = 0; step < steps; step++) {
        TD_SCOPE();
        td_tensor *x = rows_of(t, 1, 24, step);
        backward(&a, x);
        backward(&b, x);
        worst = fmax(worst, apart(td_parameters(a.net), td_parameters(b.net), true));
        td_optim_step(a.opt);
        td_optim_step(b.opt);
        same_weights(&a, &b);                          /* each step by itself */
    }
    double ratio = (double)td_ddp_last_step(a.ddp).bytes / (double)td_ddp_last_step(b.ddp).bytes;
    if (worst > within)
        fprintf(stderr, "rank %d: %s: off by %g\n", rank, name, worst);
    EXPECT(worst <= within);
    if (fabs(ratio - bytes) > 0.02)
        fprintf(stderr, "%s: bytes %g of the plain ones, expected %g\n", name, ratio, bytes);
    EXPECT(fabs(ratio - bytes) <= 0.02);
    EXPECT(replicas_equal(a.net));
    side_free(&a);
    side_free(&b);
}

static int all_of_it(td_ddp *ddp) { return td_ddp_top_k_hook(ddp, &(td_top_k_opts){ .fraction = 1 }); }
static int rank_4(td_ddp *ddp) { return td_ddp_power_sgd_hook(ddp, &(td_power_sgd_opts){ .start_step = TD_ZERO }); }
static int rank_4_cold(td_ddp *ddp)
{
    return td_ddp_power_sgd_hook(ddp, &(td_power_sgd_opts){ .start_step = TD_ZERO, .no_warm_start = true, .no_error_feedback = true });
}
static int later(td_ddp *ddp) { return td_ddp_power_sgd_hook(ddp, &(td_power_sgd_opts){ .rank = 1, .start_step = 50 }); }

/* ---- failures ------------------------------------------------------------------------------------------------------------------------------------------------ */

/* A hook that fails on one rank stops all of them, with its name; a captured step refuses hooks. The last case: the communicator is of no more use. */
static td_tensor *captured(td_tensors in, void *user)
{
    side *s = user;
    td_tensor *y = td_forward(s->net, in.list[0]), *loss = td_mean(td_mul(y, y), NULL, 0, false);
    td_backward(loss);
    td_optim_step(s->opt);
    return loss;
}

static void not_captured(void)
{
    now = "captured";
    side a = side_new(TD_F64, 7, 19, 5);
    own o = { .in_order = true };
    TD_SCOPE();
    EXPECT(td_ddp_set_hook(a.ddp, &OWN, &o) == 0);
    td_tensor *x = rows_of(TD_F64, 2, 7, 0);
    td_graph *graph = td_capture(captured, &a, (td_tensors){ &x, 1 }, NULL);
    EXPECT(has_error(TD_ERR_STATE, "whose calls a captured step cannot repeat") || has_error(TD_ERR_UNSUPPORTED, "a captured step cannot repeat"));
    td_graph_free(graph);
    side_free(&a);
}

static void failing(void)
{
    now = "failing";
    side a = side_new(TD_F64, 7, 19, 5);
    own o = { .in_order = true, .fail_start = rank == size - 1 };
    char expected[80];
    EXPECT(td_ddp_set_hook(a.ddp, &OWN, &o) == 0);
    backward(&a, rows_of(TD_F64, 2, 7, 0));
    td_optim_step(a.opt);
    snprintf(expected, sizeof expected, rank == size - 1 ? "start of the hook own returned -1" : "rank %d", size - 1);
    bool told = td_error_pending() && strstr(td_error_message(), expected);
    if (!told)
        fprintf(stderr, "rank %d: \"%s\", expected \"%s\"\n", rank, td_error_message(), expected);
    td_error_clear();
    tests++;
    failures += !told;
    if (rank == 0)
        printf("%s %d - failing: told on this rank\n", told ? "ok" : "not ok", tests);
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    td_errors(TD_ERRORS_RETURN);
    rank = td_rank(td_world());
    size = td_size(td_world());
    own_hook();
    refused();
    against_plain("bf16", TD_F32, td_ddp_bf16_hook, 5, 0.01, 0.5);
    against_plain("top-k of everything, f32", TD_F32, all_of_it, 5, 1e-6, 2);
    against_plain("top-k of everything, f64", TD_F64, all_of_it, 5, 1e-13, 1.5);
    /* the gradient of one row a rank has rank 1 there, so the mean has no more than `size`: nothing is lost. Matrices of 30x24 and 20x30 */
    const double whole = 30 + 20, thin = 4 * (30 + 24 + 20 + 30), plain = 30 * 24 + 20 * 30 + whole;
    against_plain("PowerSGD, f64", TD_F64, rank_4, 6, 1e-9, (thin + whole) / plain);
    against_plain("PowerSGD, no warm start, f32", TD_F32, rank_4_cold, 6, 1e-4, (thin + whole) / plain);
    against_plain("PowerSGD before it begins", TD_F64, later, 6, 1e-13, 1);
    not_captured();
    failing();
    if (rank == 0)
        printf("1..%d\n", tests);
    td_error_clear();
    td_finish();
    return failures != 0;
}
