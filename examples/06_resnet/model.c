/* 06_resnet/model.c: one stem, three or four stages of residual blocks, a mean over the picture, a linear classifier.
 *
 * A block adds what its convolutions found to its input: y = relu(f(x) + x), the last batch norm, the sum and relu in one operation. Where the shape changes (the first block of a stage) a 1x1
 * convolution, `downsample`, brings x along. Basic blocks have two 3x3 convolutions; from depth 50 on, bottlenecks squeeze the
 * channels to a quarter between two 1x1 ones, the stride in the 3x3 (as torchvision's).
 */
#include "model.h"
#include <stdio.h>
#include <string.h>

enum { MAX_CONVS = 3, MAX_STAGES = 4 };

static td_module *conv(int64_t in, int64_t out, int kernel, int stride)
{
    return td_nn_conv2d(in, out, kernel, &(td_nn_conv2d_opts){ .stride = stride, .padding = kernel / 2, .no_bias = true });
}

/* ---- a block ----------------------------------------------------------------------------------------------------------- */

typedef struct {
    td_module  base;
    td_module *conv[MAX_CONVS], *norm[MAX_CONVS], *downsample;   /* downsample NULL: x is added as it is */
    int        n;
} block;

static td_tensor *block_forward(td_module *m, td_tensor *x)
{
    block *b = (block *)m;
    td_tensor *y = x;
    for (int i = 0; i < b->n; i++) {
        td_tensor *beside = i < b->n - 1 ? NULL : b->downsample ? td_forward(b->downsample, x) : x;
        y = td_batch_norm_relu_forward(b->norm[i], td_forward(b->conv[i], y), beside);
    }
    return y;
}

static const td_module_type block_type = { .kind = "residual", .size = sizeof(block), .forward = block_forward };

static td_module *block_new(int64_t in, int64_t width, int64_t out, int stride, bool bottleneck, bool zero_gamma)
{
    block *b = (block *)td_module_new(&block_type);
    struct { int64_t out; int kernel, stride; } plain[] = { { out, 3, stride }, { out, 3, 1 } },
                                                squeezed[] = { { width, 1, 1 }, { width, 3, stride }, { out, 1, 1 } },
                                                *shape = bottleneck ? squeezed : plain;
    b->n = bottleneck ? 3 : 2;
    int64_t from = in;
    for (int i = 0; i < b->n; i++) {
        char name[16];
        snprintf(name, sizeof name, "conv%d", i + 1);
        b->conv[i] = td_module_child(&b->base, name, conv(from, shape[i].out, shape[i].kernel, shape[i].stride));
        snprintf(name, sizeof name, "bn%d", i + 1);
        b->norm[i] = td_module_child(&b->base, name, td_nn_batch_norm(shape[i].out, NULL));
        from = shape[i].out;
    }
    if (zero_gamma)
        td_fill(td_parameter_get(b->norm[b->n - 1], "weight"), 0);
    if (stride != 1 || in != out)
        b->downsample = td_module_child(&b->base, "downsample", td_nn_sequential(conv(in, out, 1, stride), td_nn_batch_norm(out, NULL)));
    return &b->base;
}

/* ---- the network -------------------------------------------------------------------------------------------------------- */

typedef struct {
    td_module  base;
    td_module *conv1, *bn1, *layer[MAX_STAGES], *fc;
    int        stages;
    bool       pooled_stem;
} resnet;

static td_tensor *resnet_forward(td_module *m, td_tensor *x)
{
    resnet *r = (resnet *)m;
    x = td_batch_norm_relu_forward(r->bn1, td_forward(r->conv1, x), NULL);
    if (r->pooled_stem)
        x = td_max_pool2d(x, 3, &(td_pool2d_opts){ .stride = 2, .padding = 1 });
    for (int i = 0; i < r->stages; i++)
        x = td_forward(r->layer[i], x);
    return td_forward(r->fc, td_mean(x, (int[]){ 2, 3 }, 2, false));
}

static const td_module_type resnet_type = { .kind = "resnet", .size = sizeof(resnet), .forward = resnet_forward };

/* How many blocks each stage has; the number of stages, 0 for a depth that is none. */
static int plan(int depth, int blocks[MAX_STAGES])
{
    static const struct { int depth, blocks[MAX_STAGES]; } known[] = {
        { 18, { 2, 2, 2, 2 } }, { 34, { 3, 4, 6, 3 } }, { 50, { 3, 4, 6, 3 } }, { 101, { 3, 4, 23, 3 } }, { 152, { 3, 8, 36, 3 } },
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].depth == depth)
            return memcpy(blocks, known[i].blocks, sizeof known[i].blocks), 4;
    if (depth < 8 || depth > 1202 || (depth - 2) % 6 != 0)
        return 0;
    blocks[0] = blocks[1] = blocks[2] = (depth - 2) / 6;
    return 3;
}

/* Every convolution's weight has four dimensions, and nothing else has. */
static void initialise(td_module *net)
{
    td_tensors p = td_parameters(net);
    for (size_t i = 0; i < p.n; i++)
        if (td_shape_of(p.list[i]).ndim == 4)
            td_nn_init_kaiming_normal(p.list[i], &(td_nn_init_opts){ .fan_out = true });
}

td_module *resnet_new(const resnet_opts *opts)
{
    resnet_opts o = opts ? *opts : (resnet_opts){ 0 };
    int blocks[MAX_STAGES], depth = o.depth ? o.depth : 20, stages = plan(depth, blocks);
    if (stages == 0) {
        fprintf(stderr, "resnet: the depth is %d, expected 18, 34, 50, 101, 152 or 6n + 2 (20, 32, …, 1202)\n", depth);
        return NULL;
    }
    bool bottleneck = stages == 4 && depth >= 50;
    int64_t width = o.width ? o.width : stages == 4 ? 64 : 16, in = width;
    resnet *r = (resnet *)td_module_new(&resnet_type);
    r->stages = stages;
    r->pooled_stem = stages == 4 && !o.small_images;
    r->conv1 = td_module_child(&r->base, "conv1", conv(o.channels ? o.channels : 3, width, r->pooled_stem ? 7 : 3, r->pooled_stem ? 2 : 1));
    r->bn1 = td_module_child(&r->base, "bn1", td_nn_batch_norm(width, NULL));
    for (int s = 0; s < stages; s++, width *= 2) {
        int64_t out = bottleneck ? 4 * width : width;
        td_module *list[(1202 - 2) / 6];
        for (int i = 0; i < blocks[s]; i++, in = out)
            list[i] = block_new(in, width, out, s > 0 && i == 0 ? 2 : 1, bottleneck, o.zero_gamma);
        char name[16];
        snprintf(name, sizeof name, "layer%d", s + 1);
        r->layer[s] = td_module_child(&r->base, name, td_nn_sequential_n(list, (size_t)blocks[s]));
    }
    r->fc = td_module_child(&r->base, "fc", td_nn_linear(in, o.classes ? o.classes : 10, NULL));
    initialise(&r->base);
    return &r->base;
}
