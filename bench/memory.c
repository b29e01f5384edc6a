/* bench/memory.c: the memory of one training step, by category.
 *
 *     ./memory list            the models' names
 *     ./memory gpt2            sizes and bytes of one model, "key value" a line
 *
 * The model is compiled from its example, its optimizer is AdamW, and the step is the second one, so that the optimizer's state exists.
 * tests/peers/memory.py reads the lines, makes the same model of the same sizes in PyTorch and prints both in one table.
 *
 * Bytes are the pool's, under which lie tensors, handles, graphs, modules and the kernels' workspace; what OpenBLAS allocates itself is not
 * in them, as what a BLAS allocates is not in PyTorch's. Some workspace is per thread: OMP_NUM_THREADS says how many there are.
 */
#include <stdio.h>
#include <string.h>
#include <tandem.h>
#include "../examples/05_gpt/model.h"
#include "../examples/06_resnet/model.h"
#include "../examples/07_bert/model.h"
#include "../examples/08_lstm/model.h"

enum { MAX_TEXT = 8192 };   /* tokens of a batch that has a mask */

typedef struct sizes {
    const char *name;
    td_module *(*build)(const struct sizes *s);
    td_tensor *(*loss)(td_module *net, td_tensor *x, td_tensor *y, td_tensor *real);
    int64_t batch;
    int64_t tokens;         /* of a row; 0: the rows are images or vectors                    */
    int64_t side;           /* of a square image                                              */
    int64_t inputs;         /* a vector's elements, an image's channels                       */
    int64_t vocab;          /* kinds of tokens                                                */
    int64_t classes;        /* of what is predicted; 0: the next token                        */
    int64_t width, layers, heads;
} sizes;

/* ---- models ------------------------------------------------------------------------------------------------------------- */

static td_module *mlp(const sizes *s)
{
    return td_nn_sequential(td_nn_linear(s->inputs, s->width, NULL), td_nn_gelu(), td_nn_linear(s->width, s->width, NULL), td_nn_tanh(),
                            td_nn_linear(s->width, s->classes, NULL));
}

static td_module *cnn(const sizes *s)
{
    return td_nn_sequential(td_nn_conv2d(s->inputs, s->width, 3, &(td_nn_conv2d_opts){ .padding = 1 }), td_nn_relu(), td_nn_max_pool2d(2, NULL),
                            td_nn_conv2d(s->width, 2 * s->width, 3, &(td_nn_conv2d_opts){ .stride = 2, .no_bias = true }),
                            td_nn_batch_norm(2 * s->width, NULL), td_nn_gelu(), td_nn_avg_pool2d(2, NULL), td_nn_flatten(),
                            td_nn_linear(18 * s->width, s->classes, NULL));
}

static td_module *resnet18(const sizes *s)
{
    return resnet_new(&(resnet_opts){ .depth = 18, .width = s->width, .channels = s->inputs, .classes = s->classes });
}

static td_tensor *plain_loss(td_module *net, td_tensor *x, td_tensor *y, td_tensor *real)
{
    (void)real;
    return td_cross_entropy(td_forward(net, x), y, NULL);
}

static td_module *rnn(const sizes *s)
{
    return lstm_lm_new(&(lstm_lm_opts){ .vocabulary = s->vocab, .width = s->width / 4, .hidden = s->width, .layers = (int)s->layers,
                                        .gru = !strcmp(s->name, "gru") });
}

static td_module *gpt2(const sizes *s)
{
    return &gpt_new(&(gpt_opts){ .layers = s->layers, .width = s->width, .heads = s->heads, .context = s->tokens, .vocab = s->vocab })->base;
}

static td_tensor *gpt2_loss(td_module *net, td_tensor *x, td_tensor *y, td_tensor *real)
{
    (void)real;
    return gpt_loss((gpt *)net, x, y);
}

static td_module *bert_classifier(const sizes *s)
{
    return &bert_new(&(bert_opts){ .layers = s->layers, .hidden = s->width, .heads = s->heads, .positions = s->tokens, .vocab = s->vocab,
                                   .classes = s->classes })->base;
}

static td_tensor *bert_loss(td_module *net, td_tensor *x, td_tensor *y, td_tensor *real)
{
    td_tensor *pooled;
    bert_forward((bert *)net, x, NULL, real, &pooled);
    return td_cross_entropy(bert_classify((bert *)net, pooled), y, NULL);
}

static const sizes table[] = {
    { "mlp", mlp, plain_loss, .batch = 64, .inputs = 784, .width = 1024, .classes = 10 },
    { "cnn", cnn, plain_loss, .batch = 64, .side = 28, .inputs = 1, .width = 32, .classes = 10 },
    { "resnet18-8", resnet18, plain_loss, .batch = 16, .side = 64, .inputs = 3, .width = 8, .classes = 10 },
    { "resnet18-64", resnet18, plain_loss, .batch = 16, .side = 64, .inputs = 3, .width = 64, .classes = 10 },
    { "lstm", rnn, plain_loss, .batch = 32, .tokens = 64, .vocab = 256, .width = 256, .layers = 2 },
    { "gru", rnn, plain_loss, .batch = 32, .tokens = 64, .vocab = 256, .width = 256, .layers = 2 },
    { "gpt2", gpt2, gpt2_loss, .batch = 8, .tokens = 256, .vocab = 256, .width = 256, .layers = 4, .heads = 4 },
    { "gpt2-bpe", gpt2, gpt2_loss, .batch = 4, .tokens = 256, .vocab = 50257, .width = 256, .layers = 4, .heads = 4 },
    { "gpt2-124m", gpt2, gpt2_loss, .batch = 1, .tokens = 256, .vocab = 50257, .width = 768, .layers = 12, .heads = 12 },
    { "bert", bert_classifier, bert_loss, .batch = 8, .tokens = 128, .vocab = 30522, .width = 256, .layers = 4, .heads = 4, .classes = 2 },
    { 0 },
};

