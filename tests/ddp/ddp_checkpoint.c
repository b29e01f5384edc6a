/* tests/ddp/ddp_checkpoint.c: training under td_ddp with td_checkpoint gives the weights of training without it, bit for bit: several
 * small buckets, tied weights inside and outside of checkpoints, a parameter that one rank does not use, accumulation, an empty share.
 * Started on 2 and 4 ranks by tandem run; TAP on rank 0's standard output.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../expect.h"

#define EXPECT(condition) expect_((condition), #condition, NULL, __LINE__)

enum { STEPS = 4, WIDTH = 12, ROWS = 5 };

typedef struct { td_module base; td_module *first, *second, *rare; } net;

static td_tensor *second_half(td_tensor *const *in, size_t n, void *user)
{
    net *m = user;
    td_tensor *y = td_forward(m->second, in[0]);
    return n > 1 ? td_add(y, td_forward(m->rare, in[1])) : y;
}

/* The first half's weight comes again at the end; `rare` is used on rank 0 only. */
static td_tensor *forward(net *m, td_tensor *x, bool checkpointed)
{
    td_tensor *y = checkpointed ? td_forward_checkpointed(m->first, x) : td_forward(m->first, x), *in[] = { y, x };
    size_t n = rank == 0 ? 2 : 1;
    td_tensor *z = checkpointed ? td_checkpoint(second_half, m, 0, in, n) : second_half(in, n, m);
    return td_linear(z, td_parameter_get(m->first, "0.weight"), NULL);
}

static net *net_new(void)
{
    static const td_module_type type = { .kind = "net", .size = sizeof(net) };
    net *m = (net *)td_module_new(&type);
    m->first = td_module_child(&m->base, "first", td_nn_sequential(td_nn_linear(WIDTH, WIDTH, NULL), td_nn_gelu(), td_nn_dropout(0.3),
                                                                   td_nn_linear(WIDTH, WIDTH, NULL), td_nn_batch_norm(WIDTH, NULL)));
    m->second = td_module_child(&m->base, "second", td_nn_sequential(td_nn_linear(WIDTH, 20, NULL), td_nn_silu(), td_nn_linear(20, WIDTH, NULL)));
    m->rare = td_module_child(&m->base, "rare", td_nn_linear(WIDTH, WIDTH, NULL));
    return m;
}

static size_t train(bool checkpointed, unsigned char *into)
{
    td_seed(checkpointed ? 8 : 7);                     /* td_ddp_new makes the models equal; here they must be */
    net *m = net_new();
    for (size_t i = 0; i < td_parameters(&m->base).n; i++) {
        TD_SCOPE();
        td_tensor *p = td_parameters(&m->base).list[i];
        td_assign(p, td_scale(td_randn(td_shape_of(p), 2, i), 0.2));
    }
    td_seed(11);
    td_step_set(0);
    td_ddp *ddp = td_ddp_new(&m->base, &(td_ddp_opts){ .bucket_bytes = 700, .first_bucket_bytes = 300 });
    td_optim *opt = td_adamw_new(td_parameters(&m->base), &(td_adamw_opts){ .lr = 0.05f });
    bool ok = true;
    for (int step = 0; step < STEPS; step++)
        for (int micro = 0; micro < 2; micro++) {
            TD_SCOPE();
            int64_t rows = step == 2 && micro == 1 && rank == size - 1 ? 0 : ROWS;
            td_ddp_no_sync(ddp, micro == 0);
            td_tensor *x = td_randn(TD_SHAPE(rows, WIDTH), 3, (uint64_t)(100 * step + 10 * micro + rank));
            td_tensor *loss = td_mse(forward(m, x, checkpointed), td_zeros(TD_SHAPE(rows, WIDTH), TD_F32));
            ok &= td_backward(loss) == 0;
            if (micro == 1)
                ok &= td_optim_step(opt) == 0;
        }
    EXPECT(ok);
    size_t used = 0;
    td_tensors lists[] = { td_parameters(&m->base), td_buffers(&m->base) };
    for (int l = 0; l < 2; l++)
        for (size_t i = 0; i < lists[l].n; i++) {
            size_t bytes = (size_t)td_numel(lists[l].list[i]) * td_dtype_size(td_dtype_of(lists[l].list[i]));
            memcpy(into + used, td_data(lists[l].list[i]), bytes);
            used += bytes;
        }
    td_ddp_free(ddp);
    td_optim_free(opt);
    td_module_free(&m->base);
    return used;
}

/* A parameter that was changed on rank 1 alone: found before the walk, so every rank hears the same sentence. */
static void trouble_on_one_rank(void)
{
    td_module *m = td_nn_linear(3, 2, NULL);
    td_ddp *ddp = td_ddp_new(m, NULL);
    td_tensor *y = td_forward_checkpointed(m, td_ones(TD_SHAPE(2, 3), TD_F32));
    if (rank == 1)
        td_fill(td_parameter_get(m, "bias"), 1);
    EXPECT(td_backward(td_mean(y, NULL, 0, false)) == TD_ERR_STATE);
    EXPECT(strstr(td_error_message(), "parameter bias of shape (2) was changed since td_checkpoint's first run"));
    td_error_clear();
    td_ddp_free(ddp);
    td_module_free(m);
}

/* Run with TANDEM_ANOMALY=1: one rank's numbers go wrong, and every rank gets the sentence that says which and where. */
static void anomaly_on_rank_1(void)
{
    td_module *m = td_nn_linear(3, 2, NULL);
    td_ddp *ddp = td_ddp_new(m, NULL);
    td_tensor *y = td_forward(m, td_ones(TD_SHAPE(2, 3), TD_F32));
    td_tensor *z = td_ln(td_add(td_mul(y, y), td_full(TD_SCALAR, TD_F32, rank == 1 ? -100 : 1)));
    EXPECT(td_backward(td_mean(z, NULL, 0, false)) == TD_ERR_NOT_FINITE);
    const char *got = td_error_message();
    EXPECT(strstr(got, "td_ln, forward, made NaN or Inf from finite inputs: 4 of 4 elements of its result, shape (2,2)"));
    EXPECT(strstr(got, "at ddp_checkpoint.c:") && strstr(got, "on rank 1"));
    td_error_clear();
    td_ddp_free(ddp);
    td_module_free(m);
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    td_errors(TD_ERRORS_RETURN);
    rank = td_rank(td_world());
    size = td_size(td_world());
    static unsigned char plain[1 << 15], again[1 << 15];
    size_t n = train(false, plain), k = train(true, again);
    EXPECT(n > 4000 && n == k);
    EXPECT(memcmp(plain, again, n) == 0);
    trouble_on_one_rank();
    const char *wary = getenv("TANDEM_ANOMALY");
    if (wary && strcmp(wary, "1") == 0)
        anomaly_on_rank_1();
    if (rank == 0)
        printf("1..%d\n", tests);
    td_finish();                                       /* not 0: there were errors, on purpose */
    return failures != 0;
}
