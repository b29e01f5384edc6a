/* plugins/cuda/cudnn_plan.c: a convolution told to cuDNN, and what it would run for it.
 *
 * Told are three tensors (sizes and strides, so NCHW and NHWC are one to it; groups it counts by the weights' channels), the convolution, and the
 * operation out = conv + beta*out. Its own model of the device answers with configurations of engines, best first; with sizes alone, so every run
 * and every rank gets the same. Taken are those that sum in f32 and in the same order every time: none that says it is not deterministic, rounds
 * its inputs (f32 stays f32 unless TANDEM_TF32) or its partial sums.
 */
#include "cuda_impl.h"
#include "cudnn_api.h"
#include <string.h>

enum { CONFIGS = 64, ID_OUT = 1, ID_A, ID_B };
static const int64_t WORKSPACE_MOST = 1ll << 30;

typedef struct {
    const dnn_api *api;
    void *handle;
    dnn_object object[CONFIGS * 4 + 16];               /* dropped at the end, but for the first: they are what plans are made of  */
    int objects, status;
} work;

static dnn_object make(work *w, int kind)
{
    dnn_object o = NULL;
    if (!w->status && w->objects == (int)TD_COUNT(w->object))
        w->status = -1;
    if (!w->status)
        w->status = w->api->make(kind, &o);
    if (w->status)
        return NULL;
    return w->object[w->objects++] = o;
}

static void set(work *w, dnn_object o, int name, int type, int64_t n, const void *values)
{
    if (!w->status)
        w->status = w->api->set(o, name, type, n, values);
}

static void finish(work *w, dnn_object o)
{
    if (!w->status)
        w->status = w->api->finish(o);
}

static int data_type(td_dtype t)
{
    return t == TD_F16 ? DNN_HALF : t == TD_BF16 ? DNN_BFLOAT16 : DNN_FLOAT;
}

/* size: of the dimensions n, c, h, w (of weights o, c, h, w) */
static dnn_object tensor(work *w, int64_t id, td_dtype t, bool nhwc, const int64_t size[4], int64_t align)
{
    const int64_t c = size[1], area = size[2] * size[3];
    const int64_t first[4] = { c * area, area, size[3], 1 }, last[4] = { c * area, 1, size[3] * c, c };
    const int type = data_type(t);
    dnn_object o = make(w, DNN_TENSOR);
    set(w, o, DNN_TENSOR_TYPE, DNN_TYPE_DATA_TYPE, 1, &type);
    set(w, o, DNN_TENSOR_DIMS, DNN_TYPE_INT64, 4, size);
    set(w, o, DNN_TENSOR_STRIDES, DNN_TYPE_INT64, 4, nhwc ? last : first);
    set(w, o, DNN_TENSOR_ID, DNN_TYPE_INT64, 1, &id);
    set(w, o, DNN_TENSOR_ALIGNMENT, DNN_TYPE_INT64, 1, &align);
    finish(w, o);
    return o;
}