/* ---- a step ------------------------------------------------------------------------------------------------------------- */

typedef struct { td_tensor *x, *y, *real; } rows;

/* In the caller's scope. Texts of BERT lose a sixteenth of their tokens from row to row. */
static rows draw(const sizes *s, uint64_t step)
{
    rows r = { 0 };
    if (s->tokens)
        r.x = td_randint(0, s->vocab, TD_SHAPE(s->batch, s->tokens), 1, 3 * step);
    else if (s->side)
        r.x = td_randn(TD_SHAPE(s->batch, s->inputs, s->side, s->side), 1, 3 * step);
    else
        r.x = td_randn(TD_SHAPE(s->batch, s->inputs), 1, 3 * step);
    r.y = s->classes ? td_randint(0, s->classes, TD_SHAPE(s->batch), 1, 3 * step + 1)
                     : td_randint(0, s->vocab, TD_SHAPE(s->batch * s->tokens), 1, 3 * step + 1);
    if (s->tokens && s->classes) {
        static bool real[MAX_TEXT];
        for (int64_t i = 0; i < s->batch * s->tokens; i++)
            real[i] = i % s->tokens < s->tokens - i / s->tokens * s->tokens / 16;
        r.real = td_from(real, TD_SHAPE(s->batch, s->tokens), TD_BOOL);
    }
    return r;
}

typedef struct { int64_t before, kept, forward, backward, gradients, step, state; } bytes;

static bytes train(const sizes *s, td_module *net, td_optim *opt, rows r)
{
    bytes b = { .before = td_memory().live_bytes };
    td_memory_reset_peak();
    {
        TD_SCOPE();
        td_tensor *loss = s->loss(net, r.x, r.y, r.real);
        b.forward = td_memory().peak_bytes;
        b.kept = td_memory().live_bytes - b.before;
        td_memory_reset_peak();
        td_backward(loss);
        b.backward = td_memory().peak_bytes;
    }
    td_tensors all = td_parameters(net);
    for (size_t i = 0; i < all.n; i++)
        b.gradients += td_grad(all.list[i]) ? (int64_t)td_numel(all.list[i]) * (int64_t)sizeof(float) : 0;
    td_memory_reset_peak();
    td_optim_step(opt);
    b.step = td_memory().peak_bytes;
    b.state = td_memory().live_bytes - b.before;          /* neither before nor now are there gradients */
    return b;
}

static int64_t bytes_of(td_tensors list)
{
    int64_t sum = 0;
    for (size_t i = 0; i < list.n; i++)
        sum += td_numel(list.list[i]) * (int64_t)td_dtype_size(td_dtype_of(list.list[i]));
    return sum;
}

static void say(const char *key, int64_t value)
{
    printf("%s %lld\n", key, (long long)value);
}

static void measure(const sizes *s)
{
    int64_t start = td_memory().live_bytes;
    td_module *net = s->build(s);
    td_optim *opt = td_adamw_new(td_parameters(net), NULL);
    bytes first, second;
    int64_t batch;
    {
        TD_SCOPE();
        first = train(s, net, opt, draw(s, 0));
    }
    {
        TD_SCOPE();
        batch = td_memory().live_bytes;
        rows r = draw(s, 1);
        batch = td_memory().live_bytes - batch;
        second = train(s, net, opt, r);
    }
    say("parameters", bytes_of(td_parameters(net)) + bytes_of(td_buffers(net)));
    say("gradients", second.gradients);
    say("state", first.state);
    say("batch", batch);
    say("activations", second.kept);
    say("forward", second.forward - start);
    say("backward", second.backward - start);
    say("step", second.step - start);
}

int main(int argc, char **argv)
{
    const sizes *s = table;
    if (argc == 2 && !strcmp(argv[1], "list")) {
        for (; s->name; s++)
            printf("%s\n", s->name);
        return 0;
    }
    while (s->name && (argc != 2 || strcmp(argv[1], s->name)))
        s++;
    if (!s->name) {
        fprintf(stderr, "memory: usage: memory list, or memory and one of the names it prints\n");
        return 2;
    }
    td_init(&argc, &argv);
    printf("model %s\n", s->name);
    say("batch_rows", s->batch);
    say("tokens", s->tokens);
    say("side", s->side);
    say("inputs", s->inputs);
    say("vocab", s->vocab);
    say("classes", s->classes);
    say("width", s->width);
    say("layers", s->layers);
    say("heads", s->heads);
    measure(s);
    return td_finish();
}
