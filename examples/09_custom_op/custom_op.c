/* 09_custom_op: an operation of one's own (relu2.c) checked against finite differences, then used in a module that learns to tell three spirals
 * apart.
 *
 *     tandem run -n 2 ./custom_op --save spirals.safetensors
 *     ./custom_op --help
 *
 * Ends with status 1 where the gradient is wrong, or the test loss is not below --loss after the last step.
 */
#include "../captured.h"
#include "../numbers.h"
#include "relu2.h"
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { CLASSES = 3, TRAIN_ROWS = 3000, TEST_ROWS = 600 };

typedef struct { const char *save, *resume; int64_t steps, batch, width; double lr, loss; uint64_t seed; bool capture; } options;

static const char help[] =
    "custom_op: trains a network with an operation of its own; alone, or with `tandem run -n N`\n"
    "  --steps N       default 600\n"
    "  --batch N       points over all ranks; default 96\n"
    "  --width N       default 32\n"
    "  --lr X          default 0.003\n"
    "  --loss X        status 1 unless the test loss is below; default 0.1; 0: any will do\n"
    "  --save FILE     the weights to FILE, as safetensors, and the training state to FILE.state\n"
    "  --resume FILE   go on from the training state FILE\n"
    "  --capture       record the step once and replay it: the same bits\n"
    "  --seed N        default 0\n";

static options parse(int argc, char **argv)
{
    options o = { .steps = 600, .batch = 96, .width = 32, .lr = 3e-3, .loss = 0.1 };
    static const struct option known[] = {
        { "steps", required_argument, NULL, 's' }, { "batch", required_argument, NULL, 'b' },  { "width", required_argument, NULL, 'W' },
        { "lr", required_argument, NULL, 'r' },    { "loss", required_argument, NULL, 'l' },   { "save", required_argument, NULL, 'S' },
        { "seed", required_argument, NULL, 'x' },  { "resume", required_argument, NULL, 'R' }, { "help", no_argument, NULL, 'h' },
        { "capture", no_argument, NULL, 'c' },     { NULL, 0, NULL, 0 },
    };
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 'c': o.capture = true; break;
        case 's': o.steps = whole_number(optarg); break;
        case 'b': o.batch = whole_number(optarg); break;
        case 'W': o.width = whole_number(optarg); break;
        case 'r': o.lr = real_number(optarg); break;
        case 'l': o.loss = real_number(optarg); break;
        case 'S': o.save = optarg; break;
        case 'R': o.resume = optarg; break;
        case 'x': o.seed = (uint64_t)whole_number(optarg); break;
        case 'h': fputs(help, stdout); exit(0);
        default: fputs(help, stderr); exit(2);
        }
    }
    return o;
}

/* ---- is the gradient right? ------------------------------------------------------------------------------------------------------ */

static td_tensor *applied(td_tensor *const *in, size_t n, void *user)
{
    (void)n, (void)user;
    return relu2(td_transpose(in[0], 0, 1), in[1], in[2]);   /* an input that is a view, too */
}

static bool gradient_is_right(void)
{
    TD_SCOPE();
    td_tensor *in[] = { td_cast(td_randn(TD_SHAPE(5, 70), 1, 0), TD_F64), td_cast(td_randn(TD_SHAPE(5), 1, 1), TD_F64),
                        td_cast(td_randn(TD_SHAPE(70, 5), 1, 2), TD_F64) };
    return td_gradcheck(applied, NULL, in, 3, NULL) == 0;
}

/* ---- a module that uses it: x + max(W x + b, 0)^2 ----------------------------------------------------------------------------------- */

typedef struct { td_module base; td_module *linear; td_tensor *bias; } block;

static td_tensor *block_forward(td_module *m, td_tensor *x)
{
    const block *b = (const block *)m;
    return relu2(td_forward(b->linear, x), b->bias, x);
}

static const td_module_type block_type = { .kind = "relu2_block", .size = sizeof(block), .forward = block_forward };

static td_module *block_new(int64_t width)
{
    block *b = (block *)td_module_new(&block_type);
    b->linear = td_module_child(&b->base, "linear", td_nn_linear(width, width, &(td_nn_linear_opts){ .no_bias = true }));
    b->bias = td_module_parameter(&b->base, "bias", td_zeros(TD_SHAPE(width), TD_F32));
    return &b->base;
}

/* ---- three spirals: row i is a point on arm i % 3, with some noise -------------------------------------------------------------------- */

typedef struct { float (*point)[2]; } spirals;

static int read_row(void *user, int64_t row, void *const *into)
{
    const spirals *s = user;
    float *x = into[0];
    x[0] = s->point[row][0], x[1] = s->point[row][1];
    *(int64_t *)into[1] = row % CLASSES;
    return 0;
}

static void close_spirals(void *user)
{
    spirals *s = user;
    free(s->point);
    free(s);
}

