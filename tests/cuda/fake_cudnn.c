/* tests/cuda/fake_cudnn.c: libcudnn.so.9 as far as plugins/cuda calls it: objects whose attributes are checked as NVIDIA's documentation and header
 * say (type and number of values, finished before use, unchanged after), four engines of which some are unsound or refuse, and convolutions computed
 * on the host in double from the strides of the descriptors. What is asked wrongly is refused with the status that cuDNN has for it.
 */
#include <cudnn.h>
#include <convert.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ATTRIBUTES = 16, ENGINES = 4, WORKSPACE = 1000 };
enum { RACING, TENSOR_CORES, ROUNDING, PLAIN_ENGINE };         /* the engines, best first                                          */
typedef struct { int name, type; int64_t n; union { int64_t i[4]; float f; void *p[4]; int e; } v; } attribute;
typedef struct object { int kind, n, engine; bool finished; attribute a[ATTRIBUTES]; } object;
struct cudnnContext { bool stream; };

static int live, runs[ENGINES], plans;
int fake_cudnn_live(void);
int fake_cudnn_runs(int engine);
int fake_cudnn_plans(void);
int fake_cudnn_live(void) { return live; }
int fake_cudnn_runs(int engine) { int n = runs[engine]; runs[engine] = 0; return n; }
int fake_cudnn_plans(void) { return plans; }

