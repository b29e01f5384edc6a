/* 03_custom_module: a module of one's own: a struct that begins with td_module, and any typed forward function.
 *
 * A residual tower reads two inputs (an image's halves, say) through one shared block, so its parameters are used twice and get one
 * gradient; a gate, used only now and then, shows that a parameter without a gradient is left alone on every rank.
 *
 *     tandem run -n 2 ./custom_module
 *     ./custom_module 200 --capture       the same weights, by replays: a graph is one way through the step, so there are two, with the gate and
 *                                         without; --save FILE writes the weights
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "../captured.h"

enum { WIDTH = 24, CLASSES = 4, ROWS = 48 };

/* ---- a block: y = x + W2 gelu(W1 x) ------------------------------------------------------------------------------------ */
typedef struct {
    td_module base;          /* first member */
    td_module *in, *out;
} block;

static td_tensor *block_forward(td_module *m, td_tensor *x)
{
    block *b = (block *)m;
    return td_add(x, td_forward(b->out, td_gelu(td_forward(b->in, x))));
}

static const td_module_type block_type = { .kind = "block", .size = sizeof(block), .forward = block_forward };

static td_module *block_new(int64_t width)
{
    block *b = (block *)td_module_new(&block_type);
    b->in = td_module_child(&b->base, "in", td_nn_linear(width, 2 * width, NULL));
    b->out = td_module_child(&b->base, "out", td_nn_linear(2 * width, width, NULL));
    return &b->base;
}

/* ---- a tower with two inputs: its forward is a plain typed function --------------------------------------------------------- */
typedef struct {
    td_module base;
    td_module *shared, *head;
    td_tensor *gate;         /* a parameter of its own */
} tower;

static const td_module_type tower_type = { .kind = "tower", .size = sizeof(tower) };

static tower *tower_new(void)
{
    tower *t = (tower *)td_module_new(&tower_type);
    t->shared = td_module_child(&t->base, "shared", block_new(WIDTH));
    t->head = td_module_child(&t->base, "head", td_nn_linear(WIDTH, CLASSES, NULL));
    t->gate = td_module_parameter(&t->base, "gate", td_ones(TD_SHAPE(WIDTH), TD_F32));
    return t;
}

static td_tensor *tower_logits(tower *t, td_tensor *left, td_tensor *right, bool gated)
{
    TD_MODULE_SCOPE(t);      /* inner activations die here; errors name the module */
    td_tensor *both = td_add(td_forward(t->shared, left), td_forward(t->shared, right));
    if (gated)               /* the graph is whatever your C does */
        both = td_mul(both, t->gate);
    return td_escape(td_forward(t->head, both));
}

typedef struct { tower *net; td_optim *opt; bool gated; } training;

static td_tensor *train_step(td_tensors in, void *user)
{
    training *t = user;
    td_tensor *loss = td_cross_entropy(tower_logits(t->net, in.list[0], in.list[1], t->gated), in.list[2], NULL);
    td_backward(loss);
    td_optim_step(t->opt);
    return loss;
}

int main(int argc, char **argv)
{
    td_init(&argc, &argv);
    int steps = 200;
    const char *save = NULL;
    bool capture = false;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--capture"))
            capture = true;
        else if (!strcmp(argv[i], "--save") && i + 1 < argc)
            save = argv[++i];
        else
            steps = atoi(argv[i]);
    }
    int rank = td_rank(td_world()), size = td_size(td_world());
    tower *net = tower_new();
    td_ddp_new(&net->base, NULL);
    td_optim *opt = td_adamw_new(td_parameters(&net->base), &(td_adamw_opts){ .lr = 3e-3f });
    if (rank == 0)
        td_summary(&net->base);

    td_tensor *rule = td_randn(TD_SHAPE(WIDTH, CLASSES), 5, 0);   /* the class is the largest of (left + right) * rule */
    double first = 0, last = 0;
    captured one[2] = { { train_step, &(training){ net, opt, false }, .on = capture }, { train_step, &(training){ net, opt, true }, .on = capture } };
    for (int step = 0; step < steps; step++) {
        TD_SCOPE();
        int64_t from = ROWS * rank / size, rows = ROWS * (rank + 1) / size - from;
        td_tensor *left = td_narrow(td_randn(TD_SHAPE(ROWS, WIDTH), 11, (uint64_t)step), 0, from, rows);
        td_tensor *right = td_narrow(td_randn(TD_SHAPE(ROWS, WIDTH), 12, (uint64_t)step), 0, from, rows);
        td_tensor *target = td_argmax(td_matmul(td_add(left, right), rule), 1);
        last = td_item(captured_step(&one[step % 2], (td_tensors){ (td_tensor *[]){ left, right, target }, 3 }));
        if (step == 0)
            first = last;
    }
    captured_end(&one[0]);
    captured_end(&one[1]);
    if (save && rank == 0)
        td_save(&net->base, save);
    td_log0("loss %.4f at first, %.4f after %d steps", first, last, steps);
    int status = td_finish();
    return status ? status : last < 0.7 * first ? 0 : 1;
}
