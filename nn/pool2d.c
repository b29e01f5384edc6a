/* nn/pool2d.c: maximum and mean over square windows of images (N,C,H,W), and the adaptive ones, which are told the output's size. */
#include "nn_impl.h"
#include <stdio.h>

typedef struct { td_module base; int window; td_pool2d_opts opts; } pool2d;

static td_tensor *max_forward(td_module *m, td_tensor *x)
{
    const pool2d *p = (const pool2d *)m;
    return td_max_pool2d(x, p->window, &p->opts);
}

static td_tensor *avg_forward(td_module *m, td_tensor *x)
{
    const pool2d *p = (const pool2d *)m;
    return td_avg_pool2d(x, p->window, &p->opts);
}

static void describe(const td_module *m, char *into, size_t size)
{
    const pool2d *p = (const pool2d *)m;
    snprintf(into, size, "window=%d, stride=%d, padding=%d", p->window, p->opts.stride, p->opts.padding);
}

static const td_module_type max_type = { .kind = "max_pool2d", .size = sizeof(pool2d), .forward = max_forward, .describe = describe };
static const td_module_type avg_type = { .kind = "avg_pool2d", .size = sizeof(pool2d), .forward = avg_forward, .describe = describe };

static td_module *make(const td_module_type *type, int window, const td_pool2d_opts *opts)
{
    int stride = opts && opts->stride ? opts->stride : window, padding = opts ? opts->padding : 0;
    if (window < 1 || stride < 1 || padding < 0 || padding > window / 2) {
        td__fail(TD_ERR_ARGUMENT,
                 "td_nn_%s: window is %d, stride %d and padding %d, expected 1 or more, 1 or more, and at most half the window",
                 type->kind, window, stride, padding);
        return td__module_poison();
    }
    pool2d *p = (pool2d *)td_module_new(type);
    p->window = window;
    p->opts = (td_pool2d_opts){ .stride = stride, .padding = padding };
    return td__layer_done(&p->base);
}

td_module *td_nn_max_pool2d(int window, const td_pool2d_opts *opts)
{
    TD_ENTER();
    return make(&max_type, window, opts);
}

td_module *td_nn_avg_pool2d(int window, const td_pool2d_opts *opts)
{
    TD_ENTER();
    return make(&avg_type, window, opts);
}

/* ---- adaptive ------------------------------------------------------------------------------------------------------ */

typedef struct { td_module base; int64_t out_h, out_w; } adaptive;

static td_tensor *adaptive_max_forward(td_module *m, td_tensor *x)
{
    const adaptive *p = (const adaptive *)m;
    return td_adaptive_max_pool2d(x, p->out_h, p->out_w);
}

static td_tensor *adaptive_avg_forward(td_module *m, td_tensor *x)
{
    const adaptive *p = (const adaptive *)m;
    return td_adaptive_avg_pool2d(x, p->out_h, p->out_w);
}

static void adaptive_describe(const td_module *m, char *into, size_t size)
{
    const adaptive *p = (const adaptive *)m;
    snprintf(into, size, "out=%lldx%lld", (long long)p->out_h, (long long)p->out_w);
}

static const td_module_type adaptive_max_type = { .kind = "adaptive_max_pool2d", .size = sizeof(adaptive),
                                                  .forward = adaptive_max_forward, .describe = adaptive_describe };
static const td_module_type adaptive_avg_type = { .kind = "adaptive_avg_pool2d", .size = sizeof(adaptive),
                                                  .forward = adaptive_avg_forward, .describe = adaptive_describe };

static td_module *adaptive_make(const td_module_type *type, int64_t out_h, int64_t out_w)
{
    if (out_h < 1 || out_w < 1) {
        td__fail(TD_ERR_ARGUMENT, "td_nn_%s: the output's size is %lld by %lld, expected at least 1 by 1", type->kind, (long long)out_h,
                 (long long)out_w);
        return td__module_poison();
    }
    adaptive *p = (adaptive *)td_module_new(type);
    p->out_h = out_h;
    p->out_w = out_w;
    return td__layer_done(&p->base);
}

td_module *td_nn_adaptive_max_pool2d(int64_t out_h, int64_t out_w)
{
    TD_ENTER();
    return adaptive_make(&adaptive_max_type, out_h, out_w);
}

td_module *td_nn_adaptive_avg_pool2d(int64_t out_h, int64_t out_w)
{
    TD_ENTER();
    return adaptive_make(&adaptive_avg_type, out_h, out_w);
}
