/* plugins/cuda/cudnn_api.h: what is used of cuDNN 9: eleven functions and some numbers of its backend interface, in which an operation is described
 * by objects with attributes. Declared here, so that the plug-in is built where cuDNN is not; the library is opened when a convolution first wants
 * it. tests/cuda/test_cudnn.c holds the numbers to NVIDIA's header.
 */
#ifndef TD_CUDNN_API_H
#define TD_CUDNN_API_H
#include <stdint.h>
#include <stddef.h>
#include <cuda_runtime_api.h>
#include <kernels.h>

enum {                                                 /* of data, and of attributes                                              */
    DNN_FLOAT = 0, DNN_HALF = 2, DNN_BFLOAT16 = 9,
    DNN_TYPE_HANDLE = 0, DNN_TYPE_DATA_TYPE = 1, DNN_TYPE_INT64 = 3, DNN_TYPE_FLOAT = 4, DNN_TYPE_VOID_PTR = 6, DNN_TYPE_CONVOLUTION_MODE = 7,
    DNN_TYPE_HEUR_MODE = 8, DNN_TYPE_NUMERICAL_NOTE = 11, DNN_TYPE_DESCRIPTOR = 15,
};
enum {                                                 /* objects                                                                 */
    DNN_CONVOLUTION = 1, DNN_ENGINE = 2, DNN_ENGINECFG = 3, DNN_ENGINEHEUR = 4, DNN_EXECUTION_PLAN = 5, DNN_CONVOLUTION_FORWARD = 10,
    DNN_CONVOLUTION_BACKWARD_FILTER = 11, DNN_CONVOLUTION_BACKWARD_DATA = 12, DNN_OPERATIONGRAPH = 15, DNN_VARIANT_PACK = 16, DNN_TENSOR = 17,
};
enum {                                                 /* attributes                                                              */
    DNN_CONV_COMP_TYPE = 100, DNN_CONV_MODE = 101, DNN_CONV_DILATIONS = 102, DNN_CONV_STRIDES = 103, DNN_CONV_POST_PADDINGS = 104,
    DNN_CONV_PRE_PADDINGS = 105, DNN_CONV_SPATIAL_DIMS = 106,
    DNN_HEUR_MODE = 200, DNN_HEUR_GRAPH = 201, DNN_HEUR_RESULTS = 202, DNN_CFG_ENGINE = 300,
    DNN_PLAN_HANDLE = 400, DNN_PLAN_CONFIG = 401, DNN_PLAN_WORKSPACE = 402,
    DNN_FORWARD_ALPHA = 700, DNN_FORWARD_BETA = 701, DNN_FORWARD_CONV = 702, DNN_FORWARD_W = 703, DNN_FORWARD_X = 704, DNN_FORWARD_Y = 705,
    DNN_DATA_ALPHA = 706, DNN_DATA_BETA = 707, DNN_DATA_CONV = 708, DNN_DATA_W = 709, DNN_DATA_DX = 710, DNN_DATA_DY = 711,
    DNN_FILTER_ALPHA = 712, DNN_FILTER_BETA = 713, DNN_FILTER_CONV = 714, DNN_FILTER_DW = 715, DNN_FILTER_X = 716, DNN_FILTER_DY = 717,
    DNN_GRAPH_HANDLE = 800, DNN_GRAPH_OPS = 801,
    DNN_TENSOR_ALIGNMENT = 900, DNN_TENSOR_TYPE = 901, DNN_TENSOR_DIMS = 902, DNN_TENSOR_STRIDES = 903, DNN_TENSOR_ID = 906,
    DNN_PACK_IDS = 1000, DNN_PACK_POINTERS = 1001, DNN_PACK_WORKSPACE = 1003, DNN_ENGINE_NUMERICAL_NOTE = 1303,
};
enum { DNN_CROSS_CORRELATION = 1, DNN_HEUR_FALLBACK = 2, DNN_HEUR_A = 3 };
enum {                                                 /* what an engine says of its arithmetic                                   */
    DNN_NOTE_TENSOR_CORE = 0, DNN_NOTE_DOWN_CONVERT_INPUTS = 1, DNN_NOTE_REDUCED_PRECISION_REDUCTION = 2, DNN_NOTE_FFT = 3,
    DNN_NOTE_NONDETERMINISTIC = 4, DNN_NOTE_WINOGRAD = 5, DNN_NOTE_COUNT = 10,
};

/* An object of cuDNN's; every function but the first and `text` returns a status, 0 for success. */
typedef void *dnn_object;
typedef struct {
    size_t (*version)(void);
    const char *(*text)(int status);
    int (*create)(void **handle);
    int (*destroy)(void *handle);
    int (*set_stream)(void *handle, cudaStream_t stream);
    int (*make)(int kind, dnn_object *o);
    int (*drop)(dnn_object o);
    int (*finish)(dnn_object o);
    int (*set)(dnn_object o, int name, int type, int64_t n, const void *values);
    int (*get)(dnn_object o, int name, int type, int64_t room, int64_t *n, void *values);
    int (*run)(void *handle, dnn_object plan, dnn_object pack);
} dnn_api;

/* ---- cudnn_open.c ---- */
/* The library, or NULL; asks once. */
const dnn_api *cudnn_library(void);

/* ---- cudnn_plan.c ---- */
enum { DNN_PLANS_MOST = 8, DNN_PARTS = 6 };
typedef struct { dnn_object plan, config; size_t workspace; } dnn_plan;
typedef struct { int n, parts; dnn_plan plan[DNN_PLANS_MOST]; dnn_object part[DNN_PARTS]; } dnn_plans;     /* parts: what plans are made of */
/* mode: 0 forward (a: w, b: x), 1 gradient of x (w, gout), 2 of w (gout, x). What cuDNN would run, best first, at most `most` and all
 * deterministic; into->n 0: nothing. align: of out, a, b. */
void cudnn_plans(const dnn_api *api, void *handle, int mode, td_dtype t, const td_conv2d_shape *s, bool add, const int64_t align[3], bool tf32,
                 int most, dnn_plans *into);
void cudnn_plan_drop(const dnn_api *api, dnn_plans *p, int i);     /* plan i of p; the others move up                                */
void cudnn_plans_drop(const dnn_api *api, dnn_plans *p);
/* A status. */
int cudnn_execute(const dnn_api *api, void *handle, const dnn_plan *plan, void *out, const void *a, const void *b, void *workspace);
#endif
