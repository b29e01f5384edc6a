/* tests/ddp/ddp_hooks.c: gradients' way over the ranks by hooks. Started on 2 or 3 ranks by tandem run.
 *
 * Against the plain all-reduce of a second, equal model: a hook of one's own, bf16, top-k and PowerSGD where they lose nothing. Against the algorithms written down
 * in double precision: what top-k keeps back. And what error feedback promises: over many steps nothing is lost.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../expect.h"

#define EXPECT(condition) expect_((condition), #condition, now, __LINE__)

static const char *now;

/* ---- models --------------------------------------------------------------------------------------------------------------------------------------- */

typedef struct { td_module *net; td_ddp *ddp; td_optim *opt; } side;

static void same_weights(side *a, const side *b)
{
    for (size_t i = 0; i < td_parameters(a->net).n; i++)
        td_assign(td_detach(td_parameters(a->net).list[i]), td_parameters(b->net).list[i]);
}

static side side_new(td_dtype t, int64_t in, int64_t hidden, int64_t out)
{
    td_seed(11);
    side s = { .net = td_nn_sequential(td_nn_linear(in, hidden, NULL), td_nn_tanh(), td_nn_linear(hidden, out, NULL)) };
    td_module_to(s.net, t);
    s.ddp = td_ddp_new(s.net, &(td_ddp_opts){ .first_bucket_bytes = 600, .bucket_bytes = 4000 });
    s.opt = td_sgd_new(td_parameters(s.net), &(td_sgd_opts){ .lr = 0.05 });
    return s;
}

static void side_free(side *s)
{
    td_ddp_free(s->ddp);
    td_optim_free(s->opt);
    td_module_free(s->net);
}

static td_tensor *rows_of(td_dtype t, int64_t n, int64_t width, int step)
{
    return td_cast(td_randn(TD_SHAPE(n, width), 5, (uint64_t)(step * 100 + rank)), t);
}

static void backward(side *s, td_tensor *x)
{
    TD_SCOPE();
    td_tensor *y = td_forward(s->net, x);
    td_backward(td_mean(td_mul(y, y), NULL, 0, false));
}

/* The largest difference of two lists, over the largest of the second. */
static double apart(td_tensors a, td_tensors b, bool gradients)
{
    double worst = 0, largest = 0;
    for (size_t i = 0; i < a.n; i++) {
        TD_SCOPE();
        td_tensor *x = td_cast(gradients ? td_grad(a.list[i]) : a.list[i], TD_F64), *y = td_cast(gradients ? td_grad(b.list[i]) : b.list[i], TD_F64);
        x = td_contiguous(td_detach(x)), y = td_contiguous(td_detach(y));
        const double *p = td_data(x), *q = td_data(y);
        for (int64_t k = 0; k < td_numel(x); k++) {
            worst = fmax(worst, fabs(p[k] - q[k]));
            largest = fmax(largest, fabs(q[k]));
        }
    }
    return worst / largest;
}

/* Are the parameters the same, bit for bit, on all ranks? */
static bool replicas_equal(td_module *net)
{
    TD_SCOPE();
    td_tensors p = td_parameters(net);
    bool equal = true;
    for (size_t i = 0; i < p.n; i++) {
        td_tensor *mine = td_contiguous(td_detach(p.list[i])), *theirs = td_add(mine, td_zeros(TD_SCALAR, td_dtype_of(mine)));
        td_broadcast(td_world(), theirs, 0);
        equal &= memcmp(td_data(mine), td_data(theirs), (size_t)td_numel(mine) * td_dtype_size(td_dtype_of(mine))) == 0;
    }
    return equal;
}

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

/* ---- top-k against the algorithm written down ------------------------------------------------------------------------------------------------------------ */

enum { N = 320, TAKEN = 16 };          /* 0.05 of one bucket of 16 x 20 */

static void keep_back(double *left, const double *gradient, double *sum)
{
    bool crosses[N] = { false };
    for (int i = 0; i < N; i++)
        left[i] += gradient[i];
    for (int k = 0; k < TAKEN; k++) {
        int best = -1;
        for (int i = 0; i < N; i++)
            if (!crosses[i] && (best < 0 || (float)fabs(left[i]) > (float)fabs(left[best])))
                best = i;
        crosses[best] = true;
    }
    for (int i = 0; i < N; i++)
        if (crosses[i]) {
            sum[i] += left[i];
            left[i] = 0;
        }
}

