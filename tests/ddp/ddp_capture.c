/* tests/ddp/ddp_capture.c: a step under td_ddp, captured and replayed, gives the weights of the step itself, bit for bit, on every rank: several
 * small buckets, accumulation within the step, a parameter that one rank does not use, synchronised batch norm, collectives of the step's own.
 * Started on 1, 2 and 3 ranks by tandem run; TAP on rank 0's standard output.
 */
#include <stdio.h>
#include <string.h>
#include "../expect.h"

#define EXPECT(condition) expect_((condition), #condition, NULL, __LINE__)

enum { STEPS = 8, WIDTH = 12, ROWS = 5 };

typedef struct { td_module base; td_module *first, *second, *rare; td_ddp *ddp; td_optim *opt; td_tensor *mean, *sum; int calls; } net;

static td_tensor *forward(net *m, td_tensor *x)
{
    td_tensor *y = td_forward(m->first, x), *z = td_forward(m->second, y);
    return rank == 0 ? td_add(z, td_forward(m->rare, x)) : z;
}

static net *net_new(void)
{
    static const td_module_type type = { .kind = "net", .size = sizeof(net) };
    net *m = (net *)td_module_new(&type);
    m->first = td_module_child(&m->base, "first", td_nn_sequential(td_nn_linear(WIDTH, WIDTH, NULL), td_nn_gelu(), td_nn_dropout(0.3),
                                                                   td_nn_batch_norm(WIDTH, NULL)));
    m->second = td_module_child(&m->base, "second", td_nn_sequential(td_nn_linear(WIDTH, 20, NULL), td_nn_silu(), td_nn_linear(20, WIDTH, NULL)));
    m->rare = td_module_child(&m->base, "rare", td_nn_linear(WIDTH, WIDTH, NULL));
    return m;
}

/* Two micro-batches, the ranks' mean of the loss, and a sum of its own that is waited for at the end. */
static td_tensor *step(td_tensors in, void *user)
{
    net *m = user;
    td_tensor *loss = NULL;
    m->calls++;
    for (size_t i = 0; i < 2; i++) {
        td_ddp_no_sync(m->ddp, i == 0);
        loss = td_mse(forward(m, in.list[i]), in.list[2]);
        td_backward(loss);
    }
    td_assign(m->mean, td_detach(loss));
    td_all_reduce(td_world(), m->mean, TD_MEAN);
    td_assign(m->sum, td_add(m->sum, m->mean));
    td_work *work = td_all_reduce_start(td_world(), m->sum, TD_MAX);
    td_clip_grad_norm(m->opt, 0.7);
    td_optim_step(m->opt);
    td_wait(work);
    return loss;
}

static size_t train(bool captured, unsigned char *into)
{
    TD_SCOPE();
    td_seed(captured ? 8 : 7);                         /* td_ddp_new makes the models equal; here they must be */
    net *m = net_new();
    td_ddp_sync_batch_norm(&m->base, NULL);
    for (size_t i = 0; i < td_parameters(&m->base).n; i++) {
        TD_SCOPE();
        td_tensor *p = td_parameters(&m->base).list[i];
        td_assign(p, td_scale(td_randn(td_shape_of(p), 2, i), 0.2));
    }
    td_seed(11);
    td_step_set(0);
    m->mean = td_zeros(TD_SCALAR, TD_F32);
    m->sum = td_zeros(TD_SCALAR, TD_F32);
    m->ddp = td_ddp_new(&m->base, &(td_ddp_opts){ .bucket_bytes = 700, .first_bucket_bytes = 300 });
    m->opt = td_adamw_new(td_parameters(&m->base), &(td_adamw_opts){ .lr = 0.05f });
    td_graph *graph = NULL;
    for (int s = 0; s < STEPS; s++) {
        TD_SCOPE();
        td_tensor *in[3] = { td_randn(TD_SHAPE(ROWS, WIDTH), 3, (uint64_t)(100 * s + rank)), td_randn(TD_SHAPE(ROWS, WIDTH), 4, (uint64_t)(100 * s + rank)),
                             td_randn(TD_SHAPE(ROWS, WIDTH), 5, (uint64_t)(100 * s + rank)) };
        td_optim_set_lr(m->opt, -1, 0.05 * td_schedule_cosine(s, 2, STEPS, 0.1));
        if (!captured)
            step((td_tensors){ in, 3 }, m);
        else if (!graph)
            graph = td_capture(step, m, (td_tensors){ in, 3 }, &(td_capture_opts){ .verify = 5 });
        else
            EXPECT(!td_is_poisoned(td_replay(graph, (td_tensors){ in, 3 })));
    }
    EXPECT(!td_error_pending());
    EXPECT(m->calls == (captured ? 2 : STEPS));
    size_t used = 0;
    td_tensors lists[] = { td_parameters(&m->base), td_buffers(&m->base), { (td_tensor *[]){ m->mean, m->sum }, 2 } };
    for (int l = 0; l < 3; l++)
        for (size_t i = 0; i < lists[l].n; i++) {
            size_t bytes = (size_t)td_numel(lists[l].list[i]) * td_dtype_size(td_dtype_of(lists[l].list[i]));
            memcpy(into + used, td_data(lists[l].list[i]), bytes);
            used += bytes;
        }
    td_graph_figures figures = graph ? td_graph_stats(graph) : (td_graph_figures){ 0 };
    EXPECT(!graph || (figures.planned > 0 && figures.planned < figures.eager && figures.entries > 0));
    td_graph_free(graph);
    td_ddp_free(m->ddp);
    td_optim_free(m->opt);
    td_module_free(&m->base);
    return used;
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    td_errors(TD_ERRORS_RETURN);
    rank = td_rank(td_world());
    size = td_size(td_world());
    static unsigned char plain[1 << 15], again[1 << 15];
    size_t n = train(false, plain), k = train(true, again);
    EXPECT(n > 3000 && n == k);
    EXPECT(memcmp(plain, again, n) == 0);
    if (rank == 0)
        printf("1..%d\n", tests);
    return td_finish();
}
