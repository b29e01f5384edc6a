/* bench/capture.c: what a captured step gains: called and replayed in turns in one process, and the memory of both.
 *
 *     ./capture [--steps N] [MODEL…]        all: mlp cnn resnet gpt lstm activation; as many rounds as 7 seconds have, 8 at least
 *     tandem run -n 2 ./capture             two ranks, with td_ddp
 *
 * Two networks of one model with an optimizer each; every round calls the step of the one and replays that of the other, and which comes first changes.
 * Prints one row of a Markdown table for each: medians in ms; the median of the ratios of neighbours; the bytes that the step takes above what outlives
 * it, called and replayed; how many operations run in chains.
 *
 * mlp, cnn, resnet and gpt are those of bench/peers; lstm is the example's (2 layers of 256, 32 rows of 64 characters); activation is what chains are
 * made for: two matrix products with an activation between them that is written out, x * sigmoid(1.702 x) + 0.1 tanh(x), 512 rows of 4096.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tandem.h>
#include "common.h"
#include "peers/models.h"
#include "../examples/08_lstm/model.h"

enum { MAX_ROUNDS = 400, WARM = 3, SECONDS = 7 };

/* ---- models that bench/peers lacks ---------------------------------------------------------------------------------------------------- */

static td_module *lstm(void)
{
    return lstm_lm_new(&(lstm_lm_opts){ .vocabulary = 256, .width = 64, .hidden = 256, .layers = 2 });
}

static td_tensor *tokens(td_module *net, td_tensor *x, td_tensor *y)
{
    return td_cross_entropy(td_forward(net, x), td_reshape(y, TD_SHAPE(-1)), NULL);
}

typedef struct { td_module base; td_module *in, *out; } written;

static td_tensor *written_forward(td_module *m, td_tensor *x)
{
    written *w = (written *)m;
    TD_MODULE_SCOPE(w);
    td_tensor *h = td_forward(w->in, x);
    h = td_add(td_mul(h, td_sigmoid(td_scale(h, 1.702))), td_scale(td_tanh(h), 0.1));
    return td_escape(td_forward(w->out, h));
}

static td_module *activation(void)
{
    static const td_module_type type = { .kind = "written", .size = sizeof(written), .forward = written_forward };
    written *w = (written *)td_module_new(&type);
    w->in = td_module_child(&w->base, "in", td_nn_linear(784, 4096, NULL));
    w->out = td_module_child(&w->base, "out", td_nn_linear(4096, 10, NULL));
    return &w->base;
}

static td_tensor *classes(td_module *net, td_tensor *x, td_tensor *y)
{
    return td_cross_entropy(td_forward(net, x), y, NULL);
}

static const peers_model more[] = {
    { "lstm", 32, 64, 256, lstm, tokens, .adamw = true },
    { "activation", 512, 0, 0, activation, classes, .flat = true },
    { 0 },
};

static const peers_model *find(const char *name)
{
    for (const peers_model *m = more; m->name; m++)
        if (!strcmp(m->name, name))
            return m;
    return peers_model_find(name);
}

/* ---- one model ---------------------------------------------------------------------------------------------------------------------------- */

typedef struct { const peers_model *m; td_module *net; td_ddp *ddp; td_optim *opt; } training;

static td_tensor *train_step(td_tensors in, void *user)
{
    training *t = user;
    td_tensor *loss = t->m->loss(t->net, in.list[0], in.list[1]);
    td_backward(loss);
    td_optim_step(t->opt);
    return loss;
}

static training training_new(const peers_model *m)
{
    td_seed(1);
    training t = { .m = m, .net = m->build() };
    t.ddp = td_ddp_new(t.net, NULL);
    t.opt = peers_optim(m, t.net);
    return t;
}

static void training_free(training *t)
{
    td_ddp_free(t->ddp);
    td_optim_free(t->opt);
    td_module_free(t->net);
}

static double seconds_of(training *t, td_graph *graph, td_tensors in)
{
    TD_SCOPE();
    double since = now();
    td_item(graph ? td_replay(graph, in) : train_step(in, t));
    return now() - since;
}

/* As many as fit into `seconds`; the same number on all ranks. */
static int rounds_in(double seconds, double one)
{
    TD_SCOPE();
    td_tensor *n = td_full(TD_SCALAR, TD_F64, seconds / one);
    td_all_reduce(td_world(), n, TD_MIN);
    const double all = td_item(n);
    return all < 8 ? 8 : all > MAX_ROUNDS ? MAX_ROUNDS : (int)all;
}

static void measure(const peers_model *m, int rounds)
{
    static double called[MAX_ROUNDS], replayed[MAX_ROUNDS], ratio[MAX_ROUNDS];
    TD_SCOPE();
    training one = training_new(m), other = training_new(m);
    td_tensor *in[2];
    peers_batch(m, (int64_t)td_rank(td_world()) * m->batch, &in[0], &in[1]);
    td_tensors inputs = { in, 2 };
    for (int i = 0; i < 2; i++)
        seconds_of(&other, NULL, inputs);              /* gradients and moments exist                                            */
    td_graph *graph = td_capture(train_step, &other, inputs, NULL);
    double since = now();
    for (int i = 0; i < WARM; i++) {
        seconds_of(&one, NULL, inputs);
        seconds_of(&other, graph, inputs);
    }
    rounds = rounds ? rounds : rounds_in(SECONDS, (now() - since) / WARM);
    for (int i = 0; i < rounds; i++) {
        const bool first = i & 1;
        double a = first ? 0 : seconds_of(&one, NULL, inputs), b = seconds_of(&other, graph, inputs);
        a = first ? seconds_of(&one, NULL, inputs) : a;
        called[i] = a * 1e3, replayed[i] = b * 1e3, ratio[i] = a / b;
    }
    const td_graph_figures f = td_graph_stats(graph);
    if (td_rank(td_world()) == 0 && !td_error_pending())
        printf("| %s | %.2f | %.2f | %.3f | %.1f | %.1f | %lld | %lld |\n", m->name, median(called, rounds), median(replayed, rounds), median(ratio, rounds),
               (double)f.eager / 1e6, (double)f.planned / 1e6, (long long)f.fused, (long long)f.entries);
    fflush(stdout);
    td_graph_free(graph);
    training_free(&one);
    training_free(&other);
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    static const char *const all[] = { "mlp", "cnn", "resnet", "gpt", "lstm", "activation" };
    int rounds = 0, at = 1;
    if (argc > 2 && !strcmp(argv[1], "--steps")) {
        rounds = atoi(argv[2]);
        at = 3;
    }
    const int n = at < argc ? argc - at : (int)(sizeof all / sizeof *all);
    for (int i = 0; i < n; i++) {
        const char *name = at < argc ? argv[at + i] : all[i];
        const peers_model *m = find(name);
        if (!m || rounds < 0 || rounds > MAX_ROUNDS) {
            fprintf(stderr, "capture: usage: capture [--steps 1..%d] [mlp|cnn|resnet|gpt|gpt2|lstm|activation …]\n", MAX_ROUNDS);
            td_finish();
            return 2;
        }
        measure(m, rounds);
    }
    return td_finish();
}