/* One matrix; the gradient of sum(y * c) is known: each rank's rows, transposed, times c. All ranks' gradients are made here on every rank. */
static void top_k_kept_back(void)
{
    now = "top-k";
    td_seed(3);
    td_module *net = td_nn_linear(16, 20, &(td_nn_linear_opts){ .no_bias = true });
    td_module_to(net, TD_F64);
    td_ddp *ddp = td_ddp_new(net, NULL);
    EXPECT(td_ddp_top_k_hook(ddp, &(td_top_k_opts){ .fraction = 0.05 }) == 0);
    static double left[8][N];
    memset(left, 0, sizeof left);
    double worst = 0;
    bool bytes = true;
    td_optim *opt = td_sgd_new(td_parameters(net), &(td_sgd_opts){ .lr = 1 });
    for (int step = 0; step < 12; step++) {
        TD_SCOPE();
        double mean[N] = { 0 };
        td_tensor *mine = NULL;
        for (int r = 0; r < size; r++) {
            td_tensor *c = td_cast(td_randn(TD_SHAPE(20, 16), 8, (uint64_t)(step * 10 + r)), TD_F64);
            const double *p = td_data(c);
            double share[N];
            for (int i = 0; i < N; i++)
                share[i] = p[i] / size;
            if (step == 0) {                           /* laid out anew behind the first backward: what it kept back is forgotten */
                double nothing[N] = { 0 };
                keep_back(nothing, share, mean);
            } else {
                keep_back(left[r], share, mean);
            }
            if (r == rank)
                mine = c;
        }
        td_tensor *w = td_parameters(net).list[0];
        td_backward(td_sum(td_mul(w, mine), NULL, 0, false));
        const double *g = td_data(td_contiguous(td_detach(td_grad(w))));
        for (int i = 0; i < N; i++)
            worst = fmax(worst, fabs(g[i] - mean[i]));
        td_optim_step(opt);
        if (step)
            bytes &= td_ddp_last_step(ddp).bytes == (int64_t)TAKEN * 12;
    }
    if (worst > 1e-14)
        fprintf(stderr, "rank %d: off by %g\n", rank, worst);
    EXPECT(worst <= 1e-14);
    EXPECT(bytes);
    EXPECT(replicas_equal(net));
    td_ddp_free(ddp);
    td_optim_free(opt);
    td_module_free(net);
}

/* ---- PowerSGD: what it promises of each step ---------------------------------------------------------------------------------------------------------- */

/* Of M, the mean gradient and what was lost before, it applies U = P P'M: no more than r columns' worth (the columns of U lie in a space of r dimensions), and
 * what remains is at right angles to U. M is known here without knowing P: the gradients are, and U is what td_grad shows. */
static void power_sgd_projects(void)
{
    enum { M = 24, K = 18, R = 3 };
    now = "PowerSGD";
    td_seed(3);
    td_module *net = td_nn_linear(K, M, &(td_nn_linear_opts){ .no_bias = true });
    td_module_to(net, TD_F64);
    td_ddp *ddp = td_ddp_new(net, NULL);
    EXPECT(td_ddp_power_sgd_hook(ddp, &(td_power_sgd_opts){ .rank = R, .start_step = TD_ZERO, .seed = 4 }) == 0);
    td_optim *opt = td_sgd_new(td_parameters(net), NULL);
    static double left[M * K];
    memset(left, 0, sizeof left);
    double angle = 0, beyond = 0, taken = 1;
    for (int step = 0; step < 10; step++) {
        TD_SCOPE();
        double m[M * K], u[M * K];
        memcpy(m, left, sizeof m);
        td_tensor *mine = NULL;
        for (int r = 0; r < size; r++) {
            td_tensor *c = td_cast(td_randn(TD_SHAPE(M, K), 12, (uint64_t)(step * 10 + r)), TD_F64);
            for (int i = 0; i < M * K; i++)
                m[i] += ((const double *)td_data(c))[i] / size;
            mine = r == rank ? c : mine;
        }
        td_tensor *w = td_parameters(net).list[0];
        td_backward(td_sum(td_mul(w, mine), NULL, 0, false));
        memcpy(u, td_data(td_contiguous(td_detach(td_grad(w)))), sizeof u);
        td_optim_step(opt);
        double whole = 0, cross = 0, part = 0;
        for (int i = 0; i < M * K; i++) {
            whole += m[i] * m[i], part += u[i] * u[i], cross += u[i] * (m[i] - u[i]);
            left[i] = step ? m[i] - u[i] : 0;          /* the first step's bucket is laid out anew */
        }
        angle = fmax(angle, fabs(cross) / whole);
        taken = fmin(taken, part / whole);
        for (int r = 0; r < R; r++) {                  /* take the longest column's direction out of U, R times: nothing may be left */
            int longest = 0;
            double length = -1;
            for (int k = 0; k < K; k++) {
                double sum = 0;
                for (int i = 0; i < M; i++)
                    sum += u[i * K + k] * u[i * K + k];
                if (sum > length)
                    length = sum, longest = k;
            }
            double direction[M];
            for (int i = 0; i < M; i++)
                direction[i] = u[i * K + longest] / sqrt(length);
            for (int k = 0; k < K; k++) {
                double along = 0;
                for (int i = 0; i < M; i++)
                    along += direction[i] * u[i * K + k];
                for (int i = 0; i < M; i++)
                    u[i * K + k] -= along * direction[i];
            }
        }
        for (int i = 0; i < M * K; i++)
            beyond = fmax(beyond, fabs(u[i]) / sqrt(whole));
    }
    if (angle > 1e-12 || beyond > 1e-12)
        fprintf(stderr, "rank %d: %g from a right angle, %g beyond rank %d\n", rank, angle, beyond, R);
    EXPECT(angle < 1e-12);
    EXPECT(beyond < 1e-12);
    EXPECT(taken > (double)R / M / 2);                 /* a random direction takes 1/M of M's square */
    td_ddp_free(ddp);
    td_optim_free(opt);
    td_module_free(net);
}