static dnn_object convolution(work *w, const td_conv2d_shape *s)
{
    const int type = DNN_FLOAT, mode = DNN_CROSS_CORRELATION;
    const int64_t dims = 2, padding[2] = { s->padding, s->padding }, stride[2] = { s->stride, s->stride }, dilation[2] = { s->dilation, s->dilation };
    dnn_object o = make(w, DNN_CONVOLUTION);
    set(w, o, DNN_CONV_COMP_TYPE, DNN_TYPE_DATA_TYPE, 1, &type);
    set(w, o, DNN_CONV_MODE, DNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(w, o, DNN_CONV_SPATIAL_DIMS, DNN_TYPE_INT64, 1, &dims);
    set(w, o, DNN_CONV_PRE_PADDINGS, DNN_TYPE_INT64, 2, padding);
    set(w, o, DNN_CONV_POST_PADDINGS, DNN_TYPE_INT64, 2, padding);
    set(w, o, DNN_CONV_STRIDES, DNN_TYPE_INT64, 2, stride);
    set(w, o, DNN_CONV_DILATIONS, DNN_TYPE_INT64, 2, dilation);
    finish(w, o);
    return o;
}

/* The graph of the one operation. */
static dnn_object graph(work *w, int mode, td_dtype t, const td_conv2d_shape *s, bool add, const int64_t align[3])
{
    /* by mode: the operation, its attributes for out, a, b, the convolution, alpha, beta */
    static const struct { int kind, out, a, b, conv, alpha, beta; } told[3] = {
        { DNN_CONVOLUTION_FORWARD, DNN_FORWARD_Y, DNN_FORWARD_W, DNN_FORWARD_X, DNN_FORWARD_CONV, DNN_FORWARD_ALPHA, DNN_FORWARD_BETA },
        { DNN_CONVOLUTION_BACKWARD_DATA, DNN_DATA_DX, DNN_DATA_W, DNN_DATA_DY, DNN_DATA_CONV, DNN_DATA_ALPHA, DNN_DATA_BETA },
        { DNN_CONVOLUTION_BACKWARD_FILTER, DNN_FILTER_DW, DNN_FILTER_DY, DNN_FILTER_X, DNN_FILTER_CONV, DNN_FILTER_ALPHA, DNN_FILTER_BETA },
    };
    const int64_t x[4] = { s->n, s->c, s->h, s->w }, y[4] = { s->n, s->o, s->oh, s->ow }, weights[4] = { s->o, s->c / s->groups, s->kh, s->kw };
    const int64_t *const size[3][3] = { { y, weights, x }, { x, weights, y }, { weights, y, x } };
    const float alpha = 1, beta = add ? 1 : 0;
    dnn_object out = tensor(w, ID_OUT, t, s->nhwc, size[mode][0], align[0]), a = tensor(w, ID_A, t, s->nhwc, size[mode][1], align[1]);
    dnn_object b = tensor(w, ID_B, t, s->nhwc, size[mode][2], align[2]), conv = convolution(w, s), op = make(w, told[mode].kind);
    set(w, op, told[mode].out, DNN_TYPE_DESCRIPTOR, 1, &out);
    set(w, op, told[mode].a, DNN_TYPE_DESCRIPTOR, 1, &a);
    set(w, op, told[mode].b, DNN_TYPE_DESCRIPTOR, 1, &b);
    set(w, op, told[mode].conv, DNN_TYPE_DESCRIPTOR, 1, &conv);
    set(w, op, told[mode].alpha, DNN_TYPE_FLOAT, 1, &alpha);
    set(w, op, told[mode].beta, DNN_TYPE_FLOAT, 1, &beta);
    finish(w, op);
    dnn_object g = make(w, DNN_OPERATIONGRAPH);
    set(w, g, DNN_GRAPH_HANDLE, DNN_TYPE_HANDLE, 1, &w->handle);
    set(w, g, DNN_GRAPH_OPS, DNN_TYPE_DESCRIPTOR, 1, &op);
    finish(w, g);
    return g;
}

/* Its arithmetic is what this library promises: deterministic, sums in f32, f32 not rounded. What cannot be asked is not taken. */
static bool sound(work *w, dnn_object config, td_dtype t, bool tf32)
{
    int note[DNN_NOTE_COUNT];
    int64_t n = 0;
    dnn_object engine = make(w, DNN_ENGINE);
    if (w->status || w->api->get(config, DNN_CFG_ENGINE, DNN_TYPE_DESCRIPTOR, 1, &n, &engine) ||
        w->api->get(engine, DNN_ENGINE_NUMERICAL_NOTE, DNN_TYPE_NUMERICAL_NOTE, DNN_NOTE_COUNT, &n, note))
        return false;
    for (int64_t i = 0; i < n && i < DNN_NOTE_COUNT; i++)
        if (note[i] == DNN_NOTE_NONDETERMINISTIC || note[i] == DNN_NOTE_REDUCED_PRECISION_REDUCTION ||
            (t == TD_F32 && !tf32 && (note[i] == DNN_NOTE_TENSOR_CORE || note[i] == DNN_NOTE_DOWN_CONVERT_INPUTS)))
            return false;
    return true;
}

/* An executable plan of a configuration; many cannot run here, which is no error. */
static bool planned(work *w, dnn_object config, dnn_plan *into)
{
    int64_t n = 0, bytes = 0;
    dnn_object plan = NULL;
    if (w->api->make(DNN_EXECUTION_PLAN, &plan))
        return false;
    int status = w->api->set(plan, DNN_PLAN_HANDLE, DNN_TYPE_HANDLE, 1, &w->handle);
    status = status ? status : w->api->set(plan, DNN_PLAN_CONFIG, DNN_TYPE_DESCRIPTOR, 1, &config);
    status = status ? status : w->api->finish(plan);
    status = status ? status : w->api->get(plan, DNN_PLAN_WORKSPACE, DNN_TYPE_INT64, 1, &n, &bytes);
    if (status || n != 1 || bytes < 0 || bytes > WORKSPACE_MOST) {
        w->api->drop(plan);
        return false;
    }
    for (int i = 0; i < w->objects; i++)
        if (w->object[i] == config)
            w->object[i] = NULL;                       /* the plan's now                                                          */
    *into = (dnn_plan){ plan, config, (size_t)bytes };
    return true;
}

/* The advice of one mode. */
static void advice(work *w, dnn_object g, int heuristic, td_dtype t, bool tf32, int most, dnn_plans *into)
{
    dnn_object config[CONFIGS];
    int64_t n = 0;
    dnn_object heur = make(w, DNN_ENGINEHEUR);
    set(w, heur, DNN_HEUR_GRAPH, DNN_TYPE_DESCRIPTOR, 1, &g);
    set(w, heur, DNN_HEUR_MODE, DNN_TYPE_HEUR_MODE, 1, &heuristic);
    finish(w, heur);
    if (!w->status)
        w->status = w->api->get(heur, DNN_HEUR_RESULTS, DNN_TYPE_DESCRIPTOR, 0, &n, NULL);
    n = n < CONFIGS ? n : CONFIGS;
    for (int64_t i = 0; i < n; i++)
        config[i] = make(w, DNN_ENGINECFG);
    if (w->status || n == 0 || w->api->get(heur, DNN_HEUR_RESULTS, DNN_TYPE_DESCRIPTOR, n, &n, config))
        return;
    for (int64_t i = 0; i < n && into->n < most; i++)
        if (sound(w, config[i], t, tf32))
            into->n += planned(w, config[i], into->plan + into->n);
}

void cudnn_plans(const dnn_api *api, void *handle, int mode, td_dtype t, const td_conv2d_shape *s, bool add, const int64_t align[3], bool tf32,
                 int most, dnn_plans *into)
{
    work w = { .api = api, .handle = handle };
    memset(into, 0, sizeof *into);
    dnn_object g = graph(&w, mode, t, s, add, align);
    into->parts = w.objects;
    memcpy(into->part, w.object, (size_t)w.objects * sizeof *w.object);
    if (!w.status)
        advice(&w, g, DNN_HEUR_A, t, tf32, most, into);
    w.status = into->parts == DNN_PARTS ? 0 : w.status;
    if (!w.status && into->n == 0)
        advice(&w, g, DNN_HEUR_FALLBACK, t, tf32, most, into);
    while (w.objects > into->parts)
        if (w.object[--w.objects])
            api->drop(w.object[w.objects]);
    if (into->n == 0)
        cudnn_plans_drop(api, into);
}

void cudnn_plan_drop(const dnn_api *api, dnn_plans *p, int i)
{
    api->drop(p->plan[i].plan);
    api->drop(p->plan[i].config);
    memmove(p->plan + i, p->plan + i + 1, (size_t)(--p->n - i) * sizeof *p->plan);
}

void cudnn_plans_drop(const dnn_api *api, dnn_plans *p)
{
    while (p->n > 0)
        cudnn_plan_drop(api, p, p->n - 1);
    while (p->parts > 0)
        api->drop(p->part[--p->parts]);
}

int cudnn_execute(const dnn_api *api, void *handle, const dnn_plan *plan, void *out, const void *a, const void *b, void *workspace)
{
    const int64_t id[3] = { ID_OUT, ID_A, ID_B };
    const void *const pointer[3] = { out, a, b };
    dnn_object pack = NULL;
    int status = api->make(DNN_VARIANT_PACK, &pack);
    if (status)
        return status;
    status = api->set(pack, DNN_PACK_POINTERS, DNN_TYPE_VOID_PTR, 3, pointer);
    status = status ? status : api->set(pack, DNN_PACK_IDS, DNN_TYPE_INT64, 3, id);
    status = status ? status : api->set(pack, DNN_PACK_WORKSPACE, DNN_TYPE_VOID_PTR, 1, &workspace);
    status = status ? status : api->finish(pack);
    status = status ? status : api->run(handle, plan->plan, pack);
    api->drop(pack);
    return status;
}