size_t cudnnGetVersion(void) { const char *v = getenv("FAKE_CUDNN_VERSION"); return v ? (size_t)atol(v) : 91900; }
const char *cudnnGetErrorString(cudnnStatus_t s) { static char text[40]; snprintf(text, sizeof text, "status %d of the fake", (int)s); return text; }
cudnnStatus_t cudnnCreate(cudnnHandle_t *h) { *h = calloc(1, sizeof **h); return getenv("FAKE_CUDNN_BROKEN") ? CUDNN_STATUS_NOT_INITIALIZED : CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnDestroy(cudnnHandle_t h) { free(h); return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnSetStream(cudnnHandle_t h, cudaStream_t s) { (void)s; h->stream = true; return CUDNN_STATUS_SUCCESS; }

/* ---- attributes ----------------------------------------------------------------------------------------------------------------------- */
/* kind, name, type, how many values, needed; object: the kind that a descriptor must be */
static const struct { int kind, name, type; int64_t n; bool needed; int object; } rules[] = {
#define TENSOR CUDNN_BACKEND_TENSOR_DESCRIPTOR
    { TENSOR, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, true, -1 }, { TENSOR, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, true, -1 },
    { TENSOR, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, true, -1 }, { TENSOR, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, true, -1 },
    { TENSOR, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, true, -1 },
#define CONV CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR
    { CONV, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, true, -1 }, { CONV, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, true, -1 },
    { CONV, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, true, -1 }, { CONV, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, true, -1 },
    { CONV, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, true, -1 }, { CONV, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, true, -1 },
    { CONV, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, true, -1 },
#define OPERATION(KIND, X, W, Y, PREFIX)                                                                     \
    { KIND, PREFIX##_##X, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true, TENSOR }, { KIND, PREFIX##_##W, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true, TENSOR },  \
    { KIND, PREFIX##_##Y, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true, TENSOR }, { KIND, PREFIX##_CONV_DESC, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true, CONV },  \
    { KIND, PREFIX##_ALPHA, CUDNN_TYPE_FLOAT, 1, true, -1 }, { KIND, PREFIX##_BETA, CUDNN_TYPE_FLOAT, 1, true, -1 }
    OPERATION(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR, X, W, Y, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD),
    OPERATION(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR, DX, W, DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA),
    OPERATION(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR, X, DW, DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER),
    { CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, true, -1 },
    { CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true, -2 },
    { CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR },
    { CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, true, -1 },
    { CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, true, -1 },
    { CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, true, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR },
    { CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, 3, true, -1 },
    { CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, 3, true, -1 },
    { CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, false, -1 },
};

static attribute *find(object *o, int name)
{
    for (int i = 0; i < o->n; i++)
        if (o->a[i].name == name)
            return &o->a[i];
    return NULL;
}

static object *part(object *o, int name) { attribute *a = find(o, name); return a ? a->v.p[0] : NULL; }
static const int64_t *numbers(object *o, int name) { return find(o, name)->v.i; }
static int word(object *o, int name) { return find(o, name)->v.e; }

static size_t size_of(int type)
{
    return type == CUDNN_TYPE_INT64 ? 8 : type == CUDNN_TYPE_HANDLE || type == CUDNN_TYPE_VOID_PTR || type == CUDNN_TYPE_BACKEND_DESCRIPTOR ? sizeof(void *) : 4;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t kind, cudnnBackendDescriptor_t *d)
{
    object *o = calloc(1, sizeof *o);
    o->kind = (int)kind;
    live++;
    *d = o;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t d)
{
    if (!d)
        return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    memset(d, 0xA5, sizeof(object));                           /* who still uses it will notice                                    */
    free(d);
    live--;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t n,
                                       const void *values)
{
    object *o = d;
    if (!o || !values)
        return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    if (o->finished)
        return CUDNN_STATUS_NOT_INITIALIZED;
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        if (rules[i].kind != o->kind || rules[i].name != (int)name)
            continue;
        if (rules[i].type != (int)type)
            return CUDNN_STATUS_BAD_PARAM_ATTRIBUTE_TYPE;
        if (rules[i].n != n)
            return CUDNN_STATUS_BAD_PARAM_OUT_OF_BOUND;
        attribute *a = find(o, (int)name);
        a = a ? a : &o->a[o->n++];
        *a = (attribute){ .name = (int)name, .type = (int)type, .n = n };
        memcpy(&a->v, values, size_of((int)type) * (size_t)n);
        if (type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
            object *p = a->v.p[0];
            if (!p || !p->finished)
                return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
            if (rules[i].object >= 0 && p->kind != rules[i].object)
                return CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE;
        }
        return CUDNN_STATUS_SUCCESS;
    }
    return CUDNN_STATUS_BAD_PARAM;
}

/* ---- what is finished ------------------------------------------------------------------------------------------------------------------- */
typedef struct { object *x, *w, *y, *conv; float alpha, beta; int mode; } operation;

static operation operation_of(object *op)
{
    operation r = { 0 };
#define TAKE(MODE, X, W, Y, PREFIX)                                                                          \
    r = (operation){ part(op, PREFIX##_##X), part(op, PREFIX##_##W), part(op, PREFIX##_##Y), part(op, PREFIX##_CONV_DESC),  \
                     find(op, PREFIX##_ALPHA)->v.f, find(op, PREFIX##_BETA)->v.f, MODE }
    if (op->kind == CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR)
        TAKE(0, X, W, Y, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD);
    else if (op->kind == CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR)
        TAKE(1, DX, W, DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA);
    else
        TAKE(2, X, DW, DY, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER);
    return r;
}

static bool same_shapes(const operation *p)
{
    const int64_t *x = numbers(p->x, CUDNN_ATTR_TENSOR_DIMENSIONS), *w = numbers(p->w, CUDNN_ATTR_TENSOR_DIMENSIONS), *y = numbers(p->y, CUDNN_ATTR_TENSOR_DIMENSIONS);
    const int64_t *before = numbers(p->conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS), *after = numbers(p->conv, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS);
    const int64_t *step = numbers(p->conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES), *apart = numbers(p->conv, CUDNN_ATTR_CONVOLUTION_DILATIONS);
    bool same = x[0] == y[0] && w[0] == y[1] && x[1] % w[1] == 0 && y[1] % (x[1] / w[1]) == 0;
    for (int i = 0; i < 2; i++)
        same = same && (x[2 + i] + before[i] + after[i] - apart[i] * (w[2 + i] - 1) - 1) / step[i] + 1 == y[2 + i];
    const int t = word(p->x, CUDNN_ATTR_TENSOR_DATA_TYPE);
    return same && word(p->w, CUDNN_ATTR_TENSOR_DATA_TYPE) == t && word(p->y, CUDNN_ATTR_TENSOR_DATA_TYPE) == t;
}

static bool channels_last(object *t) { return numbers(t, CUDNN_ATTR_TENSOR_STRIDES)[1] == 1; }

static operation planned(object *plan)
{
    object *config = part(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG), *graph = config->a[0].v.p[0];
    return operation_of(part(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS));
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t d)
{
    object *o = d;
    if (!o || o->finished)
        return CUDNN_STATUS_BAD_PARAM;
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (rules[i].kind == o->kind && rules[i].needed && !find(o, rules[i].name))
            return CUDNN_STATUS_BAD_PARAM;
    if (o->kind == TENSOR) {
        const int64_t a = numbers(o, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT)[0], *size = numbers(o, CUDNN_ATTR_TENSOR_DIMENSIONS);
        const int t = word(o, CUDNN_ATTR_TENSOR_DATA_TYPE);
        if (a <= 0 || (a & (a - 1)) || a < (t == CUDNN_DATA_FLOAT ? 4 : 2) || size[0] < 1 || size[1] < 1 || size[2] < 1 || size[3] < 1)
            return CUDNN_STATUS_BAD_PARAM;
    } else if (o->kind >= CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR && o->kind <= CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR) {
        operation p = operation_of(o);
        if (!same_shapes(&p))
            return CUDNN_STATUS_BAD_PARAM_SHAPE_MISMATCH;
    } else if (o->kind == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR) {
        operation p = planned(o);
        o->engine = part(o, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG)->engine;
        const int64_t *w = numbers(p.w, CUDNN_ATTR_TENSOR_DIMENSIONS);
        if (o->engine == TENSOR_CORES && (!channels_last(p.x) || w[1] % 8 || w[0] % 8))
            return CUDNN_STATUS_NOT_SUPPORTED_LAYOUT;
        if (numbers(p.conv, CUDNN_ATTR_CONVOLUTION_DILATIONS)[0] == 5)     /* nothing runs it: the caller's own kernels must           */
            return CUDNN_STATUS_NOT_SUPPORTED_SHAPE;
        if (o->engine == PLAIN_ENGINE && p.beta != 0 && p.mode == 2 && getenv("FAKE_CUDNN_NO_ADD"))
            return CUDNN_STATUS_NOT_SUPPORTED;
        plans++;
    }
    o->finished = true;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type, int64_t room,
                                       int64_t *n, void *values)
{
    object *o = d;
    if (!o || !o->finished)
        return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
    if (o->kind == CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR && name == CUDNN_ATTR_ENGINEHEUR_RESULTS && type == CUDNN_TYPE_BACKEND_DESCRIPTOR) {
        const int first = word(o, CUDNN_ATTR_ENGINEHEUR_MODE) == CUDNN_HEUR_MODE_A ? 0 : PLAIN_ENGINE;
        if (word(o, CUDNN_ATTR_ENGINEHEUR_MODE) != CUDNN_HEUR_MODE_A && word(o, CUDNN_ATTR_ENGINEHEUR_MODE) != CUDNN_HEUR_MODE_FALLBACK)
            return CUDNN_STATUS_BAD_PARAM;
        *n = ENGINES - first;
        if (room == 0)
            return CUDNN_STATUS_SUCCESS;
        *n = room < *n ? room : *n;
        for (int64_t i = 0; i < *n; i++) {
            object *c = ((void **)values)[i];
            if (!c || c->kind != CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)
                return CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE;
            c->engine = first + (int)i;
            c->n = 1;
            c->a[0].name = -1;
            c->a[0].v.p[0] = part(o, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
            c->finished = true;
        }
        return CUDNN_STATUS_SUCCESS;
    }
    if (o->kind == CUDNN_BACKEND_ENGINECFG_DESCRIPTOR && name == CUDNN_ATTR_ENGINECFG_ENGINE && type == CUDNN_TYPE_BACKEND_DESCRIPTOR && room == 1) {
        object *e = *(void **)values;
        if (!e || e->kind != CUDNN_BACKEND_ENGINE_DESCRIPTOR)
            return CUDNN_STATUS_BAD_PARAM_DESCRIPTOR_TYPE;
        e->engine = o->engine;
        e->a[0] = o->a[0];
        e->finished = true;
        *n = 1;
        return CUDNN_STATUS_SUCCESS;
    }
    if (o->kind == CUDNN_BACKEND_ENGINE_DESCRIPTOR && name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE && type == CUDNN_TYPE_NUMERICAL_NOTE) {
        static const int notes[ENGINES][2] = {
            { CUDNN_NUMERICAL_NOTE_TENSOR_CORE, CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC }, { CUDNN_NUMERICAL_NOTE_TENSOR_CORE, CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS },
            { CUDNN_NUMERICAL_NOTE_WINOGRAD, CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION }, { CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP, CUDNN_NUMERICAL_NOTE_FFT } };
        *n = room < 2 ? room : 2;
        memcpy(values, notes[o->engine], (size_t)*n * sizeof(int));
        return CUDNN_STATUS_SUCCESS;
    }
    if (o->kind == CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR && name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE && type == CUDNN_TYPE_INT64 && room == 1) {
        *(int64_t *)values = o->engine == TENSOR_CORES ? WORKSPACE : 0;
        *n = 1;
        return CUDNN_STATUS_SUCCESS;
    }
    return CUDNN_STATUS_BAD_PARAM;
}

/* ---- convolutions --------------------------------------------------------------------------------------------------------------------------- */
static double read_at(object *t, const void *p, int64_t at)
{
    switch (word(t, CUDNN_ATTR_TENSOR_DATA_TYPE)) {
    case CUDNN_DATA_HALF: return (double)td__f16_to_f32(((const td_f16 *)p)[at]);
    case CUDNN_DATA_BFLOAT16: return (double)td__bf16_to_f32(((const td_bf16 *)p)[at]);
    default: return (double)((const float *)p)[at];
    }
}

static void write_at(object *t, void *p, int64_t at, double v)
{
    switch (word(t, CUDNN_ATTR_TENSOR_DATA_TYPE)) {
    case CUDNN_DATA_HALF: ((td_f16 *)p)[at] = td__f32_to_f16((float)v); break;
    case CUDNN_DATA_BFLOAT16: ((td_bf16 *)p)[at] = td__f32_to_bf16((float)v); break;
    default: ((float *)p)[at] = (float)v;
    }
}

static int64_t place(object *t, int64_t a, int64_t b, int64_t c, int64_t d)
{
    const int64_t *s = numbers(t, CUDNN_ATTR_TENSOR_STRIDES);
    return a * s[0] + b * s[1] + c * s[2] + d * s[3];
}

static void convolve(const operation *p, const void *x, const void *w, const void *y)
{
    object *const target = p->mode == 0 ? p->y : p->mode == 1 ? p->x : p->w;
    void *const out = (void *)(uintptr_t)(p->mode == 0 ? y : p->mode == 1 ? x : w);
    const int64_t *xd = numbers(p->x, CUDNN_ATTR_TENSOR_DIMENSIONS), *wd = numbers(p->w, CUDNN_ATTR_TENSOR_DIMENSIONS), *yd = numbers(p->y, CUDNN_ATTR_TENSOR_DIMENSIONS);
    const int64_t *od = numbers(target, CUDNN_ATTR_TENSOR_DIMENSIONS), *pad = numbers(p->conv, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS);
    const int64_t *step = numbers(p->conv, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES), *apart = numbers(p->conv, CUDNN_ATTR_CONVOLUTION_DILATIONS);
    const int64_t groups = xd[1] / wd[1], og = yd[1] / groups, count = od[0] * od[1] * od[2] * od[3];
    double *sum = calloc((size_t)count, sizeof *sum);
    for (int64_t n = 0; n < yd[0]; n++)
        for (int64_t o = 0; o < yd[1]; o++)
            for (int64_t i = 0; i < yd[2]; i++)
                for (int64_t j = 0; j < yd[3]; j++)
                    for (int64_t c = 0; c < wd[1]; c++)
                        for (int64_t k = 0; k < wd[2]; k++)
                            for (int64_t l = 0; l < wd[3]; l++) {
                                const int64_t h = i * step[0] - pad[0] + k * apart[0], v = j * step[1] - pad[1] + l * apart[1], from = o / og * wd[1] + c;
                                if (h < 0 || v < 0 || h >= xd[2] || v >= xd[3])
                                    continue;
                                const int64_t at_x = place(p->x, n, from, h, v), at_w = place(p->w, o, c, k, l), at_y = place(p->y, n, o, i, j);
                                if (p->mode == 0)
                                    sum[((n * od[1] + o) * od[2] + i) * od[3] + j] += read_at(p->x, x, at_x) * read_at(p->w, w, at_w);
                                else if (p->mode == 1)
                                    sum[((n * od[1] + from) * od[2] + h) * od[3] + v] += read_at(p->y, y, at_y) * read_at(p->w, w, at_w);
                                else
                                    sum[((o * od[1] + c) * od[2] + k) * od[3] + l] += read_at(p->y, y, at_y) * read_at(p->x, x, at_x);
                            }
    for (int64_t i = 0; i < count; i++) {
        const int64_t at = place(target, i / (od[1] * od[2] * od[3]), i / (od[2] * od[3]) % od[1], i / od[3] % od[2], i % od[3]);
        write_at(target, out, at, (double)p->alpha * sum[i] + (p->beta != 0 ? (double)p->beta * read_at(target, out, at) : 0));
    }
    free(sum);
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t h, cudnnBackendDescriptor_t plan, cudnnBackendDescriptor_t pack)
{
    object *e = plan, *v = pack;
    if (!h || !e || !v)
        return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
    if (!h->stream)                                            /* on the default stream nothing would be in order                    */
        return CUDNN_STATUS_BAD_PARAM_STREAM_MISMATCH;
    if (!e->finished || !v->finished || part(e, CUDNN_ATTR_EXECUTION_PLAN_HANDLE) != (void *)h)
        return CUDNN_STATUS_BAD_PARAM_NOT_FINALIZED;
    operation p = planned(e);
    object *const tensor[3] = { p.x, p.w, p.y };
    const int64_t *ids = numbers(v, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    void *const *given = find(v, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS)->v.p, *at[3] = { NULL };
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < 3; k++)
            if (ids[k] == numbers(tensor[i], CUDNN_ATTR_TENSOR_UNIQUE_ID)[0])
                at[i] = given[k];
        if (!at[i])
            return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
        if ((uintptr_t)at[i] % (uintptr_t)numbers(tensor[i], CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT)[0])
            return CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER;
    }
    if (e->engine == TENSOR_CORES) {
        object *room = part(v, CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
        if (!room)
            return CUDNN_STATUS_BAD_PARAM_NULL_POINTER;
        memset(room, 0x5A, WORKSPACE);                         /* the sanitizer sees one that is too small                             */
    }
    convolve(&p, at[0], at[1], at[2]);
    runs[e->engine]++;
    return CUDNN_STATUS_SUCCESS;
}