/* ---- over many steps nothing is lost ----------------------------------------------------------------------------------------------------------------------- */

/* The same gradient of full rank in every step: how far is the sum of what was applied from steps times the gradient? */
static double lost(int set(td_ddp *ddp), int steps)
{
    td_seed(3);
    td_module *net = td_nn_linear(30, 40, &(td_nn_linear_opts){ .no_bias = true });
    td_module_to(net, TD_F64);
    td_ddp *ddp = td_ddp_new(net, NULL);
    td_optim *opt = td_sgd_new(td_parameters(net), &(td_sgd_opts){ .lr = 1 });
    set(ddp);
    td_tensor *w = td_parameters(net).list[0], *mean = td_zeros(TD_SHAPE(40, 30), TD_F64), *mine = NULL;
    for (int r = 0; r < size; r++) {
        td_tensor *c = td_cast(td_randn(TD_SHAPE(40, 30), 9, (uint64_t)r), TD_F64);
        mean = td_add(mean, td_div(c, td_full(TD_SCALAR, TD_F64, size)));
        mine = r == rank ? c : mine;
    }
    td_tensor *before = NULL;
    for (int step = 0; step <= steps; step++) {
        TD_SCOPE();
        td_backward(td_sum(td_mul(w, mine), NULL, 0, false));
        td_optim_step(opt);
        if (step == 0)                                 /* what the first step kept back was forgotten with its bucket */
            before = td_keep(td_contiguous(td_mul(td_detach(w), td_ones(TD_SCALAR, TD_F64))));
    }
    td_tensor *applied = td_sub(before, td_detach(w)), *wanted = td_mul(mean, td_full(TD_SCALAR, TD_F64, steps));
    td_tensor *off = td_sub(applied, wanted);
    double result = sqrt(td_item(td_sum(td_mul(off, off), NULL, 0, false)) / td_item(td_sum(td_mul(wanted, wanted), NULL, 0, false)));
    td_release(before);
    td_ddp_free(ddp);
    td_optim_free(opt);
    td_module_free(net);
    return result;
}

static int tenth(td_ddp *ddp) { return td_ddp_top_k_hook(ddp, &(td_top_k_opts){ .fraction = 0.1 }); }
static int rank_2(td_ddp *ddp) { return td_ddp_power_sgd_hook(ddp, &(td_power_sgd_opts){ .rank = 2, .start_step = TD_ZERO }); }
static int rank_2_forgetful(td_ddp *ddp)
{
    return td_ddp_power_sgd_hook(ddp, &(td_power_sgd_opts){ .rank = 2, .start_step = TD_ZERO, .no_error_feedback = true });
}

static void nothing_is_lost(void)
{
    now = "error feedback";
    TD_SCOPE();
    double a = lost(tenth, 100), b = lost(rank_2, 200), c = lost(rank_2_forgetful, 200);
    if (rank == 0)
        printf("# of 100 equal gradients top-k of 0.1 has lost %.4f; of 200 PowerSGD of rank 2 %.4f, without error feedback %.4f\n", a, b, c);
    EXPECT(a < 0.1);
    EXPECT(b < 0.1);
    EXPECT(c > 0.5);
}

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
    top_k_kept_back();
    power_sgd_projects();
    nothing_is_lost();
    not_captured();
    failing();
    if (rank == 0)
        printf("1..%d\n", tests);
    td_error_clear();
    td_finish();
    return failures != 0;
}
