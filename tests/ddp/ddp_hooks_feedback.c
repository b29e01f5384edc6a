/* tests/ddp/ddp_hooks_feedback.c: hooks that keep back what they do not send. Started on 2 or 3 ranks by tandem run.
 *
 * Against the algorithms written down in double precision: what top-k keeps back, what a step of PowerSGD is. And what error feedback promises: over many
 * steps nothing is lost.
 */
#include "two_models.h"

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

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    td_errors(TD_ERRORS_RETURN);
    rank = td_rank(td_world());
    size = td_size(td_world());
    top_k_kept_back();
    power_sgd_projects();
    nothing_is_lost();
    if (rank == 0)
        printf("1..%d\n", tests);
    td_finish();
    return failures != 0;
}