static td_dataset *spirals_new(int64_t rows, uint64_t stream)
{
    TD_SCOPE();
    spirals *s = malloc(sizeof *s);
    const float *noise = td_data(td_randn(TD_SHAPE(rows, 2), 7, stream)), *at = td_data(td_rand(TD_SHAPE(rows), 8, stream));
    if (s)
        s->point = malloc((size_t)rows * sizeof *s->point);
    if (!s || !s->point) {
        fputs("custom_op: no memory for the points\n", stderr);
        exit(1);
    }
    for (int64_t i = 0; i < rows; i++) {
        const double angle = 4.5 * at[i] + 2 * M_PI / CLASSES * (double)(i % CLASSES);
        s->point[i][0] = (float)(2 * at[i] * cos(angle) + 0.04 * noise[2 * i]);
        s->point[i][1] = (float)(2 * at[i] * sin(angle) + 0.04 * noise[2 * i + 1]);
    }
    const td_field field[] = { { TD_SHAPE(2), TD_F32 }, { TD_SCALAR, TD_I64 } };
    return td_dataset_new(&(td_dataset_source){ .rows = rows, .field = field, .n_fields = 2, .read = read_row, .close = close_spirals }, s);
}

/* ---- training -------------------------------------------------------------------------------------------------------------------------- */

/* loss and accuracy over the test points, by all ranks together */
static double evaluate(td_module *net, td_loader *data, double *accuracy)
{
    TD_SCOPE();
    TD_NO_GRAD();
    td_tensor *sum = td_zeros(TD_SHAPE(3), TD_F64);
    td_batch b;
    while (td_loader_next(data, &b)) {
        TD_SCOPE();
        if (b.rows == 0)
            continue;
        td_tensor *logits = td_forward(net, b.x);
        const double n = (double)b.rows, loss = td_item(td_cross_entropy(logits, b.y, NULL)),
                     hits = td_item(td_sum(td_cast(td_eq(td_argmax(logits, 1), b.y), TD_F64), NULL, 0, false));
        td_assign(sum, td_add(sum, td_from((double[]){ loss * n, hits, n }, TD_SHAPE(3), TD_F64)));
    }
    td_all_reduce(td_world(), sum, TD_SUM);
    *accuracy = td_at(sum, TD_SHAPE(1)) / td_at(sum, TD_SHAPE(2));
    return td_at(sum, TD_SHAPE(0)) / td_at(sum, TD_SHAPE(2));
}

typedef struct { td_module *net; td_optim *opt; } training;

/* A replay calls relu2's `run` and `grad` like the library's own. */
static td_tensor *train_step(td_tensors in, void *user)
{
    training *t = user;
    td_tensor *loss = td_cross_entropy(td_forward(t->net, in.list[0]), in.list[1], NULL);
    td_backward(loss);
    td_optim_step(t->opt);
    return loss;
}

int main(int argc, char **argv)
{
    options o = parse(argc, argv);
    td_init(&argc, &argv);
    td_seed(o.seed);
    if (!gradient_is_right()) {
        td_log("relu2: the gradient differs from finite differences");
        return td_finish(), 1;
    }
    td_log0("relu2: the gradient agrees with finite differences");

    td_module *net = td_nn_sequential(td_nn_linear(2, o.width, NULL), block_new(o.width), block_new(o.width), td_nn_linear(o.width, CLASSES, NULL));
    td_ddp *ddp = td_ddp_new(net, NULL);
    td_optim *opt = td_adamw_new(td_parameters(net), &(td_adamw_opts){ .lr = o.lr });
    const int64_t share = o.batch / td_size(td_world());
    td_loader *train = td_loader_new(spirals_new(TRAIN_ROWS, 0), &(td_loader_opts){ .batch = share > 0 ? share : 1, .shuffle = true });
    td_loader *test = td_loader_new(spirals_new(TEST_ROWS, 1), &(td_loader_opts){ .batch = 100 });
    td_train_state state = { .model = net, .optims = &opt, .n_optims = 1, .loader = train, .ddp = ddp };
    if (o.resume)
        td_train_state_load(&state, o.resume);

    td_progress *progress = td_progress_new(&(td_progress_opts){ .title = "spirals", .steps = o.steps - state.step });
    captured one = { train_step, &(training){ net, opt }, .on = o.capture };
    td_batch b;
    while (state.step < o.steps && !td_error_pending()) {
        if (!td_loader_next(train, &b))
            continue;                        /* the end of an epoch, or an error */
        TD_SCOPE();
        td_tensor *loss = captured_step(&one, (td_tensors){ (td_tensor *[]){ b.x, b.y }, 2 });
        state.step++;
        td_progress_step(progress, b.rows, loss, ddp);
    }
    captured_end(&one);
    td_progress_end(progress);
    double accuracy, loss = evaluate(net, test, &accuracy);
    td_log0("step %lld: test loss %.4f, accuracy %.4f", (long long)state.step, loss, accuracy);
    if (o.save) {
        char path[4096];
        snprintf(path, sizeof path, "%s.state", o.save);
        td_train_state_save(&state, path);
        if (td_rank(td_world()) == 0)
            td_save(net, o.save);
    }
    const bool good = o.loss == 0 || loss < o.loss;
    if (!good)
        td_log0("the test loss is not below %g", o.loss);
    const int status = td_finish();
    return status ? status : !good;
}
